"""Draw the same face in pencil: outlines, hatching that bends over the form, hair stroke by stroke."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from fastsketch.training.faces.canvas import (
    Canvas,
    box_of,
    mirror,
    part,
    shifted,
    smoothstep,
    soften,
    spline,
    value_noise,
    wobble,
)
from fastsketch.training.faces.geometry import Eye
from fastsketch.training.faces.hair import HairLayer
from fastsketch.training.faces.photo import glasses_curves
from fastsketch.training.faces.scene import Scene

_TILE = 512


@lru_cache(maxsize=1)
def _hatch_tile() -> np.ndarray:
    """Horizontal pencil strokes [512, 512] float32 that tile; the same for every face."""
    rng = np.random.default_rng(20251)
    tile = np.zeros((_TILE, _TILE), np.float32)
    for _ in range(8):
        layer = np.zeros((3 * _TILE, 3 * _TILE), np.uint8)
        for _ in range(330):
            x, y = rng.uniform(0, _TILE, 2)
            length, slope = rng.uniform(35, 90), rng.normal(0, 1.2)
            a, b = np.array([x, y]), np.array([x + length, y + slope])
            value = int(rng.uniform(70, 200))
            for sx in (0, _TILE):
                for sy in (0, _TILE):
                    ends = np.round(shifted(np.stack([a, b]), sx, sy) * 8).astype(np.int32)
                    cv2.line(layer, ends[0].tolist(), ends[1].tolist(), value, 1, cv2.LINE_AA, 3)
        own = layer[_TILE : 2 * _TILE, _TILE : 2 * _TILE].astype(np.float32) / 255
        tile = 1 - (1 - tile) * (1 - 0.8 * own)
    return tile


def draw_sketch(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return the drawing [H, W] float32, display values in [0, 1] (1 is white)."""
    canvas = scene.canvas
    tone = _tone(scene)
    graphite = 0.58 * tone
    graphite = _over(graphite, _hatching(scene, tone, rng))
    for layer, light in ((scene.back_hair, 0.6), (scene.front_hair, 1.0)):
        if layer is None:
            continue
        if light < 1:
            hair = _hair(scene, layer, rng, light)
            cover = layer.cover * (1 - np.maximum.reduce([scene.head, scene.ears, scene.neck, scene.torso]))
            graphite += cover * (hair - graphite)
    graphite = _over(graphite, _outlines(scene, rng))
    graphite = _features(scene, graphite, rng)
    if scene.front_hair is not None:
        hair = _hair(scene, scene.front_hair, rng, 1.0)
        graphite += scene.front_hair.cover * (hair - graphite)
    if scene.traits.glasses != "none":
        curves = [wobble(curve, rng, 0.12) for curve in glasses_curves(scene)]
        graphite = _over(graphite, 0.85 * canvas.full(canvas.lines(curves, 2)))
    return graphite


def finish(graphite: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lay graphite [H, W] (0..1) on grained paper; returns display values in [0, 1]."""
    h, w = graphite.shape
    grain = rng.standard_normal((h, w), np.float32)
    grain = 0.6 * grain + 0.9 * soften(grain, 0.9)
    tooth = np.clip(graphite * (1 + 0.11 * grain * (1 - 0.8 * graphite)), 0, 1)
    paper = 0.945 + 0.010 * value_noise(rng, h, w, 60) + 0.006 * grain
    return np.clip(paper * (1 - 0.86 * tooth), 0, 1)


def _over(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Graphite on graphite."""
    return 1 - (1 - below) * (1 - np.clip(above, 0, 1))


def _tone(scene: Scene) -> np.ndarray:
    """How dark the form's shadow is, without lines and hair."""
    traits, relief = scene.traits, scene.relief
    lum = float(traits.skin @ (0.3, 0.6, 0.1))
    shade = np.clip((relief.lambert + 0.35) / 1.35, 0, 1) * relief.occlusion * (0.7 + 0.3 * relief.facing)
    dark = np.clip(0.90 - scene.enlarged(shade), 0, 1)
    dark = 0.62 * np.tanh(dark / 0.62) + 0.20 * (0.6 - lum)
    dark = np.clip(dark + 0.30 * scene.hair_shadow, 0, 1)
    x = scene.canvas.x
    neck = 0.22 + 0.42 * scene.chin_shadow - 0.25 * traits.light[0] * x / 36 + 0.2 * (0.6 - lum)
    tone = scene.neck * np.clip(neck, 0.02, 0.9)
    cloth = 1 - float(np.clip(traits.cloth, 0, 1).mean())
    body = np.clip(0.12 + 0.55 * cloth**1.5 + 0.22 * scene.chin_shadow - 0.16 * traits.light[0] * x / 80, 0.03, 0.85)
    tone += scene.torso * (body - tone)
    tone += scene.ears * (0.25 - tone)
    tone += scene.head * (dark - tone)
    if traits.clothes == "suit":
        canvas = scene.canvas
        for name, polygon, _ in scene.clothes.pieces:
            if name == "shirt":
                canvas.fill(polygon).limited(scene.torso).paint(tone, 0.06 + 0.25 * scene.chin_shadow)
            elif name == "tie":
                canvas.fill(polygon).paint(tone, np.float32(0.45))
            else:
                canvas.fill(polygon).limited(scene.torso).paint(tone, body * 0.95)
    return tone


def _hatching(scene: Scene, tone: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Up to three layers of strokes, the next one where ``tone`` is darker; they bend with the form."""
    canvas = scene.canvas
    bend = 0.55 * scene.enlarged(scene.relief.height) * scene.head
    # strokes keep their size relative to the face, whatever the resolution
    x, y = 2.0 * canvas.x, 2.0 * canvas.y
    total = np.zeros_like(tone)
    lean = -1.0 if scene.traits.light[0] > 0 else 1.0
    for angle, low, high, strength in ((0.95, 0.10, 0.60, 0.50), (0.62, 0.34, 0.75, 0.5), (1.45, 0.5, 0.95, 0.45)):
        c, s = float(np.cos(lean * angle)), float(np.sin(lean * angle))
        du, dv = rng.uniform(0, _TILE, 2)
        area = box_of(tone > low)
        rows, columns = area
        u = c * x[:, columns] + (s * y[rows] + float(du))
        v = bend[area] - s * x[:, columns] + (c * y[rows] + float(dv))
        strokes = cv2.remap(_hatch_tile(), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        total[area] = _over(total[area], strokes * smoothstep(low, high, tone[area]) * strength)
    return total


def _pencil(canvas: Canvas, curves: list[np.ndarray], rng: np.random.Generator, amount: float = 0.25) -> np.ndarray:
    """Lines with a hand's wobble, thin at the ends and heavier in the middle ([H, W] float32, 0..1)."""
    layer = np.zeros((canvas.height, canvas.width), np.uint8)
    shaky = [wobble(curve, rng, amount) for curve in curves]
    again = [part(wobble(c, rng, 1.6 * amount), 0.1, rng.uniform(0.5, 0.9)) for c in curves]
    heavy = [part(c, rng.uniform(0.05, 0.25), rng.uniform(0.7, 0.95)) for c in shaky]
    for group, value, thickness in ((again, 115, 1), (shaky, 140, 1), (heavy, 205, 2)):
        for curve in group:
            canvas.draw_strands(layer, curve[None], value, thickness)
    return layer.astype(np.float32) / 255


def _outlines(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    canvas, g = scene.canvas, scene.geometry
    pressure = 0.72 + 0.35 * value_noise(rng, canvas.height, canvas.width, 26 * canvas.scale)
    half = len(g.neck) // 2
    neck = _pencil(canvas, [g.neck[:half], g.neck[half:]], rng) * (1 - scene.torso)
    w = float(g.half_width(np.array(0.0)))
    helix = [(w + 0.5, -7), (w + 4, -9), (w + 5.6, -4), (w + 5, 4), (w + 2.5, 12)]
    canal = [(w + 0.5, -1), (w + 2.4, 0), (w + 2, 5)]
    inner = [mirror(spline(curve), side) for side in (-1, 1) for curve in (helix, canal)]
    ears = _pencil(canvas, [np.concatenate([ear, ear[:1]]) for ear in g.ears] + inner, rng)
    # the head hides what lies behind it
    behind = np.maximum(neck * 0.8, ears * 0.85) * (1 - scene.head)
    half = len(g.torso) // 2
    body = _pencil(canvas, [g.torso[:half], g.torso[half:], *scene.clothes.edges], rng, 0.35)
    outline = np.concatenate([g.head, g.head[:1]])
    head = _pencil(canvas, [part(outline, a, b, 40) for a, b in ((0.17, 0.52), (0.48, 0.83))], rng, 0.2)
    return np.maximum.reduce([behind, body * 0.85, head * 0.9]) * pressure


def _features(scene: Scene, graphite: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    canvas, g, traits = scene.canvas, scene.geometry, scene.traits
    age = float(np.clip((traits.age - 26) / 42, 0, 1))
    lum = float(traits.hair_colour.mean())
    for wing, nostril in zip(g.nose_wings, g.nostrils, strict=True):
        canvas.fill(nostril, blur=0.4).paint(graphite, np.float32(0.85), 0.85)
        canvas.lines([wobble(wing, rng, 0.15)], 1, blur=0.25).paint(graphite, np.float32(0.75), 0.8)
    canvas.lines([g.nose_base], 1, blur=0.4).paint(graphite, np.float32(0.6), 0.7)
    canvas.lines([wobble(f, rng, 0.25) for f in g.folds], 1, blur=0.5).paint(
        graphite, np.float32(0.6), 0.25 + 0.6 * age
    )
    if g.forehead:
        canvas.lines([wobble(line, rng, 0.3) for line in g.forehead], 1, blur=0.35).paint(
            graphite, np.float32(0.5), 0.7 * age
        )

    for eye in g.eyes:
        _draw_eye(scene, eye, graphite, rng)
    upper = np.concatenate([g.upper_lip, g.mouth[::-1]])
    lower = np.concatenate([g.mouth, g.lower_lip[::-1]])
    base = 0.0 if traits.male else 0.08
    canvas.fill(upper, blur=0.4).paint(graphite, np.float32(0.50 + base), 0.8)
    canvas.fill(lower, blur=0.5).paint(graphite, np.float32(0.30 + base), 0.7)
    ticks = _lip_ticks(scene, rng)
    canvas.lines(ticks, 1).paint(graphite, np.float32(0.62), 0.45)
    canvas.lines([wobble(g.mouth, rng, 0.15)], 2, blur=0.2).paint(graphite, np.float32(0.88), 0.9)
    canvas.lines([part(g.lower_lip, 0.25, 0.75), g.upper_lip], 1, blur=0.25).paint(graphite, np.float32(0.6), 0.55)

    layer = np.zeros((canvas.height, canvas.width), np.uint8)
    canvas.draw_strands(layer, scene.brows, 255, 1)
    brows = layer.astype(np.float32) / 255
    depth = float(np.clip(0.95 - 0.45 * lum, 0.5, 0.92))
    graphite += np.minimum(0.4 * soften(brows, 1.4 * canvas.scale) + 0.75 * brows, 1) * (depth - graphite)
    if traits.beard != "none":
        soft = {"stubble": 0.22, "full": 0.35, "goatee": 0.3, "moustache": 0.3}[traits.beard]
        graphite = _over(graphite, scene.beard_area * soft * (1.1 - lum))
        if traits.beard == "stubble":
            dots = (rng.random(graphite.shape, np.float32) < 0.05).astype(np.float32)
            graphite = _over(graphite, scene.beard_area * np.minimum(soften(dots, 0.7) * 2.2, 1) * 0.5)
        layer[:] = 0
        canvas.draw_strands(layer, scene.beard[::2], 255, 1)
        graphite = _over(graphite, layer.astype(np.float32) * ((0.95 - 0.6 * lum) * 0.75 / 255))
    return graphite


def _lip_ticks(scene: Scene, rng: np.random.Generator) -> list[np.ndarray]:
    g = scene.geometry
    t = rng.uniform(0.12, 0.88, 22)
    ticks = []
    for i, at in enumerate(t):
        lip = g.upper_lip if i % 2 else g.lower_lip
        a, b = g.mouth[round(at * (len(g.mouth) - 1))], lip[round(at * (len(lip) - 1))]
        ticks.append(np.stack([a, a + rng.uniform(0.4, 0.85) * (b - a)]))
    return ticks


def _draw_eye(scene: Scene, eye: Eye, graphite: np.ndarray, rng: np.random.Generator) -> None:
    canvas, traits = scene.canvas, scene.traits
    turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    opening = canvas.full(canvas.fill(eye.opening, blur=0.2))
    canvas.fill(eye.opening, blur=0.2).paint(graphite, np.float32(0.07), 0.95)
    c, r = eye.centre, eye.radius
    iris = float(np.clip(0.85 - 0.7 * traits.iris.mean(), 0.4, 0.8))
    canvas.fill(c + r * circle, blur=0.25).limited(opening).paint(graphite, np.float32(0.85))
    canvas.fill(c + 0.8 * r * circle, blur=0.4).limited(opening).paint(graphite, np.float32(iris))
    canvas.fill(shifted(c, 0, 0.4 * r) + 0.4 * r * circle, blur=0.6).limited(opening).paint(
        graphite, np.float32(iris * 0.6), 0.7
    )
    canvas.fill(c + 0.45 * r * circle, blur=0.2).limited(opening).paint(graphite, np.float32(0.97))
    lid = np.concatenate([eye.upper, shifted(eye.upper[::-1], 0, 2.2)])
    canvas.fill(lid, blur=0.7).limited(opening).paint(graphite, np.float32(0.6), 0.55)
    glint = shifted(c, 1.5 * np.sign(traits.light[0]), -1.5)
    canvas.fill(glint + 0.95 * circle, blur=0.2).limited(opening).paint(graphite, np.float32(0.0))
    canvas.lines([wobble(eye.upper, rng, 0.1)], 2, blur=0.2).paint(graphite, np.float32(0.95), 0.95)
    canvas.lines([part(eye.upper, 0.4, 1.0)], 3, blur=0.2).paint(graphite, np.float32(0.95), 0.8)
    canvas.lines([wobble(eye.lower, rng, 0.12)], 1, blur=0.2).paint(graphite, np.float32(0.7), 0.8)
    canvas.lines([wobble(eye.crease, rng, 0.15)], 1, blur=0.25).paint(
        graphite, np.float32(0.7), 0.35 + 0.5 * traits.lid_fold
    )
    canvas.lines([part(eye.bag, 0.0, 0.7)], 1, blur=0.5).paint(graphite, np.float32(0.5), 0.35)


def _hair(scene: Scene, layer: HairLayer, rng: np.random.Generator, light: float) -> np.ndarray:
    """Graphite of one layer of hair: a smudged base and strokes along the strands."""
    canvas, traits = scene.canvas, scene.traits
    dark = 1 - float(traits.hair_colour.mean())
    lit = np.clip(scene.hair_light * light, 0, 1.1) + 0.34 * layer.shine
    depth = np.clip((0.25 + 0.85 * dark) * (1.45 - 1.0 * lit), 0.06, 0.95)
    base = depth * (0.18 + 0.34 * dark)
    strokes = np.zeros((canvas.height, canvas.width), np.uint8)
    order = rng.permutation(len(layer.strands))
    order = order[: round(len(order) * 0.5)]
    level = np.clip(((1 - layer.tone[order]) * 5).astype(int), 0, 4)
    for value in range(5):
        canvas.draw_strands(strokes, layer.strands[order[level == value]], 90 + 40 * value, 1)
    deep = layer.strands[order[level >= 3]]
    canvas.draw_strands(strokes, deep[:, 1:8], 255, 1)
    lines = strokes.astype(np.float32) / 255
    locks = np.clip(0.62 - soften(layer.texture, 0.8 * canvas.scale), 0, 1) * 1.3
    return _over(base + locks * depth * dark, lines * np.clip(depth * 1.2, 0.12, 0.9))
