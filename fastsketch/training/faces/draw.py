"""Draw one procedural face: photo, pencil sketch and person mask."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fastsketch.training.faces.canvas import Canvas, smoothstep, soften
from fastsketch.training.faces.photo import paint_photo
from fastsketch.training.faces.scene import build_scene
from fastsketch.training.faces.sketch import draw_sketch, finish
from fastsketch.training.faces.traits import Traits

# Counts up whenever the same seed gives other pictures; stored beside a written set.
VERSION = 1

_SUPERSAMPLE = 2.0  # pixels drawn for one face unit, a 250-row picture's pixel


@dataclass(frozen=True)
class Face:
    """One procedural face.

    Attributes:
        photo: uint8 [H, W, 3], RGB, whitened background.
        sketch: uint8 [H, W], the pencil portrait of the same face, aligned pixel for pixel.
        mask: uint8 [H, W], 255 on the person and 0 on the background.
    """

    photo: np.ndarray
    sketch: np.ndarray
    mask: np.ndarray


def check_seed(seed: int) -> None:
    """Raise TypeError or ValueError unless ``seed`` is an integer >= 0."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed: expected an integer, got {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"seed: expected an integer >= 0, got {seed}")


def check_size(height: int, width: int) -> None:
    """Raise TypeError or ValueError unless both are integers from 32 to 2048 in a ratio of at most 3."""
    for name, value in (("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
        if not 32 <= value <= 2048:
            raise ValueError(f"{name}: expected 32 to 2048 pixels, got {value}")
    if max(height, width) > 3 * min(height, width):
        raise ValueError(f"height, width: expected a ratio of at most 3, got {height} x {width}")


def draw_face(seed: int, height: int = 250, width: int = 200) -> Face:
    """Draw a frontal head-and-shoulders portrait, its pencil sketch and its mask.

    The picture depends on the arguments only: the same seed gives the same bytes on every call.

    Args:
        seed: Any integer >= 0.
        height: Pixels, 32 to 2048.
        width: Pixels, 32 to 2048, within a factor 3 of ``height``.

    Returns:
        The :class:`Face`.

    Raises:
        TypeError: an argument is no integer.
        ValueError: an argument is out of range.
    """
    check_seed(seed)
    check_size(height, width)
    layout, paint, pencil = (np.random.default_rng([int(seed), i]) for i in range(3))
    unit = min(height / 250, width / 200)
    scale = max(_SUPERSAMPLE, _SUPERSAMPLE * unit)
    rows, columns = (2 * round(size / unit * scale / 2) for size in (height, width))
    # extra height goes one third above the head, two thirds below
    centre = (columns / scale / 2, 108.0 + (rows / scale - 250) / 3)
    canvas = Canvas(rows, columns, scale, centre)

    scene = build_scene(canvas, layout)
    photo, graphite, person = _posed(
        canvas, scene.traits, [paint_photo(scene, paint), draw_sketch(scene, pencil), scene.person]
    )
    size = (width, height)
    photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    photo = soften(photo, 0.42 * unit)  # a lens is a little soft
    photo += 0.007 * paint.standard_normal(photo.shape, np.float32)
    graphite = cv2.resize(graphite, size, interpolation=cv2.INTER_AREA)
    person = cv2.resize(person, size, interpolation=cv2.INTER_AREA)
    sketch = finish(np.clip(graphite, 0, 1), pencil)
    return Face(_bytes(photo), _bytes(sketch), np.where(person >= 0.5, 255, 0).astype(np.uint8))


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _posed(canvas: Canvas, traits: Traits, images: list[np.ndarray]) -> list[np.ndarray]:
    """Turn, tilt and scale the head on its shoulders by one smooth warp of all pictures."""
    # the warp is smooth: every fourth pixel says enough
    rows, columns = -(-canvas.height // 4) + 1, -(-canvas.width // 4) + 1
    x = (4 * np.arange(columns, dtype=np.float32) / canvas.scale - canvas.centre[0])[None]
    y = (4 * np.arange(rows, dtype=np.float32) / canvas.scale - canvas.centre[1])[:, None]
    head = 1 - smoothstep(62.0, 118.0, y)
    angle = np.deg2rad(traits.roll) * head
    # the head turns about the neck's base
    px, py = x, y - 85.0
    sx = px * np.cos(angle) + py * np.sin(angle)
    sy = py * np.cos(angle) - px * np.sin(angle) + 85.0
    middle = np.exp(-0.5 * (sx / 26.0) ** 2) * np.exp(-0.5 * ((sy - 12) / 48.0) ** 2)
    size = 1 + (traits.size - 1) * head
    sx = (sx - traits.yaw * middle - traits.offset[0] * head) / size
    sy = (sy - traits.pitch * middle - traits.offset[1] * head - 85.0) / size + 85.0
    maps = [(sx + canvas.centre[0]) * canvas.scale, (sy + canvas.centre[1]) * canvas.scale]
    # the coarse grid's first pixel lies on the fine one's first: enlarge about that corner
    grow = np.array([[4.0, 0, 0], [0, 4.0, 0]])
    size = (canvas.width, canvas.height)
    fine = [cv2.warpAffine(m.astype(np.float32), grow, size, flags=cv2.INTER_LINEAR) for m in maps]
    fixed = cv2.convertMaps(*fine, cv2.CV_16SC2)
    return [cv2.remap(image, *fixed, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for image in images]
