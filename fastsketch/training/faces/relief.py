"""The face as a surface: a height map of smooth bumps, and how light falls on it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fastsketch.training.faces.canvas import Canvas, smoothstep, soften
from fastsketch.training.faces.geometry import Geometry
from fastsketch.training.faces.traits import Traits


@dataclass(frozen=True)
class Relief:
    """Shading of the head, maps [H, W] float32 over the canvas it was computed on."""

    height: np.ndarray  # face units towards the viewer
    lambert: np.ndarray  # cosine between normal and light
    facing: np.ndarray  # cosine between normal and viewer
    gloss: np.ndarray  # specular highlight, 0..1
    occlusion: np.ndarray  # 1 in the open, less in hollows


def _bump(canvas: Canvas, x: float, y: float, sx: float, sy: float, height: float) -> np.ndarray:
    """An axis-aligned Gaussian; separable, so it costs one outer product."""
    row = np.exp(-0.5 * ((canvas.x - x) / sx) ** 2)
    column = np.exp(-0.5 * ((canvas.y - y) / sy) ** 2) * height
    return column * row


def _pair(canvas: Canvas, x: float, y: float, sx: float, sy: float, height: float) -> np.ndarray:
    """The same Gaussian on both sides of the face."""
    row = np.exp(-0.5 * ((canvas.x - x) / sx) ** 2) + np.exp(-0.5 * ((canvas.x + x) / sx) ** 2)
    column = np.exp(-0.5 * ((canvas.y - y) / sy) ** 2) * height
    return column * row


def head_height(canvas: Canvas, traits: Traits, geometry: Geometry) -> np.ndarray:
    """Return the head's height map [H, W] float32."""
    chin, ny, my = geometry.chin_y, geometry.nose_y, geometry.mouth_y
    age = np.clip((traits.age - 30) / 40, 0, 1)
    rows = canvas.y[:, 0]
    depth = np.interp(
        rows,
        [-78, -70, -55, -35, 0, 25, 50, 0.9 * chin, chin, chin + 8],
        [4, 20, 36, 46, 48, 47, 42, 34, 27, 20],
    ).astype(np.float32)[:, None]
    half = np.maximum(geometry.half_width(rows), 6.0).astype(np.float32)[:, None]
    s = np.minimum(np.abs(canvas.x) / (half * 1.02), 0.995)
    z = depth * np.sqrt(1.0 - s**2.3)
    z = soften(z, 2.5 * canvas.scale)

    gap = traits.eye_gap
    brow = 2.4 if traits.male else 1.2
    z += _pair(canvas, gap - 1.5, -1.0, 11.5, 7.0, -4.6)
    z += _pair(canvas, gap, 0.2, 8.4, 5.6, 3.4)
    z += _pair(canvas, gap - 2, -15.0, 13.0, 4.6, brow)
    z += _pair(canvas, gap * 0.45, -3.0, 3.2, 7.0, -1.6)
    z += _pair(canvas, 41.0, -26.0, 8.0, 15.0, -2.6)
    z += _pair(canvas, 27.5, 17.0 - traits.smile, 12.5, 11.0, 2.6 + 0.7 * traits.smile)
    z += _pair(canvas, 31.0, 38.0, 9.0, 12.0, -1.4 - 1.8 * age)
    z += _bump(canvas, 0, my - 2, 19.0, 13.5, 4.4)

    # nose: a ridge that widens and rises downward, cut off below the tip
    t = np.clip((canvas.y + 12) / (ny + 12), 0, 1)
    width = traits.nose_width * (4.2 + 2.3 * t)
    ridge = (1.4 + 8.6 * t**1.25) * np.exp(-0.5 * np.abs(canvas.x / width) ** 2.0)
    ridge *= smoothstep(-20, -4, canvas.y) * (1 - smoothstep(ny - 4.5, ny + 5.5, canvas.y))
    z += ridge
    z += _bump(canvas, 0, ny - 3.5, 5.0 * traits.nose_width, 4.8, 3.8)
    z += _pair(canvas, 8.0 * traits.nose_width, ny - 1.4, 3.2, 3.4, 3.6)

    full = traits.lip_fullness
    z += _bump(canvas, 0, my - 2.6, 9.0, 2.0, 1.0 * full)
    z += _bump(canvas, 0, my + 3.4, 8.8, 2.5, 2.1 * full)
    z += _bump(canvas, 0, my + 9.6, 9.5, 2.8, -2.0)
    z += _bump(canvas, 0, my - 9.0, 1.8, 3.6, -0.8)
    z += _pair(canvas, 19.5, my - 0.5, 3.2, 3.2, -1.5)
    z += _bump(canvas, 0, chin - 8.5, 11.5, 6.5, 4.6 * (1.1 if traits.male else 0.8))
    return z.astype(np.float32)


def shade_head(canvas: Canvas, traits: Traits, geometry: Geometry) -> Relief:
    """Light the head's height map with the face's own light."""
    z = soften(head_height(canvas, traits, geometry), 0.8 * canvas.scale)
    normal = normals(z, canvas.scale)
    light = traits.light.astype(np.float32)
    lambert = normal @ light
    half = light + np.array([0, 0, 1], np.float32)
    half = (half / np.linalg.norm(half)).astype(np.float32)
    gloss = np.clip(normal @ half, 0, 1) ** 22
    hollow = soften(z, 5.0 * canvas.scale) - z
    occlusion = 1.0 - np.clip(hollow * 0.16, -0.12, 0.45)
    return Relief(z, lambert, normal[..., 2], gloss, occlusion)


def normals(height: np.ndarray, scale: float) -> np.ndarray:
    """Return unit normals [H, W, 3] of a height map in face units, ``scale`` pixels a unit."""
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=scale / 8)
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=scale / 8)
    inverse = 1.0 / np.sqrt(dx * dx + dy * dy + 1.0)
    return np.stack([-dx * inverse, -dy * inverse, inverse], axis=-1)
