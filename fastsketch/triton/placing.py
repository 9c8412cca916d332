"""Positions drawn on one grid, placed on the grids of several layers: a random cell of the block that each covers."""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastsketch.triton import configs, launch
from fastsketch.triton.gather import MOST_LAYERS


class Place(NamedTuple):
    """One layer: where its positions go, and its grid."""

    placed: Tensor  # [B, S] out, contiguous
    height: int
    width: int
    border: int


@triton.jit
def _side(place, total, size, border, u):
    """A coordinate [N] of a grid of `total` cells on a side of `size`, its border included, by uniforms u [N]."""
    cells = size - 2 * border
    first = place * cells // total
    last = tl.maximum((place + 1) * cells // total, first + 1)
    cell = first + (u * (last - first).to(tl.float32)).to(tl.int64)
    return tl.minimum(cell, last - 1) + border


@triton.jit
def place_kernel(
    places,  # a tuple of `Place`
    index,  # [B, S]
    uniform,  # [L, 2, B, S], contiguous
    rows,
    columns,
    images,
    samples,
    index_stride_b,
    index_stride_s,
    BLOCK_M: tl.constexpr,
):
    """BLOCK_M positions of one layer a program."""
    total = tl.cast(images, tl.int64) * samples  # of one image, `images` is a constant
    blocks = tl.cdiv(total, BLOCK_M)
    layer = tl.program_id(0) // blocks
    entry = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = entry < total
    pointers = index + entry // samples * index_stride_b + entry % samples * index_stride_s
    position = tl.load(pointers, mask=inside, other=0)
    uniform += layer * 2 * total + entry
    u = tl.load(uniform, mask=inside, other=0.0)
    v = tl.load(uniform + total, mask=inside, other=0.0)
    for number in tl.static_range(len(places)):
        if layer == number:
            place = places[number]
            row = _side(position // columns, rows, place.height, place.border, u)
            column = _side(position % columns, columns, place.width, place.border, v)
            tl.store(place.placed + entry, row * place.width + column, mask=inside)


def place_positions(
    index: Tensor,  # [B, S] int64 flat positions on `grid`
    grid: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    borders: Sequence[int],
    uniform: Tensor,  # [L, 2, B, S] float32 in [0, 1]
) -> list[Tensor]:  # L tensors int64 [B, S]
    """See `fastsketch.reference`; `MOST_LAYERS` layers a launch."""
    places = [Place(index.new_empty(index.shape), *size, border) for size, border in zip(sizes, borders, strict=True)]
    if not index.numel():
        return [place.placed for place in places]
    uniform = uniform.contiguous()
    for start in range(0, len(places), MOST_LAYERS):
        some = tuple(places[start : start + MOST_LAYERS])
        launch.run(
            place_kernel,
            configs.placing_tiles(),
            lambda tile, some=some: len(some) * launch.blocks(index.numel(), tile.rows),
            (some, index, uniform[start : start + MOST_LAYERS], *grid, *index.shape, *index.stride()),
            {},
        )
    return [place.placed for place in places]
