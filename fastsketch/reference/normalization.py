"""Rows divided by their norm [L: CUT's Normalize]."""

import torch
from torch import Tensor

from fastsketch.reference.patch_nce import EPSILON


def normalize_layers(x: Tensor) -> list[Tensor]:  # [L, N, D] -> L times [N, D]
    """x / (‖x‖₂ + 1e-7), row by row; a zero row stays zero and has a finite gradient."""
    return [rows / (torch.linalg.vector_norm(rows, dim=-1, keepdim=True) + EPSILON) for rows in x.unbind()]
