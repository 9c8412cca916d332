"""fastsketch::place_positions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsketch import _backend
from fastsketch._checks import check_values
from fastsketch.ops.eager import nothing_looks_on


def _check(index: Tensor, grid: Sequence[int], uniform: Tensor) -> None:
    if _backend.checks_values(index):
        cells = grid[0] * grid[1]
        check_values("index", index, f"lie in [0, {cells}), the cells of grid;", lambda value: 0 <= value < cells)
        check_values("uniform", uniform, "lie in [0, 1],", lambda value: 0 <= value <= 1)


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
