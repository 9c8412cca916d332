"""Paint a face in colour, softly shaded, as a passport photo shows it."""

from __future__ import annotations

import cv2
import numpy as np

from fastsketch.training.faces.canvas import box_of, part, shifted, soften, spline, value_noise
from fastsketch.training.faces.geometry import Eye
from fastsketch.training.faces.hair import HairLayer, fur
from fastsketch.training.faces.scene import Scene
from fastsketch.training.faces.skin import mix, paint_ears, paint_head, paint_neck


def paint_photo(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return the picture [H, W, 3] float32, display values in [0, 1]."""
    canvas = scene.canvas
    shape = (canvas.height, canvas.width, 3)
    image = np.empty(shape, np.float32)
    image[:] = np.array([0.975, 0.975, 0.97], np.float32)
    if scene.back_hair is not None:
        _paint_hair(image, scene, scene.back_hair, 0.55)
    paint_neck(image, scene)
    _paint_clothes(image, scene, rng)
    paint_ears(image, scene)
    paint_head(image, scene, rng)
    _nose_and_lines(image, scene)
    for eye in scene.geometry.eyes:
        _eye(image, scene, eye, rng)
    _lips(image, scene)
    _brows_and_beard(image, scene, rng)
    if scene.front_hair is not None:
        _paint_hair(image, scene, scene.front_hair, 1.0)
    if scene.traits.glasses != "none":
        _glasses(image, scene)
    return image


def _paint_hair(image: np.ndarray, scene: Scene, layer: HairLayer, light: float) -> None:
    colour = scene.traits.hair_colour.astype(np.float32)
    area = box_of(layer.cover)
    lit, texture = scene.hair_light[area] * light, layer.texture[area]
    bright = (0.30 + 1.05 * texture) * lit
    if light < 1:
        bright *= 1 - 0.4 * scene.chin_shadow[area]
    gleam = layer.shine[area] * texture * np.minimum(lit, 1)
    amount = 0.20 + 0.25 * float(colour.mean())
    painted = colour * bright[..., None] + gleam[..., None] * ((colour * 0.5 + amount) * 0.55)
    mix(image[area], np.minimum(painted, 1.0), layer.cover[area])


def _paint_clothes(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> None:
    canvas, traits = scene.canvas, scene.traits
    h, w = canvas.height, canvas.width
    fold = value_noise(rng, h // 2, w // 2, 22 * canvas.scale / 2) * 3.0
    coarse = (
        soften(cv2.resize(scene.torso, (w // 2, h // 2), interpolation=cv2.INTER_AREA), 9 * canvas.scale / 2) * 26
        + fold
    )
    dx = cv2.Sobel(coarse, cv2.CV_32F, 1, 0, ksize=3, scale=canvas.scale / 16)
    dy = cv2.Sobel(coarse, cv2.CV_32F, 0, 1, ksize=3, scale=canvas.scale / 16)
    light = traits.light.astype(np.float32)
    shade = (light[2] - dx * light[0] - dy * light[1]) / np.sqrt(1 + dx * dx + dy * dy)
    shade = cv2.resize(np.clip(0.22 + 0.85 * shade, 0.1, 1.2), (w, h))
    shade *= 1 - 0.4 * scene.chin_shadow
    shade *= 1 + 0.05 * value_noise(rng, h, w, 2)
    colours = {
        "cloth": traits.cloth,
        "shirt": np.array([0.86, 0.88, 0.91]),
        "tie": traits.cloth[[2, 0, 1]] * 0.8 + 0.05,
    }
    opening = 1 - canvas.full(canvas.fill(scene.clothes.opening))
    for i, (name, polygon, factor) in enumerate(scene.clothes.pieces):
        cover = canvas.full(canvas.fill(polygon))
        if i == 0:
            cover = cover * opening
        elif name != "cloth" or traits.clothes in ("shirt", "suit"):
            canvas.fill(shifted(polygon, 0.6, 1.6), blur=1.4).limited(scene.torso).multiply(image, 0.72)
        colour = np.clip(colours[name], 0.04, 0.95).astype(np.float32) * factor
        area = box_of(cover)
        mix(image[area], np.minimum(colour * shade[area][..., None], 1.0), cover[area])
    canvas.lines(scene.clothes.edges, 2, blur=0.5).limited(scene.torso).multiply(image, 0.66)


def _nose_and_lines(image: np.ndarray, scene: Scene) -> None:
    canvas, g, traits = scene.canvas, scene.geometry, scene.traits
    age = float(np.clip((traits.age - 26) / 42, 0, 1))
    dark = np.array([0.60, 0.48, 0.45])
    lean = -traits.light[0] * 5.0
    below = [(-9, 2.0), (0, 4.2), (9, 2.0), (6 + lean, 7.5), (lean, 8.5), (-6 + lean, 7.5)]
    under = shifted(spline(below, closed=True), 0, g.nose_y)
    canvas.fill(under, blur=1.9).multiply(image, (0.84, 0.76, 0.74), 0.7)
    for wing, nostril in zip(g.nose_wings, g.nostrils, strict=True):
        canvas.lines([wing], 2, blur=0.75).multiply(image, dark, 0.75)
        canvas.lines([part(wing, 0.45, 1.0)], 2, blur=0.4).multiply(image, dark, 0.5)
        canvas.fill(nostril, blur=0.55).multiply(image, (0.30, 0.20, 0.19), 0.85)
    canvas.lines([g.nose_base], 2, blur=0.8).multiply(image, dark, 0.5)
    canvas.lines(list(g.folds), 3, blur=1.5).multiply(image, (0.78, 0.68, 0.66), 0.22 + 0.9 * age)
    if age > 0.2:
        canvas.lines([part(fold, 0, 0.85) for fold in g.folds], 2, blur=0.7).multiply(image, dark, 0.7 * age)
        if g.forehead:
            canvas.lines(g.forehead, 2, blur=0.8).limited(scene.head).multiply(image, dark, 0.65 * age)
        for eye in g.eyes:
            outer = eye.upper[-1]
            feet = [
                np.array([(2.0, d * 0.8), (5.5, d * 2.0), (8.5, d * 3.6)]) * (eye.side, 1) + outer
                for d in (-0.8, 0.2, 1.2)
            ]
            canvas.lines([spline(f) for f in feet], 1, blur=0.5).multiply(image, dark, 0.8 * age)
            canvas.lines([eye.bag], 3, blur=1.0).multiply(image, (0.74, 0.64, 0.64), 0.75 * age)


def _eye(image: np.ndarray, scene: Scene, eye: Eye, rng: np.random.Generator) -> None:
    canvas, traits = scene.canvas, scene.traits
    k = canvas.scale
    deep = np.clip(traits.skin.astype(np.float32) ** 0.45 * (0.42, 0.30, 0.27), 0, 1)
    canvas.fill(np.concatenate([eye.crease, eye.bag[::-1]]), blur=2.6).multiply(image, (0.86, 0.79, 0.79), 0.7)
    canvas.lines([eye.crease], 2, blur=0.75).multiply(image, (0.58, 0.47, 0.45), 0.35 + 0.5 * traits.lid_fold)
    canvas.lines([eye.bag], 3, blur=1.3).multiply(image, (0.82, 0.74, 0.75), 0.6)

    opening = canvas.full(canvas.fill(eye.opening, blur=0.2))
    white = canvas.fill(eye.opening, blur=0.2)
    white.paint(image, (0.80, 0.775, 0.755), 0.96)
    duct = eye.upper[0] + (1.3 * eye.side, 0.2)
    canvas.fill(_disc(duct, 1.3), blur=0.5).limited(opening).paint(image, (0.72, 0.47, 0.44), 0.8)
    c, r = eye.centre, eye.radius
    colour = np.clip(traits.iris, 0.03, 0.9)
    canvas.fill(_disc(c, r), blur=0.35).limited(opening).paint(image, colour * 0.42)
    canvas.fill(_disc(c, r * 0.83), blur=0.5).limited(opening).paint(image, colour * 0.95)
    canvas.fill(_disc(shifted(c, 0, 0.45 * r), r * 0.5), blur=0.7).limited(opening).paint(
        image, np.minimum(colour * 1.45, 1), 0.6
    )
    rays = [np.stack([c + r * 0.4 * d, c + r * 0.85 * d]) for d in _directions(rng.uniform(0, 6.28, 14))]
    canvas.lines(rays, 1).limited(opening).multiply(image, 0.72, 0.6)
    canvas.fill(_disc(c, r * 0.43), blur=0.25).limited(opening).paint(image, (0.035, 0.03, 0.03))
    lid = np.concatenate([eye.upper, shifted(eye.upper[::-1], 0, 2.5)])
    canvas.fill(lid, blur=0.8).limited(opening).multiply(image, (0.50, 0.46, 0.45), 0.85)
    glint = shifted(c, 1.5 * np.sign(traits.light[0]), -1.5)
    canvas.fill(_disc(glint, 0.95), blur=0.28).limited(opening).paint(image, (1.0, 1.0, 1.0), 0.95)

    canvas.lines([shifted(eye.lower, 0, -0.1)], 1, blur=0.4).multiply(image, (0.62, 0.48, 0.46), 0.8)
    canvas.lines([shifted(eye.lower, 0, 1.0)], 1, blur=0.4).paint(
        image, np.clip(traits.skin**0.45 * (1.02, 0.9, 0.88), 0, 1), 0.35
    )
    canvas.lines([eye.upper], max(2, round(1.1 * k)), blur=0.35).paint(image, deep * 0.55, 0.9)
    canvas.lines([part(eye.upper, 0.45, 1.0)], max(2, round(1.3 * k)), blur=0.3).paint(image, deep * 0.4, 0.75)
    n = 26
    t = np.linspace(0.15, 1.0, n)
    roots = np.stack([np.interp(t, np.linspace(0, 1, len(eye.upper)), eye.upper[:, i]) for i in range(2)], 1)
    angle = np.interp(t, [0.15, 0.6, 1.0], [-1.7, -1.15, -0.4])
    lashes = fur(
        np.zeros((n, 2)), angle, np.interp(t, [0.15, 1], [1.6, 3.3]) * (0.75 if traits.male else 1.15), np.full(n, -0.5)
    )
    lashes[..., 0] *= eye.side
    canvas.lines(list(lashes + roots[:, None]), 1).paint(image, deep * 0.5, 0.45 if traits.male else 0.75)


def _disc(centre: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(centre) + radius * _directions(np.linspace(0, 2 * np.pi, 28, endpoint=False))


def _directions(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _lips(image: np.ndarray, scene: Scene) -> None:
    canvas, g, traits = scene.canvas, scene.geometry, scene.traits
    red = np.array([0.90, 0.66, 0.66] if traits.male else [0.93, 0.58, 0.60])
    upper = np.concatenate([g.upper_lip, g.mouth[::-1]])
    lower = np.concatenate([g.mouth, g.lower_lip[::-1]])
    canvas.fill(upper, blur=0.55).multiply(image, red * 0.84, 0.9)
    canvas.fill(lower, blur=0.6).multiply(image, red, 0.88)
    gleam = spline([(-8, 2.6), (0, 3.4), (8, 2.6)]) * (traits.mouth_width, traits.lip_fullness) + (
        1.5 * traits.light[0],
        g.mouth_y,
    )
    canvas.lines([gleam], 3, blur=1.1).paint(image, (1.0, 0.86, 0.84), 0.26 if traits.male else 0.4)
    canvas.lines([g.mouth], 2, blur=0.8).multiply(image, (0.50, 0.33, 0.33), 0.8)
    canvas.lines([part(g.mouth, 0.06, 0.94)], 2, blur=0.3).multiply(image, (0.42, 0.26, 0.26), 0.85)
    for end in (0, -1):
        canvas.fill(_disc(g.mouth[end], 1.5), blur=1.2).multiply(image, (0.62, 0.5, 0.5), 0.8)


def _brows_and_beard(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> None:
    canvas, traits = scene.canvas, scene.traits
    hair = traits.hair_colour.astype(np.float32)
    dark = np.clip(hair * 0.62, 0.06, 0.6)
    layer = np.zeros((canvas.height, canvas.width), np.uint8)
    canvas.draw_strands(layer, scene.brows, 255, 1)
    brows = layer.astype(np.float32) / 255
    mix(image, dark, np.minimum(0.45 * soften(brows, 1.6 * canvas.scale) + 0.62 * soften(brows, 0.4), 0.95))
    if traits.beard == "none":
        return
    grain = 1 + 0.35 * value_noise(rng, canvas.height, canvas.width, 1.6)
    opacity = {"stubble": 0.34, "full": 0.62, "goatee": 0.55, "moustache": 0.55}[traits.beard]
    mix(image, dark * 0.9 + 0.05, np.clip(scene.beard_area * opacity * grain, 0, 1))
    for i, factor in enumerate((0.45, 0.7, 1.05, 0.85)):
        layer[:] = 0
        canvas.draw_strands(layer, scene.beard[i::4], 255, 1)
        mix(image, np.clip(hair * factor, 0.04, 0.9), layer.astype(np.float32) * (0.75 / 255))


def _glasses(image: np.ndarray, scene: Scene) -> None:
    canvas, g, traits = scene.canvas, scene.geometry, scene.traits
    metal = traits.glasses == "half"
    frame = (0.33, 0.31, 0.29) if metal else (0.10, 0.085, 0.08)
    thick = max(2, round((0.9 if metal else 1.6) * canvas.scale))
    curves = glasses_curves(scene)
    for side in (-1, 1):
        lens = canvas.fill(g.lens(side, traits.glasses))
        lens.paint(image, (0.93, 0.96, 1.0), 0.07)
        c = g.eyes[0 if side < 0 else 1].centre
        glare = shifted(np.array([(-12, -10), (-7, -10), (-13, 12), (-18, 12)]), c[0] + 3, 2)
        lens_cover = canvas.full(lens)
        canvas.fill(glare, blur=1.0).limited(lens_cover).paint(image, (1, 1, 1), 0.13)
    canvas.lines([shifted(curve, 0, 1.6) for curve in curves], thick, blur=1.0).limited(scene.head).multiply(
        image, 0.72, 0.7
    )
    canvas.lines(curves, thick, blur=0.2).paint(image, frame, 0.95)
    canvas.lines([shifted(part(curve, 0.05, 0.4), 0, -0.35) for curve in curves], 1, blur=0.3).paint(
        image, (0.75, 0.75, 0.75), 0.35
    )


def glasses_curves(scene: Scene) -> list[np.ndarray]:
    """Rims, bridge and arms of the glasses as open curves."""
    g, shape = scene.geometry, scene.traits.glasses
    curves = []
    for side in (-1, 1):
        lens = g.lens(side, shape)
        curves.append(np.concatenate([lens, lens[:1]]))
        edge = lens[:, 0].max() if side > 0 else lens[:, 0].min()
        w = float(g.half_width(np.array(-2.0)))
        curves.append(np.array([(edge, -1.5), (side * (w + 0.5), -3.5)]))
    inner = g.lens(1, shape)[:, 0].min()
    curves.append(spline([(-inner, 0.0), (0, -2.6), (inner, 0.0)]))
    return curves
