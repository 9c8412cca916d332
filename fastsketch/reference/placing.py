"""Positions of one grid put into others that cover the same picture (docs/method.md section 4, [D])."""

from collections.abc import Sequence

import torch
from torch import Tensor


def place_positions(
    index: Tensor,  # [B, S] int64
    grid: Sequence[int],  # (h, w)
    sizes: Sequence[tuple[int, int]],  # (H, W) of each of L grids
    borders: Sequence[int],  # of each
    uniform: Tensor,  # [L, 2, B, S] float32 in [0, 1]
) -> list[Tensor]:  # L times [B, S] int64
    """In each grid a random cell of the block that the position's cell covers."""
    coordinates = (index // grid[1], index % grid[1])
    layers = []
    for size, border, both in zip(sizes, borders, uniform, strict=True):
        placed = []
        for place, total, side, u in zip(coordinates, grid, size, both, strict=True):
            cells = side - 2 * border
            first = place * cells // total
            block = ((place + 1) * cells // total - first).clamp_min(1)
            placed.append(first + torch.minimum((u * block).long(), block - 1) + border)
        layers.append(placed[0] * size[1] + placed[1])
    return layers
