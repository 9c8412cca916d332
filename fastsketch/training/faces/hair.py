"""Hair as strands: sheets of guide curves, the strands between them, and fur (brows, beards)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastsketch.training.faces.canvas import Canvas, mirror, resample, soften, spline
from fastsketch.training.faces.geometry import Geometry
from fastsketch.training.faces.traits import Traits

_POINTS = 16  # points a strand


@dataclass(frozen=True)
class Sheet:
    """A surface of hair spanned by guide curves [G, M, 2], each from root to tip."""

    guides: np.ndarray
    count: int
    length: tuple[float, float] = (0.85, 1.0)  # stretch of a guide that one strand covers
    wave: float = 0.0
    ragged: float = 0.6
    shine: float = 0.3  # where along the guides the highlight lies
    bare: int = 0  # guide points at the root that strands alone cover, for a soft hairline


@dataclass(frozen=True)
class HairLayer:
    """Rasterised hair [H, W]: coverage, strand brightness, highlight (all 0..1), and the strands themselves."""

    cover: np.ndarray
    texture: np.ndarray
    shine: np.ndarray
    strands: np.ndarray  # [N, M, 2]
    tone: np.ndarray  # [N], a strand's brightness


def _loft(front: list, back: list, count: int = 7) -> np.ndarray:
    a, b = (resample(spline(curve), _POINTS) for curve in (front, back))
    s = np.linspace(0, 1, count)[:, None, None]
    return a + s * (b - a)


def _radial(roots: np.ndarray, tips: np.ndarray, tilt: float, lift: float) -> np.ndarray:
    """Guides from a hairline [Q, 2] to a silhouette [Q, 2], both left to right, bulging by ``lift``."""
    count = 17
    a = resample(roots, count)
    fine = resample(tips, 201)
    at = np.linspace(0, 1, count)
    at = np.clip(at + tilt * np.sin(np.pi * at), 0, 1)
    b = fine[(at * 200).round().astype(int)]
    t = np.linspace(0, 1, _POINTS)[None, :, None]
    guides = a[:, None] + t * (b - a)[:, None]
    guides[..., 1] -= lift * np.sin(np.pi * t[..., 0]) * (1 - np.abs(2 * at - 1))[:, None]
    return guides


def _hairline(traits: Traits, geometry: Geometry, down: float) -> np.ndarray:
    w, h = geometry.half_width(np.array(-8.0)), traits.hairline
    recess = max(0.0, -(h + 50)) * 0.6 if traits.male else -2.0
    right = [(0.30 * w, h + 0.2), (0.58 * w, h + 4 - recess), (0.76 * w, h + 15 - recess * 0.5), (0.83 * w, -23),
             (0.93 * w, -12), (0.965 * w, down)]  # fmt: skip
    left = [(-x, y) for x, y in right[::-1]]
    return spline([*left, (0, h), *right])


def _silhouette(w: float, v: float, down: float) -> np.ndarray:
    right = [(0.5 * w, -73.5 - v), (0.86 * w + 0.5 * v, -58 - 0.75 * v), (1.0 * w + 0.8 * v, -33 - 0.3 * v),
             (1.02 * w + 0.85 * v, -10), (1.0 * w + 0.6 * v, down)]  # fmt: skip
    left = [(-x, y) for x, y in right[::-1]]
    return spline([*left, (0, -77.5 - v), *right])


def _parted(traits: Traits, w: float, v: float, side: int, px: float, lower: list, lower_back: list) -> np.ndarray:
    """Hair that falls from the parting to one side: a loft between hairline and silhouette."""
    h = traits.hairline
    start = px * side
    front = [(start, h - 1)]
    if start < 12:
        front += [(0.5 * (start + 24), h - 0.5)]
    front += [(max(28.0, start + 6), h + 7), (0.83 * w, -31), (0.92 * w, -13)]
    back = [(0.8 * start, -77.0 - v), (0.5 * (0.8 * start + 0.62 * w), -77.5 - v), (0.64 * w + 0.3 * v, -70 - 0.9 * v),
            (0.88 * w + 0.55 * v, -56 - 0.7 * v), (1.0 * w + 0.8 * v, -33 - 0.3 * v),
            (1.02 * w + 0.85 * v, -8)]  # fmt: skip
    return mirror(_loft(front + lower, back + lower_back), side)


def build_sheets(traits: Traits, geometry: Geometry) -> tuple[list[Sheet], list[Sheet]]:
    """Return the sheets (behind the neck, in front of the face) of the face's hair style."""
    w = float(geometry.half_width(np.array(-8.0)))
    style, v = traits.hair_style, 4.0 + 8.0 * traits.hair_volume
    px, chin = traits.parting, geometry.chin_y
    both = (-1, 1)
    if style == "bald":
        sheets = []
        for side in both:
            front = [(0.84 * w, -30), (0.915 * w, -16), (0.955 * w, -4), (0.965 * w, 6)]
            back = [(0.985 * w, -36), (1.03 * w + v * 0.2, -22), (1.04 * w + v * 0.2, -8), (1.0 * w, 2)]
            sheets.append(Sheet(mirror(_loft(front, back), side), 260, (0.2, 0.45), ragged=0.7))
        return [], sheets
    if style == "crop":
        v = 1.5 + 2.5 * traits.hair_volume
        guides = _radial(_hairline(traits, geometry, 7), _silhouette(w, v, 2), 0.04 * np.sign(px), 1.0)
        return [], [Sheet(guides, 1300, (0.14, 0.34), ragged=0.9, shine=0.55, bare=1)]
    if style == "quiff":
        guides = _radial(_hairline(traits, geometry, 7), _silhouette(w, v, 2), 0.10 * np.sign(px), 5.0)
        return [], [Sheet(guides, 850, (0.45, 1.0), wave=0.8, ragged=1.1, shine=0.5, bare=2)]
    if style == "pulled":
        v *= 0.6
        guides = _radial(_hairline(traits, geometry, 0), _silhouette(w, v, -4), 0.02 * np.sign(px), 3.0)
        sheets = [Sheet(guides, 700, (0.7, 1.0), ragged=0.5, shine=0.5, bare=1)]
        bun = []
        if traits.hair_volume > 0.5:
            t = np.linspace(0, 2 * np.pi, 17)[:, None]
            ring = np.concatenate([0.35 * px + 22 * np.cos(t), -80 - v + 17 * np.sin(t)], 1)
            inner = 0.2 * (ring - ring.mean(0)) + ring.mean(0) + (0, 5)
            bun = [Sheet(np.linspace(inner, ring, _POINTS).transpose(1, 0, 2), 320, (0.6, 0.99), wave=1.0)]
        return bun, sheets
    if style == "short":
        lower, lower_back = [(0.965 * w, 5)], [(1.0 * w + 0.5 * v, 1)]
        return [], [
            Sheet(_parted(traits, w, v, s, px, lower, lower_back), 620, (0.2, 0.5), wave=0.7, ragged=1.2)
            for s in both
        ]  # fmt: skip
    if style == "curly":
        low = 4.0 if traits.male else 22 + 26 * traits.hair_volume
        v = (6 if traits.male else 13) + 11 * traits.hair_volume
        hairline = _hairline(traits, geometry, 4)
        if not traits.male:
            hairline = np.concatenate([[(-0.9 * w, low + 5)], hairline, [(0.9 * w, low + 5)]])
        tips = _silhouette(w, v, low)
        if not traits.male:
            tips = np.concatenate([[(-0.95 * w, low + 11)], tips, [(0.95 * w, low + 11)]])
        guides = _radial(hairline, tips, 0.0, 3.0)
        front = [Sheet(guides, 1500, (0.12, 0.3), wave=-2.2, ragged=1.5, shine=0.6, bare=1)]
        if traits.male:
            return [], front
        behind = _loft([(-w - 0.5 * v, -20), (-0.9 * w, low + 8)], [(w + 0.5 * v, -20), (0.9 * w, low + 8)])
        return [Sheet(behind, 500, (0.1, 0.2), wave=-2.2, ragged=1.5, shine=-1.0)], front

    # hair that falls past the ears
    wave = 3.6 if style == "wavy" else 0.8 + 1.0 * traits.hair_volume
    v *= 0.72
    bob = style in ("bob", "fringe") and not (style == "fringe" and traits.hair_volume > 0.6)
    if bob:
        end = chin - 12 + 14 * traits.hair_volume
        lower = [(0.97 * w, 10), (0.99 * w, 0.6 * end), (0.88 * w, end)]
        lower_back = [(1.05 * w + v, 0.45 * end), (1.06 * w + v, 0.8 * end), (0.96 * w + 0.6 * v, end + 3)]
    else:
        end = 104 + 18 * traits.hair_volume
        lower = [(0.985 * w, 10), (0.94 * w, 45), (0.84 * w, 76), (0.90 * w, 0.9 * end), (0.80 * w, end)]
        lower_back = [
            (1.03 * w + v, 20),
            (1.05 * w + v, 52),
            (1.13 * w + v, 80),
            (1.12 * w + v, 0.92 * end),
            (0.98 * w + v, end - 1),
        ]
    if style == "fringe":
        px = 0.15 * px
    front = [
        Sheet(_parted(traits, w, v, s, px, lower, lower_back), 560, (0.55, 1.0), wave=wave, ragged=1.0, shine=0.22)
        for s in both
    ]  # fmt: skip
    if style == "fringe":
        by = -17.5
        roots = spline([(-0.62 * w, -66 - 0.4 * v), (0, -76 - 0.4 * v), (0.62 * w, -66 - 0.4 * v)])
        tips = spline([(-0.86 * w, by + 7), (-0.5 * w, by), (0, by - 1.5), (0.5 * w, by), (0.86 * w, by + 7)])
        guides = _radial(roots, tips, 0.03 * np.sign(traits.parting), 0.0)
        guides[..., 1] -= 3.5 * np.sin(np.pi * np.linspace(0, 1, _POINTS))
        front.append(Sheet(guides, 420, (0.85, 1.0), ragged=1.2, shine=0.5))
    reach = 1.0 * w + 0.8 * v
    top, low = -20.0, (end + 2 if bob else end - 4)
    behind = _loft([(-0.95 * reach, top), (-1.0 * reach, 0.5 * low), (-reach, low)],
                   [(0.95 * reach, top), (reach, 0.5 * low), (reach, low)])  # fmt: skip
    return [Sheet(behind, 420, (0.8, 1.0), wave=wave * 0.6, ragged=1.0, shine=-1.0)], front


def grow(sheet: Sheet, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return strands [N, M, 2] of a sheet and their place across it [N] in [0, 1]."""
    guides, n = sheet.guides, sheet.count
    g, m = guides.shape[:2]
    points = m if sheet.wave > 1.5 else 9
    if sheet.wave < 0:
        points = 11
    s = rng.random(n)
    at = s * (g - 1)
    low = np.minimum(at.astype(int), g - 2)
    mix = (at - low)[:, None, None]
    whole = guides[low] * (1 - mix) + guides[low + 1] * mix
    length = rng.uniform(*sheet.length, size=n)
    start = rng.random(n) * (1 - length)
    t = (start[:, None] + np.linspace(0, 1, points)[None] * length[:, None]) * (m - 1)
    base = np.minimum(t.astype(int), m - 2)
    frac = (t - base)[..., None]
    rows = np.arange(n)[:, None]
    strands = whole[rows, base] * (1 - frac) + whole[rows, base + 1] * frac

    drift = rng.normal(0, sheet.ragged, (n, 1, 2)) * 0.5
    bend = rng.normal(0, sheet.ragged, (n, 1, 2))
    along = np.linspace(0, 1, points)[None, :, None]
    strands = strands + drift + bend * along**1.5
    if sheet.wave > 0:
        phase = 3.0 * np.sin(4.2 * s) + rng.normal(0, 0.35, n)
        turn = 2 * np.pi * (t / (m - 1)) * (1.5 if sheet.wave < 2 else 3.2) + phase[:, None]
        strands[..., 0] += sheet.wave * np.sin(turn) * np.clip(t / (m - 1) * 2.2 - 0.35, 0, 1)
    elif sheet.wave < 0:
        # curls: a coil of one or two turns that travels along its own short stretch
        turn = rng.uniform(0, 2 * np.pi, (n, 1)) + np.linspace(0, 1, points)[None] * rng.uniform(4.0, 9.0, (n, 1))
        radius = -sheet.wave * rng.uniform(0.45, 1.0, (n, 1)) * np.where(rng.random((n, 1)) < 0.5, -1, 1)
        strands = strands + np.stack([np.cos(turn) * radius, np.sin(turn) * np.abs(radius) * 0.8], -1)
    return strands, s


def rasterise(canvas: Canvas, sheets: list[Sheet], rng: np.random.Generator) -> HairLayer | None:
    """Draw sheets, first to last, as overlapping strands; None when there are none."""
    if not sheets:
        return None
    shape = (canvas.height, canvas.width)
    # brightness and coverage, drawn together; OpenCV smooths lines on 1, 3 or 4 channels only, so the third is idle
    layer = np.empty((*shape, 3), np.uint8)
    layer[:] = (96, 0, 0)
    shine = np.zeros(shape, np.float32)
    every, tones = [], []
    thickness = max(1, round(0.5 * canvas.scale))
    for sheet in sheets:
        g = sheet.guides
        if sheet.length[1] == 1.0:
            g = g[:, : round(0.9 * g.shape[1])]  # the tips are strands alone
        g = g[:, sheet.bare :]
        outline = np.concatenate([g[0], g[1:-1, -1], g[-1][::-1], g[1:-1, 0][::-1]])
        base = canvas.full(canvas.fill(outline, blur=1.1))
        np.maximum(layer[..., 1], (base * 255).astype(np.uint8), out=layer[..., 1])
        layer[..., 0][base > 0.5] = 80
        strands, s = grow(sheet, rng)
        locks = np.interp(s * 13, np.arange(15), rng.uniform(-1, 1, 15))
        tone = np.clip(0.5 + 0.2 * locks + rng.normal(0, 0.17, len(s)), 0.05, 1.0)
        level = (tone * 7.99).astype(int)
        turn = rng.integers(0, 3, len(s))
        for k in range(3):
            for value in rng.permutation(8):
                chosen = strands[(turn == k) & (level == value)]
                canvas.draw_strands(layer, chosen, (int(24 + 30 * value), 255, 0), thickness)
        if sheet.shine >= 0:
            at = round(sheet.shine * (sheet.guides.shape[1] - 1))
            band = canvas.lines([spline(g[:, at])], thickness=round(7 * canvas.scale), blur=4.0)
            np.maximum(shine, canvas.full(band), out=shine)
        every.append(strands)
        tones.append(tone)
    soft = soften(layer[..., 1].astype(np.float32) / 255.0, 0.35 * canvas.scale)
    return HairLayer(soft, layer[..., 0].astype(np.float32) / 255.0, shine, _stack(every), np.concatenate(tones))


def _stack(groups: list[np.ndarray]) -> np.ndarray:
    """Join strands of different point counts: shorter ones repeat their tip."""
    most = max(group.shape[1] for group in groups)
    return np.concatenate([np.pad(g, ((0, 0), (0, most - g.shape[1]), (0, 0)), "edge") for g in groups])


def fur(roots: np.ndarray, angle: np.ndarray, length: np.ndarray, curl: np.ndarray) -> np.ndarray:
    """Return short bent hairs [N, 5, 2] from ``roots`` [N, 2]; angles in radians, 0 to the right, growing downward."""
    t = np.linspace(0, 1, 5)[None]
    turn = angle[:, None] + curl[:, None] * t
    step = np.stack([np.cos(turn), np.sin(turn)], -1) * (length[:, None, None] / 4)
    step[:, 0] = 0
    return roots[:, None] + np.cumsum(step, axis=1)
