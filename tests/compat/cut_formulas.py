"""CUT's loss, sampling and projection, written here anew from its behaviour: what the drop-ins are held to."""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = (3, 8, 16)


def options(**changes) -> SimpleNamespace:
    values = {"nce_T": 0.07, "batch_size": 1, "nce_includes_all_negatives_from_minibatch": False}
    return SimpleNamespace(**(values | changes))


def unit_rows(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def cut_loss(q, k, opt):
    """Cross-entropy of [positive, all products with the diagonal at -10] / τ against class 0."""
    images = 1 if opt.nce_includes_all_negatives_from_minibatch else opt.batch_size
    q, k = q.reshape(images, -1, q.shape[-1]), k.detach().reshape(images, -1, k.shape[-1])
    products = torch.einsum("bid,bjd->bij", q, k)
    positive = (q * k).sum(-1, keepdim=True)
    itself = torch.eye(q.shape[1], dtype=torch.bool)
    logits = torch.cat([positive, products.masked_fill(itself, -10.0)], dim=-1) / opt.nce_T
    target = torch.zeros(logits.shape[:2].numel(), dtype=torch.long)
    return F.cross_entropy(logits.flatten(0, 1), target, reduction="none")


class CutSample(nn.Module):
    """CUT's sampling and projection: the same module names, draws and arithmetic, in plain torch."""

    def __init__(self, nc=32, init=lambda weight: nn.init.normal_(weight, 0.0, 0.02)):
        super().__init__()
        self.nc, self.init, self.made = nc, init, False

    def make(self, widths):
        for i, width in enumerate(widths):
            mlp = nn.Sequential(nn.Linear(width, self.nc), nn.ReLU(), nn.Linear(self.nc, self.nc))
            self.add_module(f"mlp_{i}", mlp)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                self.init(module.weight.data)
                module.bias.data.zero_()
        self.made = True
        return self

    def forward(self, feats, num_patches=64, patch_ids=None):
        if not self.made:
            self.make([feat.shape[1] for feat in feats])
        patches, ids = [], []
        for i, feat in enumerate(feats):
            if patch_ids is None:
                positions = np.random.permutation(feat.shape[2] * feat.shape[3])  # noqa: NPY002
                ids.append(torch.from_numpy(positions[:num_patches].copy()))
            else:
                ids.append(patch_ids[i])
            x = feat.flatten(2).transpose(1, 2)[:, ids[i]].reshape(-1, feat.shape[1])
            x = self.get_submodule(f"mlp_{i}")(x)
            patches.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-7))
        return patches, ids


def make_feats(batch, seed=0, dtype=torch.float32, size=9):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(size, size + 1), (size, size), (5, 4)]
    return [
        torch.randn(batch, width, *hw, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for width, hw in zip(WIDTHS, sizes, strict=True)
    ]


def seed_all(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
