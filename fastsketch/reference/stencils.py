"""Padding and blurs as matrices: each maps rows, then columns, by one matrix; its gradient by the transposed one.

Not among the operators' kernels: `fastsketch.nn` goes to the framework where it has no kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("reflect 1", "reflect 2", "reflect 3", "blur_downsample", "blur_upsample")
"""reflect N: N more cells on each side, mirrored [L: `nn.ReflectionPad2d`]; the blurs of `fastsketch.nn.blur`."""


def matrix(kind: str, size: int) -> Tensor:
    """What a kind does to a row of `size` cells: float64 [cells after it, size], found by doing it to unit vectors.

    Args:
        kind: one of `KINDS`.
        size: at least 2, and more than the cells that are mirrored.
    """
    unit = torch.eye(size, dtype=torch.float64, device="cpu")[:, None]  # [vectors, 1, cells]
    if kind.startswith("reflect"):
        border = int(kind.split()[1])
        after = F.pad(unit, (border, border), mode="reflect")
    elif kind == "blur_downsample":
        row = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64, device="cpu") / 4
        after = F.conv1d(F.pad(unit, (1, 1), mode="reflect"), row[None, None], stride=2)
    else:
        row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64, device="cpu") / 4
        padded = F.pad(unit, (1, 1), mode="replicate")
        after = F.conv_transpose1d(padded, row[None, None], stride=2, padding=2)[..., 1:-1]
    return after[:, 0].T


def apply(kind: str, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H', W']
    """Do it to maps."""
    rows, columns = (matrix(kind, size).to(x) for size in x.shape[2:])
    return rows @ x @ columns.T


def gradient(kind: str, grad_output: Tensor, height: int, width: int) -> Tensor:  # [B, C, H', W'] -> [B, C, H, W]
    """Gradient of the maps that went in."""
    rows, columns = (matrix(kind, size).to(grad_output) for size in (height, width))
    return rows.T @ grad_output @ columns
