"""Random changes of the training pictures in whole numbers, so that every device makes the same ones."""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_AFFINE, MAX_JITTER = 0.5, 1.0
_ONE = 1 << 16
"""A pixel's side in the units of `Place.matrix`."""
_WEIGHT = 1 << 10
"""The sum of a row of `_cubic_weights`."""


@functools.cache
def _cubic_weights(device: torch.device) -> Tensor:
    """int32 [256, 4]: Keys' cubic convolution (1981, a = -½), of the four pixels about each 256th of a pixel."""
    x = np.abs(np.arange(256)[:, None] / 256 - np.arange(-1, 3))
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.rint(np.where(x < 1, near, far) * _WEIGHT).astype(np.int32)
    weights[np.arange(256), weights.argmax(1)] += _WEIGHT - weights.sum(1)
    return torch.from_numpy(weights).to(device)


class Place(NamedTuple):
    """Where a crop lies on its canvas."""

    top: int
    left: int
    mirrored: bool
    matrix: tuple[int, ...] | None = None
    """In place of the three: canvas row (a·i + b·j + c) / 2¹⁶ and column (d·i + e·j + f) / 2¹⁶ of a crop's pixel
    (i, j), as (a, b, c, d, e, f)."""


def draw_affine(random: np.random.Generator, strength: float, place: Place, size: tuple[int, int]) -> Place:
    """Turns, scales and shifts a crop about its own middle; as torchvision's RandomAffine, with one strength for all.

    Args:
        random: source of chance; four numbers are drawn.
        strength: s in 0..0.5: scale from e⁻ˢ to eˢ, turn up to s radians, shift up to s times the crop's
            height and width.
        place: of the crop, as yet without a matrix.
        size: (height, width) of the crop, in pixels.
    """
    log_scale, turn, down, right = random.uniform(-strength, strength, size=4)
    scale = math.exp(log_scale)
    cos, sin, way = scale * math.cos(turn), scale * math.sin(turn), -1.0 if place.mirrored else 1.0
    (height, width), (middle, centre) = size, ((side - 1) / 2 for side in size)
    rows, columns = (cos, -sin * way), (sin, cos * way)
    row = place.top + middle + down * height - (rows[0] * middle + rows[1] * centre)
    column = place.left + centre + right * width - (columns[0] * middle + columns[1] * centre)
    return place._replace(matrix=tuple(round(v * _ONE) for v in (*rows, row, *columns, column)))


def warp(canvases: Tensor, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic samples at `Place.matrix`, to 1/256 of a pixel; beyond the canvas its border goes on.

    Bilinear ones would soften a sketch's strokes (docs/tuning.md).

    Args:
        canvases: uint8 [B, C, H, W].
        matrices: int64 [B, 6], on the canvases' device.
        size: (h, w) of the crop, in pixels.

    Returns:
        uint8 [B, C, h, w], the same to the last bit on every device.
    """
    channels, height, width = canvases.shape[1:]
    pixels, table = canvases.flatten(2), _cubic_weights(canvases.device)
    line, column, near = (torch.arange(*ends, device=canvases.device) for ends in ((size[0],), (size[1],), (-1, 3)))

    def four(of_row: Tensor, of_column: Tensor, start: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Index and weight [B, 4, h·w] of the four pixels about each coordinate."""
        at = (of_row * line[:, None] + (of_column * column + start)).flatten(1)
        return ((at >> 16)[:, None] + near[:, None]).clamp(0, end - 1), table[at >> 8 & 255].movedim(-1, 1)

    a, b, c, d, e, f = matrices[:, :, None, None].unbind(1)
    (rows, down), (columns, across) = four(a, b, c, height), four(d, e, f, width)
    mixed = torch.zeros((), dtype=torch.int32, device=canvases.device)
    for row, weight in zip(rows.unbind(1), down.unbind(1), strict=True):
        places = (row[:, None] * width + columns).flatten(1)[:, None].expand(-1, channels, -1)
        values = pixels.gather(2, places).unflatten(2, (4, -1))
        mixed = mixed + (values * across[:, None]).sum(2, dtype=torch.int32) * weight[:, None]
    mixed = mixed + (_WEIGHT**2 >> 1) >> 20
    return mixed.clamp(0, 255).to(torch.uint8).unflatten(2, size)


def draw_tones(random: np.random.Generator, strength: float) -> np.ndarray:
    """A photo taken in another light: what each value of each channel becomes.

    Args:
        random: source of chance; six numbers are drawn.
        strength: s in 0..1: gamma from e⁻ˢ to eˢ, contrast about ½ from 1 - s/2 to 1 + s/2, brightness up to s/4 of the
            range more or less, white balance from 1 - s/4 to 1 + s/4 in each channel.

    Returns:
        uint8 [3, 256], none of its rows ever falling.
    """
    gamma, contrast, brightness, *white = random.uniform(-strength, strength, size=6)
    level = np.linspace(0.0, 1.0, 256) ** math.exp(gamma)
    level = ((level - 0.5) * (1 + contrast / 2) + 0.5) * (1 + np.array(white)[:, None] / 4) + brightness / 4
    return np.rint(level.clip(0.0, 1.0) * 255).astype(np.uint8)


def change_tones(photos: Tensor, tones: Tensor) -> Tensor:
    """Each pixel's value looked up in its channel's row.

    Args:
        photos: uint8 [B, 3, H, W].
        tones: uint8 [B, 3, 256], on the photos' device.

    Returns:
        uint8 [B, 3, H, W].
    """
    return tones.gather(2, photos.flatten(2).long()).view(photos.shape)
