"""fastsketch::place_positions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsketch import _backend
from fastsketch.ops.eager import nothing_looks_on


def _check(index: Tensor, grid: Sequence[int], uniform: Tensor) -> None:
    if not index.numel() or not _backend.checks_values(index):
        return
    low, high = (int(x) for x in index.aminmax())
    if low < 0 or high >= grid[0] * grid[1]:
        raise ValueError(f"index must lie in [0, {grid[0] * grid[1]}), the cells of grid; got {low} to {high}")
    if not uniform.numel():
        return
    low, high = (float(x) for x in uniform.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"uniform must lie in [0, 1], got {low} to {high}")


def _place_positions(
    index: Tensor, grid: Sequence[int], sizes: Sequence[int], borders: Sequence[int], uniform: Tensor
) -> list[Tensor]:
    """Dispatch; see `fastsketch.reference.placing`. Here sizes stand flat, as an operator's schema wants them."""
    _check(index, grid, uniform)
    pairs = list(zip(sizes[::2], sizes[1::2], strict=True))
    return _backend.kernel("place_positions", index.device)(index, grid, pairs, borders, uniform)


place_positions = torch.library.custom_op("fastsketch::place_positions", _place_positions, mutates_args=())


@place_positions.register_fake
def _(index, grid, sizes, borders, uniform):
    return [index.new_empty(index.shape) for _ in borders]


def place(index: Tensor, grid: Sequence[int], sizes: Sequence[int], borders: Sequence[int], uniform: Tensor):
    """`place_positions`, straight to the kernel where nothing looks on."""
    return (_place_positions if nothing_looks_on(index, uniform) else place_positions)(
        index, grid, sizes, borders, uniform
    )
