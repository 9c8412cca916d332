"""The curves of a procedural face: the photo paints inside them and the sketch draws along them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastsketch.training.faces.canvas import mirror, part, resample, shifted, spline
from fastsketch.training.faces.traits import Traits


@dataclass(frozen=True)
class Eye:
    """One eye; curves [Q, 2] run from the inner to the outer corner."""

    side: int
    upper: np.ndarray
    lower: np.ndarray
    crease: np.ndarray
    bag: np.ndarray
    centre: np.ndarray
    radius: float

    @property
    def opening(self) -> np.ndarray:
        """The closed outline between the lids."""
        return np.concatenate([self.upper, self.lower[::-1]])


@dataclass(frozen=True)
class Geometry:
    """All curves of one face, in face units."""

    head: np.ndarray  # closed, without hair and ears
    width_at: tuple[np.ndarray, np.ndarray]  # y and half-width of the head
    ears: tuple[np.ndarray, np.ndarray]
    neck: np.ndarray
    torso: np.ndarray
    eyes: tuple[Eye, Eye]
    brows: tuple[np.ndarray, np.ndarray]  # centre lines, from the inner end
    nose_y: float
    nose_wings: tuple[np.ndarray, np.ndarray]
    nostrils: tuple[np.ndarray, np.ndarray]
    nose_base: np.ndarray
    mouth_y: float
    upper_lip: np.ndarray  # outline, left to right
    lower_lip: np.ndarray
    mouth: np.ndarray  # the line between the lips
    folds: tuple[np.ndarray, np.ndarray]  # from the nose's wings to the mouth's corners
    chin_y: float
    forehead: list[np.ndarray]  # age lines

    def half_width(self, y: np.ndarray) -> np.ndarray:
        """Half-width of the head at height ``y``."""
        return np.interp(y, *self.width_at)

    def lens(self, side: int, shape: str) -> np.ndarray:
        """Closed outline [Q, 2] of a spectacle lens."""
        gap = abs(self.eyes[0].centre[0])
        cx, cy = gap + 1.0, 2.0
        power, a, b = {"round": (2.0, 13.2, 12.2), "square": (4.2, 15.2, 10.0)}.get(shape, (3.2, 14.8, 9.6))
        t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        x = np.sign(np.cos(t)) * np.abs(np.cos(t)) ** (2 / power)
        y = np.sign(np.sin(t)) * np.abs(np.sin(t)) ** (2 / power)
        # a little narrower below, as frames are
        return mirror(np.stack([cx + a * x * (1 - 0.05 * y), cy + b * y], 1), side)


def _eye(traits: Traits, side: int) -> Eye:
    g, s, o = traits.eye_gap, traits.eye_size, traits.eye_open
    tilt = traits.eye_tilt
    at = [(-10.2, 1.5), (-6.2, -2.6), (-0.6, -4.4), (5.6, -3.4), (10.6, 0.4)]
    below = [(-10.2, 1.5), (-5.5, 3.1), (0.2, 3.9), (5.8, 3.0), (10.6, 0.4)]

    def place(points: list[tuple[float, float]], lift: float = 0.0) -> np.ndarray:
        p = np.array(points)
        p[:, 1] = p[:, 1] * np.where(p[:, 1] < 0, o, 0.5 + 0.5 * o) - tilt * p[:, 0] / 10 - lift
        return mirror(spline(p * s + (g, 0.0)), side)

    upper, lower = place(at), place(below)
    fold = 1.6 + 1.3 * traits.lid_fold
    crease = place([(-9.0, -1.0), (-5.0, -3.6), (0.2, -4.9), (6.5, -4.0), (11.5, -0.4)], fold)
    bag = place([(-8.0, 5.0), (-2.5, 7.2), (4.0, 7.4), (9.0, 5.0)])
    return Eye(side, upper, lower, crease, bag, np.array([side * (g + 0.1), -0.6 * s]), 4.25 * s)


def _forehead(traits: Traits, brow_y: float) -> list[np.ndarray]:
    count = int(np.clip((traits.age - 30) / 9, 0, 4))
    reach = 18 + 6 * traits.lid_fold
    lines = []
    for i, y in enumerate(np.linspace(brow_y - 8, 0.78 * traits.hairline - 3, count)):
        lean = 1.2 * np.sin(7 * traits.hair_volume + 2 * i)
        half = reach * (1 - 0.12 * abs(i - 1))
        lines.append(
            spline(
                [
                    (-half + lean, y + 1.2),
                    (-0.4 * half, y - 0.3),
                    (lean, y + 0.7),
                    (0.45 * half, y - 0.4),
                    (half + lean, y + 1),
                ]
            )
        )
    return lines


def build_geometry(traits: Traits) -> Geometry:
    """Lay out a face's curves from its traits."""
    w, j, chin = 46.0 * traits.face_width, traits.jaw, 75.0 + traits.chin
    right = np.array(
        [
            (0.0, -77.0),
            (0.50 * w, -73.0),
            (0.84 * w, -57.0),
            (0.975 * w, -32.0),
            (1.0 * w, -8.0),
            (0.985 * w, 12.0),
            (0.925 * w, 29.0),
            (0.755 * w * j, 0.655 * chin),
            (0.50 * w * j, 0.875 * chin),
            (0.245 * w * j, 0.985 * chin),
        ]
    )
    left = right[1:][::-1] * (-1, 1)
    head = spline(np.concatenate([right, [(0.0, chin)], left]), closed=True)
    edge = spline(np.concatenate([right, [(0.0, chin)]]))
    order = np.argsort(edge[:, 1])

    ear = spline(
        np.array([(-3, -10), (3.5, -13), (8.2, -8), (7.6, 3), (5.0, 12), (1.5, 18), (-3, 15)])
        * (traits.ear, traits.ear)
        + (0.99 * w, 2.0),
        closed=True,
    )
    thick = 29.5 if traits.male else 23.5
    thick *= 0.9 + 0.1 * traits.face_width
    side = spline(
        [(thick + 2, 40), (thick, 66), (thick + 0.5, 84), (thick + 7, 98), (thick + 8, 110), (thick + 8, 190)]
    )  # fmt: skip
    neck = np.concatenate([side, mirror(side, -1)[::-1]])
    broad = 1.03 if traits.male else 0.96
    shoulder = spline(
        [(thick + 3, 91), (thick + 17, 101), (66 * broad, 110), (90 * broad, 120), (104 * broad, 140),
         (110 * broad, 190)]
    )  # fmt: skip
    # tall pictures show more of the body
    shoulder = np.concatenate([shoulder, [(112 * broad, 900)]])
    torso = np.concatenate([shoulder, mirror(shoulder, -1)[::-1]])

    ny, nw = 32.0 + traits.nose_length, traits.nose_width
    wing = spline(np.array([(8.6, -7.5), (11.2, -3.2), (11.0, 0.6), (8.4, 2.2), (6.6, 1.0)]) * (nw, 1) + (0, ny))
    nostril = spline(
        np.array([(3.0, 1.6), (5.2, -0.3), (8.0, 0.5), (7.0, 2.0), (4.4, 2.5)]) * (nw, 1) + (0, ny), closed=True
    )  # fmt: skip
    base = spline(np.array([(-6.5, 1.2), (-3.6, 2.6), (0, 3.9), (3.6, 2.6), (6.5, 1.2)]) * (nw, 1) + (0, ny))

    my = 49.0 + 0.55 * traits.chin + 0.4 * traits.nose_length
    mw, full, smile = 17.2 * traits.mouth_width + 0.5 * traits.smile, traits.lip_fullness, traits.smile
    unit = np.array([mw, 1.0])

    def lip(points: list[tuple[float, float]]) -> np.ndarray:
        p = np.array(points) * unit
        p[:, 1] -= smile * (np.abs(p[:, 0]) / mw) ** 2 - 0.25 * smile
        return spline(shifted(p, 0, my))

    upper_lip = lip(
        [(-1, 0.2), (-0.62, -2.2 * full), (-0.22, -4.5 * full), (0, -3.5 * full),
         (0.22, -4.5 * full), (0.62, -2.2 * full), (1, 0.2)]
    )  # fmt: skip
    lower_lip = lip(
        [(-1, 0.2), (-0.6, 4.1 * full), (-0.25, 6.3 * full), (0, 6.6 * full),
         (0.25, 6.3 * full), (0.6, 4.1 * full), (1, 0.2)]
    )  # fmt: skip
    mouth = lip(
        [(-1.03, 0.2), (-0.55, 0.1), (-0.18, -0.2), (0, 0.5), (0.18, -0.2), (0.55, 0.1), (1.03, 0.2)]
    )  # fmt: skip
    fold = spline([(11.5 * nw, ny - 3), (16.5, ny + 5), (mw + 3.0, my - 3), (mw + 3.5, my + 5)])

    by, arch = -14.5 + traits.brow_height, traits.brow_arch
    brow = spline([(8.6, by + 1.2), (15, by - 0.4), (25, by - 1.2 - arch), (35.0 * traits.face_width, by + 2.6)])
    both = (-1, 1)
    return Geometry(
        head=head,
        width_at=(edge[order, 1], edge[order, 0]),
        ears=tuple(mirror(ear, s) for s in both),
        neck=neck,
        torso=torso,
        eyes=tuple(_eye(traits, s) for s in both),
        brows=tuple(mirror(resample(brow, 24), s) for s in both),
        nose_y=ny,
        nose_wings=tuple(mirror(wing, s) for s in both),
        nostrils=tuple(mirror(nostril, s) for s in both),
        nose_base=base,
        mouth_y=my,
        upper_lip=upper_lip,
        lower_lip=lower_lip,
        mouth=mouth,
        folds=tuple(mirror(part(fold, 0.08, 1.0), s) for s in both),
        chin_y=chin,
        forehead=_forehead(traits, by),
    )
