"""Two-layer projections of patches (METHOD.md section 1) [L: CUT's netF, ECCV 2020]."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def project_patches(
    patches: Sequence[Tensor],  # L times [B, S, C_l]
    parameters: Sequence[Tensor],  # of each layer: [H, C_l], [H], [D, H], [D]
) -> Tensor:  # [L, B, S, D]
    """relu(x W1ᵀ + b1) W2ᵀ + b2 for each layer."""
    projected = []
    for layer, x in enumerate(patches):
        weight1, bias1, weight2, bias2 = parameters[4 * layer : 4 * layer + 4]
        projected.append(F.linear(F.linear(x, weight1, bias1).relu(), weight2, bias2))
    return torch.stack(projected)
