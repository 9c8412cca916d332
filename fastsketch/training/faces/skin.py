"""Light and colour of the skin: head, neck and ears of the photo."""

from __future__ import annotations

import cv2
import numpy as np

from fastsketch.training.faces.canvas import box_of, mirror, soften, spline, value_noise
from fastsketch.training.faces.scene import Scene

_WRAP = np.array([0.55, 0.38, 0.30], np.float32)  # light bleeds furthest in red under skin


def mix(image: np.ndarray, colour: np.ndarray, cover: np.ndarray) -> None:
    """Lay ``colour`` ([3] or [H, W, 3]) over ``image`` [H, W, 3] where ``cover`` [H, W] says, in place."""
    area = box_of(cover)
    if colour.ndim == 3:
        colour = colour[area]
    image[area] += cover[area][..., None] * (colour - image[area])


def _lit(lambert: np.ndarray, occlusion: np.ndarray, reflect: np.ndarray) -> np.ndarray:
    """Diffuse light [h, w, 3] from a cosine map and an openness map [h, w]."""
    diffuse = np.clip((lambert[..., None] + _WRAP) / (1 + _WRAP), 0, 1)
    diffuse *= np.sqrt(np.sqrt(diffuse))
    open_sky = np.sqrt(occlusion)[..., None]
    return reflect * (diffuse + 0.26 * occlusion[..., None]) * open_sky


def _coarse_box(cover: np.ndarray) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The box of ``cover`` [H, W] on the relief's half-size canvas, and the same box at full size."""
    rows, columns = box_of(cover)
    half = slice(rows.start // 2, -(-rows.stop // 2)), slice(columns.start // 2, -(-columns.stop // 2))
    return half, tuple(slice(2 * part.start, 2 * part.stop) for part in half)


def _grid(scene: Scene, box: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    """Face coordinates x [1, w] and y [h, 1] of a box of the half-size canvas."""
    scale, centre = scene.canvas.scale / 2, scene.canvas.centre
    y, x = (np.arange(part.start, part.stop, dtype=np.float32) + 0.5 for part in box)
    return (x / scale - centre[0])[None], (y / scale - centre[1])[:, None]


def _shrunk(image: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    """The part of a full-size map that lies under a half-size box, averaged down."""
    rows, columns = box
    area = image[2 * rows.start : 2 * rows.stop, 2 * columns.start : 2 * columns.stop]
    size = (columns.stop - columns.start, rows.stop - rows.start)
    return cv2.resize(area, size, interpolation=cv2.INTER_AREA)


def paint_head(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> None:
    """Paint the bare head, without features, into ``image`` [H, W, 3]."""
    box, area = _coarse_box(scene.head)
    x, y = _grid(scene, box)
    shape = (y.size, x.size)
    traits, g, relief = scene.traits, scene.geometry, scene.relief

    def spot(cx: float, cy: float, sx: float, sy: float) -> np.ndarray:
        across = np.exp(-0.5 * ((np.abs(x) - cx) / sx) ** 2)
        return across * np.exp(-0.5 * ((y - cy) / sy) ** 2)

    flush = 0.75 * spot(27, 20, 9, 9) + 0.8 * spot(0, g.nose_y - 3, 6, 5)
    flush += 0.35 * spot(0, g.chin_y - 8, 10, 7)
    cell = scene.canvas.scale / 2
    flush += 0.25 * value_noise(rng, *shape, 14 * cell) + 0.12 * value_noise(rng, *shape, 4 * cell)
    if traits.freckles:
        where = 0.06 * (spot(20, 16, 11, 9) + spot(0, 18, 10, 6))
        dots = (rng.random(shape, np.float32) < where / cell**2).astype(np.float32)
        flush += 6.0 * soften(dots, 0.7 * cell) * cell
    tint = np.exp(flush[..., None] * np.array([-0.02, -0.17, -0.15], np.float32))

    facing = relief.facing[box]
    body = _lit(relief.lambert[box], relief.occlusion[box], traits.skin)
    dim = (0.72 + 0.28 * np.sqrt(facing)) * (1 - 0.42 * _shrunk(scene.hair_shadow, box))
    sheen = 0.13 * relief.gloss[box] * (1 + 0.3 * value_noise(rng, *shape, 3 * cell))
    skin = _display(body * tint * dim[..., None] + sheen[..., None])
    mix(image[area], cv2.resize(skin, (2 * shape[1], 2 * shape[0])), scene.head[area])


def paint_neck(image: np.ndarray, scene: Scene) -> None:
    """Paint the neck into ``image`` [H, W, 3]."""
    # the head hides the neck's upper part
    cover = scene.neck * (1 - scene.head)
    box, area = _coarse_box(cover)
    x, y = _grid(scene, box)
    light, reach = scene.traits.light, 36.0
    front = np.sqrt(np.clip(1 - (x / reach) ** 2, 0.03, 1))
    lambert = np.clip(x / reach, -1, 1) * light[0] - 0.2 * light[1] + front * light[2]
    tendon = np.exp(-0.5 * ((np.abs(x) - (20 - 0.36 * (y - 70))) / 2.6) ** 2)
    tendon *= np.clip((y - 78) / 16, 0, 1)
    hollow = np.exp(-0.5 * (x / 5) ** 2 - 0.5 * ((y - 103) / 4.5) ** 2)
    occlusion = 1 + 0.07 * tendon - 0.22 * hollow
    shadow = _shrunk(scene.chin_shadow, box)[..., None] * np.array([0.62, 0.70, 0.72], np.float32)
    skin = _display(_lit(lambert + 0 * y, occlusion, scene.traits.skin * 0.93) * (1 - shadow))
    size = (2 * skin.shape[1], 2 * skin.shape[0])
    mix(image[area], cv2.resize(skin, size), scene.neck[area])


def _display(linear: np.ndarray) -> np.ndarray:
    """Linear light to display values, highlights rolled off."""
    linear = np.maximum(linear, 1e-4)
    return np.minimum(cv2.pow(linear / (1 + 0.12 * linear), 1 / 2.2), 1.0)


def paint_ears(image: np.ndarray, scene: Scene) -> None:
    """Paint both ears into ``image`` [H, W, 3]."""
    canvas, w = scene.canvas, float(scene.geometry.half_width(np.array(0.0)))
    flushed = scene.traits.skin * np.array([1.0, 0.88, 0.86], np.float32)
    for side, outline in zip((-1, 1), scene.geometry.ears, strict=True):
        lambert = np.clip(0.62 + 0.5 * side * scene.traits.light[0], 0.2, 1)
        colour = _display(_lit(np.full((1, 1), lambert, np.float32), np.full((1, 1), 0.9, np.float32), flushed))
        canvas.fill(outline).paint(image, colour[0, 0])
        rim = mirror(spline([(w + 0.5, -7), (w + 4, -9), (w + 5.6, -4), (w + 5, 4), (w + 2.5, 12)]), side)
        canvas.lines([rim], 3, blur=0.7).limited(scene.ears).multiply(image, (0.74, 0.64, 0.62))
        hole = mirror(spline([(w - 1, -2), (w + 2.4, -1), (w + 2.2, 5), (w - 1, 8)], closed=True), side)
        canvas.fill(hole, blur=1.2).limited(scene.ears).multiply(image, (0.62, 0.5, 0.48))
    edge = np.concatenate([scene.geometry.head, scene.geometry.head[:1]])
    canvas.lines([edge], 3, blur=1.4).limited(scene.ears).multiply(image, (0.75, 0.68, 0.66))
