"""CUT's data path [L: Park et al., ECCV 2020]: positions, patches, projection and loss.

What the public CUT code does: positions by np.random.permutation for each layer, shared
by the batch; features permuted and flattened, then indexed; MLP and normalisation; a product for the positives and one
for the logits, the diagonal masked, both put side by side into a cross-entropy; keys in a graph that is not used.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def draw_ids(features: Sequence[Tensor], num_patches: int) -> list[Tensor]:
    """Random positions [S] for each layer."""
    sizes = [layer.shape[2:].numel() for layer in features]
    ids = [np.random.permutation(size)[:num_patches] for size in sizes]  # noqa: NPY002
    return [torch.from_numpy(layer).to(features[0].device) for layer in ids]


def index_patches(
    layer: Tensor,  # [B, C, H, W]
    ids: Tensor,  # [S]
) -> Tensor:  # [B·S, C]
    """The feature vectors at these positions, the same of every image."""
    return layer.permute(0, 2, 3, 1).flatten(1, 2)[:, ids, :].flatten(0, 1)


def normalize(x: Tensor) -> Tensor:
    """x / (‖x‖ + 1e-7), row by row."""
    return x / (x.pow(2).sum(1, keepdim=True).pow(0.5) + 1e-7)


def project(features: Sequence[Tensor], ids: Sequence[Tensor], mlps: Sequence[nn.Module]) -> list[Tensor]:
    """Normalised patches of each layer, [B·S, D]."""
    return [normalize(mlp(index_patches(layer, i))) for layer, i, mlp in zip(features, ids, mlps, strict=True)]


def patch_nce(
    query: Tensor,  # [B·S, D]
    key: Tensor,  # [B·S, D]
    batch: int,
    temperature: float = 0.07,
) -> Tensor:  # [B·S]
    """Cross-entropy of each query's positive and all products, its own masked, against class 0."""
    key = key.detach()
    rows, dim = query.shape
    positive = torch.bmm(query.view(rows, 1, dim), key.view(rows, dim, 1)).view(rows, 1)
    query, key = query.view(batch, -1, dim), key.view(batch, -1, dim)
    samples = query.shape[1]
    negative = torch.bmm(query, key.transpose(2, 1))
    diagonal = torch.eye(samples, dtype=torch.bool, device=query.device)[None]
    negative.masked_fill_(diagonal, -10.0)
    logits = torch.cat((positive, negative.view(-1, samples)), dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(rows, dtype=torch.long, device=query.device), reduction="none")


def loss_path(
    query_features: Sequence[Tensor], key_features: Sequence[Tensor], ids: Sequence[Tensor], mlps: Sequence[nn.Module]
) -> Tensor:
    """The loss of all layers, from features to a scalar."""
    keys = project(key_features, ids, mlps)
    queries = project(query_features, ids, mlps)
    batch = query_features[0].shape[0]
    layers = [patch_nce(q, k, batch).mean() for q, k in zip(queries, keys, strict=True)]
    return sum(layers) / len(layers)
