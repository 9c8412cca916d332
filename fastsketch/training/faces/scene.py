"""Everything photo and sketch share: curves, coverages, shading and hair of one face on one canvas."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fastsketch.training.faces.canvas import Canvas, mirror, shifted, soften, spline
from fastsketch.training.faces.geometry import Geometry, build_geometry
from fastsketch.training.faces.hair import HairLayer, build_sheets, fur, rasterise
from fastsketch.training.faces.relief import Relief, normals, shade_head
from fastsketch.training.faces.traits import Traits, draw_traits


@dataclass(frozen=True)
class Clothes:
    """Garment pieces as polygons, painted in order: (name, polygon [Q, 2], brightness factor)."""

    pieces: list[tuple[str, np.ndarray, float]]
    opening: np.ndarray  # the neckline's hole, closed
    edges: list[np.ndarray]  # seams and borders, open curves


@dataclass(frozen=True)
class Scene:
    """One face ready to be painted; all maps [H, W] float32."""

    canvas: Canvas
    traits: Traits
    geometry: Geometry
    relief: Relief
    head: np.ndarray
    ears: np.ndarray
    neck: np.ndarray
    torso: np.ndarray
    clothes: Clothes
    back_hair: HairLayer | None
    front_hair: HairLayer | None
    hair_light: np.ndarray
    hair_shadow: np.ndarray  # cast on the face
    chin_shadow: np.ndarray  # cast on neck and clothes
    brows: np.ndarray  # [N, 5, 2] hairs
    beard: np.ndarray  # [N, 5, 2] hairs
    beard_area: np.ndarray
    person: np.ndarray  # coverage of the whole person

    def enlarged(self, image: np.ndarray) -> np.ndarray:
        """Bring a map of the relief's canvas to this canvas."""
        return cv2.resize(image, (self.canvas.width, self.canvas.height))


def _clothes(traits: Traits, geometry: Geometry) -> Clothes:
    thick = float(np.interp(84, geometry.neck[:40, 1], geometry.neck[:40, 0]))
    torso, edges = geometry.torso, []
    pieces = [("cloth", torso, 1.0)]
    kind = traits.clothes

    def yoke(points: list[tuple[float, float]]) -> np.ndarray:
        return spline([*((-x, y) for x, y in points[::-1] if x > 0), *points])

    if kind == "roll":
        low = yoke([(0, 104), (thick * 0.7, 101), (thick + 4, 93)])
        top = yoke([(0, 90), (thick * 0.7, 87.5), (thick + 0.5, 80)])
        pieces.append(("cloth", np.concatenate([top, low[::-1]]), 1.08))
        edges += [low, top]
        opening = np.concatenate([[(-thick - 20, 60)], top, [(thick + 20, 60)]])
        return Clothes(pieces, opening, edges)
    if kind == "vneck":
        neck = yoke([(0, 127), (4, 121), (thick - 5, 101), (thick + 4, 90)])
    elif kind == "crew":
        neck = yoke([(0, 110), (thick * 0.6, 106), (thick * 0.95, 98), (thick + 4, 89)])
    else:
        neck = yoke([(0, 116), (2, 114), (thick - 3, 97), (thick + 3, 88)])
    opening = np.concatenate([[(-thick - 20, 60)], neck, [(thick + 20, 60)]])
    if kind in ("crew", "vneck"):
        edges += [neck, shifted(neck, 0, 4.2)]
        return Clothes(pieces, opening, edges)

    close = 107.0 if kind == "suit" else 115.5  # where the collar meets
    if kind == "suit":
        shirt = np.array(
            [
                (-thick - 5, 86),
                (0, close - 1),
                (thick + 5, 86),
                (thick + 3, 104),
                (9, 170),
                (-9, 170),
                (-thick - 3, 104),
            ]
        )
        pieces.append(("shirt", shirt, 1.0))
        if traits.male:
            pieces.append(
                ("tie", np.array([(-5.5, 105), (5.5, 105), (3.8, 115), (9, 175), (-9, 175), (-3.8, 115)]), 1.0)
            )
        for side in (-1, 1):
            lapel = mirror(
                np.array([(thick + 4, 90), (thick + 13, 97), (thick + 9, 117), (thick + 15, 121), (12, 175), (5, 165),
                          (thick - 8, 116)]), side)  # fmt: skip
            pieces.append(("cloth", lapel, 1.13 if side > 0 else 1.07))
            edges.append(lapel[1:5])
            edges.append(lapel[[6, 5]])
    for side in (-1, 1):
        flap = [(thick + 0.5, 84), (thick + 5, 90), (thick - 4, close + 5), (1.0, close), (thick * 0.52, close - 12)]
        flap = mirror(np.array(flap), side)
        pieces.append(("shirt" if kind == "suit" else "cloth", flap, 1.1))
        edges += [resampled(flap[1:4]), resampled(flap[[3, 4, 0]])]
    if kind == "shirt":
        edges.append(np.array([(2.0, 116), (3.0, 140), (3.0, 190)]))
    return Clothes(pieces, opening, edges)


def resampled(polyline: np.ndarray) -> np.ndarray:
    """Return a polyline with points every few units, so that it can wobble."""
    at = np.linspace(0, len(polyline) - 1, 6 * (len(polyline) - 1) + 1)
    return np.stack([np.interp(at, np.arange(len(polyline)), polyline[:, i]) for i in range(2)], 1)


def _brow_hairs(traits: Traits, geometry: Geometry, rng: np.random.Generator) -> np.ndarray:
    hairs, n = [], round(85 * traits.brow_weight)
    for side, line in zip((-1, 1), geometry.brows, strict=True):
        t = rng.beta(1.1, 1.25, n)
        across = rng.uniform(-1, 1, n)
        thick = traits.brow_weight * np.interp(t, [0, 0.15, 0.5, 1], [1.2, 2.2, 2.0, 0.5])
        roots = np.stack([np.interp(t, np.linspace(0, 1, len(line)), line[:, i]) for i in range(2)], 1)
        roots[:, 1] += across * thick
        angle = np.interp(t, [0, 0.25, 0.6, 1], [-0.85, -0.42, -0.08, 0.5]) + 0.35 * across
        angle += rng.normal(0, 0.16, n)
        length = np.interp(t, [0, 0.3, 1], [3.6, 5.2, 3.2]) * rng.uniform(0.7, 1.15, n)
        own = fur(np.zeros((n, 2)), angle, length, np.full(n, 0.35))
        own[..., 0] *= side
        hairs.append(own + roots[:, None])
    return np.concatenate(hairs)


def _beard(
    canvas: Canvas, traits: Traits, geometry: Geometry, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return beard hairs [N, 5, 2] and the soft area [H, W] that the beard darkens."""
    area = np.zeros((canvas.height, canvas.width), np.float32)
    if traits.beard == "none":
        return np.zeros((0, 5, 2)), area
    my, chin, ny = geometry.mouth_y, geometry.chin_y, geometry.nose_y
    w = float(geometry.half_width(np.array(20.0)))
    mw = 17.2 * traits.mouth_width
    lip = np.concatenate([geometry.upper_lip, geometry.lower_lip[::-1]])
    shapes = []
    if traits.beard in ("full", "stubble"):
        cheek = [(0.97 * w, 8), (0.86 * w, 24), (0.62 * w, my - 7), (mw + 5, my - 4)]
        rim = [
            (1.03 * w, 8),
            (0.98 * w, 34),
            (0.86 * w * traits.jaw, my + 4),
            (0.6 * w * traits.jaw, chin - 7),
            (0.25 * w, chin + 3),
        ]
        right = np.concatenate([spline(rim), [(-1.5, chin + 4)]])
        inner = spline([*cheek, (mw + 1, my - 7), (0.4 * mw, my - 9), (-1.5, my - 8)])
        half = np.concatenate([inner, right[::-1]])
        shapes = [half, half * (-1, 1)]
    if traits.beard in ("moustache", "goatee"):
        half = spline(
            [(0, ny + 6.5), (0.5 * mw, ny + 7), (mw + 3, my - 1.5), (mw + 4, my + 3.5), (mw - 3, my + 0.5),
             (0.4 * mw, my - 3.5), (0, my - 3)], closed=True
        )  # fmt: skip
        shapes += [half, half * (-1, 1)]
    if traits.beard == "goatee":
        chin_tuft = [(-11, my + 9), (0, my + 8), (11, my + 9), (14, chin - 6), (8, chin + 2.5), (0, chin + 4),
                     (-8, chin + 2.5), (-14, chin - 6)]  # fmt: skip
        shapes.append(spline(chin_tuft, closed=True))
    for shape in shapes:
        np.maximum(area, canvas.full(canvas.fill(shape, blur=1.6)), out=area)
    area *= (1 - canvas.full(canvas.fill(lip, blur=0.7))) * canvas.full(canvas.fill(geometry.head, blur=0.6))
    if traits.beard == "stubble":
        return np.zeros((0, 5, 2)), area
    n = {"full": 5200, "goatee": 2600, "moustache": 1500}[traits.beard]
    at = rng.uniform((-1.05 * w, ny), (1.05 * w, chin + 4), (n, 2)) if traits.beard != "full" else rng.uniform(
        (-1.05 * w, 4), (1.05 * w, chin + 4), (n, 2)
    )  # fmt: skip
    pixel = np.clip(((at + canvas.centre) * canvas.scale).astype(int), 0, (canvas.width - 1, canvas.height - 1))
    at = at[rng.random(n) < area[pixel[:, 1], pixel[:, 0]] ** 1.5]
    out = np.clip(at[:, 0] / 30, -1, 1)
    lip_zone = (at[:, 1] < my) & (np.abs(at[:, 0]) < mw + 4)
    angle = np.pi / 2 - np.where(lip_zone, 1.0 * np.sign(out) * np.minimum(np.abs(out) * 3, 1), 0.35 * out)
    angle += rng.normal(0, 0.22, len(at))
    length = rng.uniform(2.6, 4.6, len(at)) * np.where(lip_zone, 0.62, 1.0)
    return fur(at, angle, length, rng.normal(0, 0.4, len(at))), area


def build_scene(canvas: Canvas, rng: np.random.Generator) -> Scene:
    """Draw traits from ``rng`` and lay the whole face out on ``canvas``."""
    traits = draw_traits(rng)
    geometry = build_geometry(traits)
    coarse = Canvas(canvas.height // 2, canvas.width // 2, canvas.scale / 2, canvas.centre)
    relief = shade_head(coarse, traits, geometry)

    head = canvas.full(canvas.fill(geometry.head))
    ears = np.maximum(*(canvas.full(canvas.fill(ear)) for ear in geometry.ears))
    neck = canvas.full(canvas.fill(geometry.neck))
    clothes = _clothes(traits, geometry)
    torso = canvas.full(canvas.fill(geometry.torso))
    torso *= 1 - canvas.full(canvas.fill(clothes.opening))
    for _, piece, _ in clothes.pieces[1:]:
        torso = np.maximum(torso, canvas.full(canvas.fill(piece)))

    behind, before = build_sheets(traits, geometry)
    back_hair = rasterise(canvas, behind, rng)
    front_hair = rasterise(canvas, before, rng)
    brows = _brow_hairs(traits, geometry, rng)
    beard, beard_area = _beard(canvas, traits, geometry, rng)

    cover = np.zeros_like(head)
    for layer in (back_hair, front_hair):
        if layer is not None:
            np.maximum(cover, layer.cover, out=cover)
    person = np.maximum.reduce([head, ears, neck, torso, cover])

    k = canvas.scale
    small = cv2.resize(np.maximum(cover, head), (coarse.width, coarse.height), interpolation=cv2.INTER_AREA)
    dome = soften(small, 13 * coarse.scale) * 46 + soften(small, 4 * coarse.scale) * 5
    shade = normals(dome, coarse.scale) @ traits.light.astype(np.float32)
    hair_light = cv2.resize(np.clip(0.40 + 0.66 * shade, 0.25, 1.15), (canvas.width, canvas.height))
    fringe = np.zeros_like(head) if front_hair is None else front_hair.cover
    return Scene(
        canvas=canvas,
        traits=traits,
        geometry=geometry,
        relief=relief,
        head=head,
        ears=ears,
        neck=neck,
        torso=torso,
        clothes=clothes,
        back_hair=back_hair,
        front_hair=front_hair,
        hair_light=hair_light,
        hair_shadow=_cast(fringe, -2.5 * traits.light[0] * k, 2.5 * k, 2.6 * k),
        chin_shadow=_cast(head, -9 * traits.light[0] * k, 12 * k, 4.0 * k),
        brows=brows,
        beard=beard,
        beard_area=beard_area,
        person=person,
    )


def _cast(cover: np.ndarray, dx: float, dy: float, blur: float) -> np.ndarray:
    """A soft shadow: ``cover`` shifted by (dx, dy) pixels and blurred."""
    shift = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    moved = cv2.warpAffine(cover, shift, cover.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    return soften(moved, blur)
