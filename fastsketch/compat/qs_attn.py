"""Drop-in `PatchSampleF` for the public QS-Attn code, global attention [L: Hu et al., CVPR 2022].

The N×N attention of a layer is never stored: entropies are streamed, and only the rows of the S selected queries are
made. `PatchNCELoss` is CUT's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsketch._checks import FLOATING, check_int, check_tensor
from fastsketch.compat import dclgan
from fastsketch.compat.cut import PatchNCELoss
from fastsketch.functional import attention_statistics, gather_patches
from fastsketch.reference.precision import widened

__all__ = ["PatchNCELoss", "PatchSampleF", "select_queries"]

FIRST_ATTENDED = 3
"""Layers before this one are sampled at random, as in QS-Attn: their grids are too large to attend on."""


def select_queries(features: Tensor, num_patches: int) -> tuple[Tensor, Tensor]:
    """The positions whose attention has the lowest entropy, and their rows of softmax(F Fᵀ) (no 1/√C, as in QS-Attn).

    Args:
        features: [B, C, *spatial], any floating dtype.
        num_patches: S, 0 or more; all positions if there are fewer.

    Returns:
        (index, rows): int64 [B, S] by ascending entropy, and [B, S, N] in float32 (float64 for float64), through
        which gradients reach `features`. Positions of equal entropy may come in another order than in QS-Attn.

    Raises:
        TypeError: features that are no floating tensor, or a `num_patches` that is no int.
        ValueError: a negative `num_patches`, or features that are not [B, C, *spatial] or are empty.
    """
    check_tensor("features", features, FLOATING)
    check_int("num_patches", num_patches)
    if num_patches < 0:
        raise ValueError(f"num_patches must be 0 or more, got {num_patches}")
    if features.dim() < 3 or 0 in features.shape:
        raise ValueError(f"features must be [B, C, *spatial], not empty, got shape {list(features.shape)}")
    flat = widened(features.flatten(2))  # [B, C, N]
    with torch.autocast(features.device.type, enabled=False):
        with torch.no_grad():
            _, entropy = attention_statistics(flat.mT, flat.mT, scale=1.0)
            index = entropy.topk(min(num_patches, flat.shape[2]), largest=False).indices
        rows = (gather_patches(flat, index) @ flat).softmax(-1)
    return index, rows


class PatchSampleF(dclgan.PatchSampleF):
    """QS-Attn's sampling and projection network: random patches of three layers, routed ones of the others."""

    def forward(
        self,
        feats: Sequence[Tensor],  # each [B, C, *spatial]
        num_patches: int = 64,
        patch_ids: Sequence[Tensor | list] | None = None,
        attn_mats: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor], list[Tensor | list], list[Tensor]]:
        """Sample or attend, project and normalise.

        Args:
            feats: one feature map a layer.
            num_patches: S, patches an image and layer; 0: maps, as CUT's.
            patch_ids: ids of an earlier call (the keys'); None: drawn.
            attn_mats: attention of an earlier call; None: made of `feats`.

        Returns:
            (patches, ids, attention). For each layer: patches [B·S, nc]; ids [S], or [] where attended; attention
            rows [B, S, N], or a tensor of one zero where sampled at random.

        Raises:
            TypeError: arguments of another type.
            ValueError: arguments that do not fit together.
        """
        self._check(feats, num_patches, patch_ids)
        if attn_mats is not None and len(attn_mats) < len(feats):
            raise ValueError(f"attn_mats has {len(attn_mats)} layers, feats has {len(feats)}")
        if self.use_mlp and not self.mlp_init:
            self.create_mlp(feats)
        none = feats[0].new_zeros(1)
        attended = len(feats) if num_patches == 0 else FIRST_ATTENDED
        patches, ids = super().forward(feats[:attended], num_patches, patch_ids)
        rows = [none] * len(patches)
        for feat_id, feat in enumerate(feats[attended:], attended):
            if attn_mats is None:
                attention = select_queries(feat, num_patches)[1]
            else:
                attention = attn_mats[feat_id]
                self._check_attention(f"attn_mats[{feat_id}]", attention, feat.shape[0], feat.shape[2:].numel())
            with torch.autocast(feat.device.type, enabled=False):
                routed = attention @ feat.flatten(2).mT.to(attention.dtype)  # [B, S, C]
            routed = self._project_and_normalise(feat_id, routed.flatten(0, 1))
            routed.num_images = feat.shape[0]
            patches.append(routed)
            ids.append([])
            rows.append(attention)
        return patches, ids, rows

    @staticmethod
    def _check_attention(name: str, attention: Tensor, images: int, positions: int) -> None:
        check_tensor(name, attention, FLOATING)
        if attention.dim() != 3 or attention.shape[0] != images or attention.shape[2] != positions:
            raise ValueError(f"{name} must be [{images}, S, {positions}], got {list(attention.shape)}")
