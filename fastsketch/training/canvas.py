"""What pictures are padded to, in training and to be drawn: sizes alone; `fastsketch.training.images` pads."""

from collections.abc import Iterable
from typing import Literal

Canvas = Literal["square", "tight"]
"""square: of side `image_size`; tight: the smallest rectangle that holds all pictures of a set."""

SMALLEST_SIDE = 32
"""Of a tight canvas, in pixels: a run cannot be trained on less."""


def frame_of(sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """(height, width) of the smallest rectangle, of `SMALLEST_SIDE` at least, for pictures of these (width, height)."""
    widths, heights = zip(*sizes, strict=True)
    return max(*heights, SMALLEST_SIDE), max(*widths, SMALLEST_SIDE)


def tight_canvas(frame: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of what pictures are padded to, in training on a tight canvas: multiples of 4."""
    return _round_up(frame[0]), _round_up(frame[1])


def in_proportion(size: tuple[int, int], frame: tuple[int, int] | None) -> tuple[int, int]:
    """The smallest canvas in a frame's proportions that holds a picture, its sides multiples of 4.

    Args:
        size: (height, width) of the picture, pixels.
        frame: (height, width), of any size; None: a square.
    """
    height, width = size
    tall, wide = frame or (1, 1)
    if height * wide >= width * tall:
        width = -(-height * wide // tall)
    else:
        height = -(-width * tall // wide)
    return _round_up(height), _round_up(width)


def _round_up(side: int) -> int:
    """To a multiple of 4: the generator halves twice."""
    return -(-side // 4) * 4
