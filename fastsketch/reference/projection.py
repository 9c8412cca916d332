"""Two-layer projections of patches (docs/method.md section 1), and rows over their norm [L: CUT's netF, ECCV 2020]."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsketch.reference.precision import unit_rows


def project_patches(
    patches: Sequence[Tensor],  # L times [B, S, C_l]
    parameters: Sequence[Tensor],  # of each layer: [H, C_l], [H], [D, H], [D]
) -> Tensor:  # [L, B, S, D]
    """relu(x W1ᵀ + b1) W2ᵀ + b2 for each layer."""
    return torch.stack(_projected(patches, parameters))


def _projected(patches: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    projected = []
    for layer, x in enumerate(patches):
        weight1, bias1, weight2, bias2 = parameters[4 * layer : 4 * layer + 4]
        projected.append(F.linear(F.linear(x, weight1, bias1).relu(), weight2, bias2))
    return projected


def project_and_normalize(
    patches: Sequence[Tensor],  # L times [B, S, C_l]
    parameters: Sequence[Tensor],  # as above
) -> list[Tensor]:  # L times [B·S, D]
    """y / (‖y‖₂ + 1e-7), row by row, of the projected patches; a zero row stays zero and has a finite gradient."""
    return [unit_rows(y.flatten(0, 1)) for y in _projected(patches, parameters)]
