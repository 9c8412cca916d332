"""Raster helpers of the procedural faces: splines, soft fills, strokes and noise.

Everything is drawn in *face units*: the origin lies midway between the pupils, x points right, y down, and one
unit is one pixel of a 200x250 portrait. A :class:`Canvas` carries the map from face units to its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

# Fractional bits of the fixed-point coordinates that OpenCV's drawing functions take.
_SHIFT = 5


def spline(points: Sequence[Sequence[float]], closed: bool = False, samples: int = 8) -> np.ndarray:
    """Return the uniform Catmull-Rom curve through ``points`` ([P, 2]) as [Q, 2] float64."""
    p = np.asarray(points, dtype=np.float64)
    before, after = (p[-1:], p[:2]) if closed else (2 * p[:1] - p[1:2], 2 * p[-1:] - p[-2:-1])
    p = np.concatenate([before, p, after])
    t = np.linspace(0.0, 1.0, samples, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-2:-1]])


def resample(curve: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` points at equal arc length along ``curve`` ([Q, 2] -> [count, 2])."""
    return part(curve, 0.0, 1.0, count)


def part(curve: np.ndarray, start: float, stop: float, count: int = 24) -> np.ndarray:
    """Return the stretch of ``curve`` between two fractions of its length."""
    length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
    at = np.linspace(start * length[-1], stop * length[-1], count)
    return np.stack([np.interp(at, length, curve[:, i]) for i in range(2)], axis=1)


def wobble(curve: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Return ``curve`` displaced by a slow random drift of about ``amount`` units: a hand's unsteadiness."""
    knots = max(3, len(curve) // 6)
    drift = rng.normal(0.0, amount, size=(knots, 2))
    at = np.linspace(0, knots - 1, len(curve))
    return curve + np.stack([np.interp(at, np.arange(knots), drift[:, i]) for i in range(2)], 1)


def shifted(points: np.ndarray, x: float, y: float) -> np.ndarray:
    """Return ``points`` [..., 2] moved by (x, y)."""
    return points + np.array([x, y])


def mirror(curve: np.ndarray, side: int) -> np.ndarray:
    """Return ``curve`` as it stands for the image's right (+1), or reflected for its left (-1)."""
    return curve * np.array([side, 1.0])


@dataclass(frozen=True)
class Patch:
    """A coverage mask [h, w] float32 in [0, 1] whose first pixel lies at (``top``, ``left``) of a canvas."""

    mask: np.ndarray
    top: int
    left: int

    def paint(self, image: np.ndarray, colour: object, opacity: float = 1.0) -> None:
        """Mix ``colour`` (a number, [3], or an image like ``image``) into ``image`` ([H, W(, 3)]), in place."""
        h, w = self.mask.shape
        area = image[self.top : self.top + h, self.left : self.left + w]
        alpha = self.mask * opacity
        value = np.asarray(colour, dtype=np.float32)
        if image.ndim == 3:
            alpha = alpha[..., None]
        if value.shape[:2] == image.shape[:2]:
            value = value[self.top : self.top + h, self.left : self.left + w]
        area += alpha * (value - area)

    def multiply(self, image: np.ndarray, factor: object, opacity: float = 1.0) -> None:
        """Multiply ``image`` by ``factor`` (a number or [3]) where the mask is set, in place."""
        h, w = self.mask.shape
        area = image[self.top : self.top + h, self.left : self.left + w]
        alpha = self.mask * opacity
        if image.ndim == 3:
            alpha = alpha[..., None]
        area *= 1.0 + alpha * (np.asarray(factor, dtype=np.float32) - 1.0)

    def limited(self, coverage: np.ndarray) -> Patch:
        """Return the patch cut to ``coverage`` ([H, W] float32)."""
        h, w = self.mask.shape
        area = coverage[self.top : self.top + h, self.left : self.left + w]
        return Patch(self.mask * area, self.top, self.left)


class Canvas:
    """A raster of ``height`` x ``width`` pixels, ``scale`` pixels a face unit, that shows the origin at ``centre``."""

    def __init__(self, height: int, width: int, scale: float, centre: tuple[float, float]) -> None:
        self.height, self.width, self.scale, self.centre = height, width, scale, centre
        one = 1 << _SHIFT
        self._gain = scale * one
        self._shift = (np.array(centre) * scale - 0.5) * one
        self.x = ((np.arange(width, dtype=np.float32) + 0.5) / scale - centre[0])[None, :]
        self.y = ((np.arange(height, dtype=np.float32) + 0.5) / scale - centre[1])[:, None]

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Return ``points`` [..., 2] (face units, x then y) in OpenCV's fixed-point pixel coordinates (int32)."""
        return np.rint(points * self._gain + self._shift).astype(np.int32)

    def fill(self, polygon: np.ndarray, blur: float = 0.0) -> Patch:
        """Return the coverage of a closed polygon [Q, 2], its edge softened by ``blur`` units (a Gaussian's sigma)."""
        return self._patch([polygon], blur, None)

    def lines(self, curves: Sequence[np.ndarray], thickness: int = 1, blur: float = 0.0) -> Patch:
        """Return the coverage of open curves, ``thickness`` in pixels, softened by ``blur`` units."""
        return self._patch(curves, blur, thickness)

    def _patch(self, curves: Sequence[np.ndarray], blur: float, thickness: int | None) -> Patch:
        fixed = [self.pixels(curve) for curve in curves]
        everything = fixed[0] if len(fixed) == 1 else np.concatenate(fixed)
        x, y, w, h = cv2.boundingRect(everything)
        margin = int(np.ceil(3 * blur * self.scale)) + 2 + (thickness or 0)
        left, right = _span(x, w, margin, self.width)
        top, bottom = _span(y, h, margin, self.height)
        layer = np.zeros((bottom - top, right - left), np.uint8)
        corner = np.array((left << _SHIFT, top << _SHIFT), np.int32)
        fixed = [curve - corner for curve in fixed]
        if thickness is None:
            cv2.fillPoly(layer, fixed, 255, cv2.LINE_AA, _SHIFT)
        else:
            cv2.polylines(layer, fixed, False, 255, thickness, cv2.LINE_AA, _SHIFT)
        mask = layer * np.float32(1 / 255)
        if blur > 0:
            mask = soften(mask, blur * self.scale)
        return Patch(mask, top, left)

    def full(self, patch: Patch) -> np.ndarray:
        """Return ``patch`` laid out over the whole canvas ([H, W] float32)."""
        image = np.zeros((self.height, self.width), np.float32)
        h, w = patch.mask.shape
        image[patch.top : patch.top + h, patch.left : patch.left + w] = patch.mask
        return image

    def draw_strands(self, layer: np.ndarray, strands: np.ndarray, value: object, thickness: int) -> None:
        """Draw strands [N, M, 2] into a uint8 ``layer`` in one value, in place."""
        if len(strands):
            cv2.polylines(layer, list(self.pixels(strands)), False, value, thickness, cv2.LINE_AA, _SHIFT)


def _span(start: int, length: int, margin: int, size: int) -> tuple[int, int]:
    """Whole pixels around a fixed-point interval, at least one, inside [0, ``size``)."""
    low = min(max((start >> _SHIFT) - margin, 0), size - 1)
    high = min(((start + length) >> _SHIFT) + margin + 2, size)
    return low, max(high, low + 1)


def soften(image: np.ndarray, sigma: float) -> np.ndarray:
    """Return a Gaussian blur of ``image`` (sigma in pixels); wide ones are computed on a reduced copy."""
    if sigma < 0.3:
        return image
    if sigma > 6 and min(image.shape[:2]) > 32:
        h, w = image.shape[:2]
        small = cv2.resize(image, (w // 4, h // 4), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / 4, borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR)
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def value_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Return smooth noise [height, width] float32 in about [-1, 1] with features ``cell`` pixels wide."""
    rows, columns = max(2, round(height / cell)), max(2, round(width / cell))
    grid = rng.uniform(-1.0, 1.0, size=(rows, columns)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def box_of(cover: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns outside which ``cover`` [H, W] is zero."""
    x, y, w, h = cv2.boundingRect((cover > 0).view(np.uint8))
    return slice(y, y + h), slice(x, x + w)


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """Return 0 below ``low``, 1 above ``high`` and a cubic between."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
