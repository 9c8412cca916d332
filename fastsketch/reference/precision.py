"""The dtype of sums, and rows over their norm: shared by all that computes in plain PyTorch."""

import torch
from torch import Tensor

EPSILON = 1e-7
"""Added to the norm before dividing, as CUT does."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; all else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    """In the dtype it is computed in."""
    return x.to(accumulation_dtype(x.dtype))


def unit_rows(x: Tensor) -> Tensor:  # [..., D]
    """Each row over (its norm + `EPSILON`); a zero row stays zero and has a finite gradient."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + EPSILON)
