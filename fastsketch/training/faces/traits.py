"""What tells one procedural face from another: the draw of all its traits from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Linear-light reflectances, red green blue, from light to dark skin.
_SKIN = np.array(
    [
        [0.80, 0.56, 0.45],
        [0.74, 0.48, 0.36],
        [0.66, 0.41, 0.28],
        [0.55, 0.32, 0.20],
        [0.38, 0.20, 0.115],
        [0.21, 0.105, 0.06],
    ]
)
# Display (sRGB) colours of lit hair, with the weight of each.
_HAIR = {
    "black": ((0.20, 0.17, 0.16), 3.0),
    "dark brown": ((0.30, 0.22, 0.17), 3.0),
    "brown": ((0.44, 0.31, 0.22), 2.5),
    "light brown": ((0.56, 0.43, 0.30), 1.6),
    "blond": ((0.78, 0.65, 0.44), 1.5),
    "red": ((0.58, 0.31, 0.17), 0.8),
    "grey": ((0.62, 0.61, 0.60), 0.0),
    "white": ((0.84, 0.83, 0.81), 0.0),
}
_IRIS = ((0.30, 0.19, 0.11), (0.42, 0.29, 0.16), (0.36, 0.47, 0.58), (0.36, 0.45, 0.34), (0.45, 0.5, 0.52))
_CLOTH = (
    (0.13, 0.14, 0.17), (0.20, 0.26, 0.38), (0.36, 0.40, 0.46), (0.45, 0.19, 0.20), (0.26, 0.35, 0.29),
    (0.62, 0.60, 0.56), (0.55, 0.63, 0.72), (0.70, 0.55, 0.52), (0.42, 0.33, 0.27), (0.33, 0.25, 0.38),
)  # fmt: skip

MALE_STYLES = {"short": 3.0, "quiff": 2.0, "crop": 2.0, "bald": 0.9, "curly": 0.7, "long": 0.4}
FEMALE_STYLES = {
    "long": 3.0,
    "bob": 2.0,
    "fringe": 1.6,
    "pulled": 2.0,
    "curly": 0.9,
    "wavy": 2.0,
    "short": 0.5,
}


@dataclass(frozen=True)
class Traits:
    """A face in numbers. Lengths are face units, colours float32 [3] in [0, 1], the rest 0..1 unless said otherwise.

    Arrays are float32 so that full-size maps computed from them stay float32.
    """

    male: bool
    age: float  # years
    skin: np.ndarray  # linear reflectance
    hair_colour: np.ndarray  # display colour
    hair_style: str
    hair_volume: float
    parting: float  # x of the parting
    hairline: float  # y of the hairline, negative
    iris: np.ndarray
    face_width: float  # factors about 1
    jaw: float
    chin: float  # units added to the face's length
    eye_size: float
    eye_open: float
    eye_tilt: float  # units
    eye_gap: float  # units from the midline to a pupil
    lid_fold: float
    brow_height: float
    brow_weight: float
    brow_arch: float
    nose_width: float
    nose_length: float
    mouth_width: float
    lip_fullness: float
    smile: float  # units that the mouth's corners rise
    ear: float
    glasses: str  # "none", "round", "square" or "half"
    beard: str  # "none", "stubble", "moustache", "goatee" or "full"
    freckles: bool
    clothes: str
    cloth: np.ndarray
    light: np.ndarray  # unit vector towards the light, z towards the viewer
    roll: float  # degrees
    yaw: float  # units that the face's middle moves
    pitch: float
    size: float
    offset: tuple[float, float]


def _choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    names = list(weights)
    p = np.array([weights[name] for name in names])
    return names[int(rng.choice(len(names), p=p / p.sum()))]


def draw_traits(rng: np.random.Generator) -> Traits:
    """Draw one face's traits."""
    male = bool(rng.random() < 0.52)
    age = float(np.clip(19 + rng.gamma(1.7, 11.0), 19, 74))
    tone = float(np.clip(rng.beta(1.1, 1.7) * 5.0, 0, 4.9))
    low = int(tone)
    skin = _SKIN[low] + (tone - low) * (_SKIN[low + 1] - _SKIN[low])
    skin = skin * rng.normal(1.0, 0.03, 3)

    weights = {name: weight for name, (_, weight) in _HAIR.items()}
    if tone > 2.2:
        weights = {"black": 4.0, "dark brown": 2.0}
    name = _choose(rng, weights)
    grey = float(np.clip((age - 42) / 22 + rng.normal(0, 0.3), 0, 1)) if age > 36 else 0.0
    hair = np.array(_HAIR[name][0]) * rng.normal(1.0, 0.06)
    hair = hair + grey * 0.85 * (np.array(_HAIR["white" if age > 62 else "grey"][0]) - hair)

    style = _choose(rng, MALE_STYLES if male else FEMALE_STYLES)
    if male and age > 52 and rng.random() < 0.35:
        style = "bald"
    beard = "none"
    if male:
        beard = _choose(rng, {"none": 4.5, "stubble": 2.2, "moustache": 0.9, "goatee": 0.9, "full": 1.4})
    iris = _IRIS[int(rng.integers(0, 2 if tone > 2.2 else len(_IRIS)))]
    clothes = _choose(
        rng,
        {"crew": 2.0, "shirt": 2.2, "suit": 2.0 if male else 0.7, "vneck": 1.0 if male else 2.2, "roll": 0.9},
    )  # fmt: skip
    azimuth = rng.choice([-1, 1]) * rng.uniform(0.18, 0.75)
    light = np.array([azimuth, -rng.uniform(0.4, 0.7), 1.0])
    recede = np.clip((age - 30) / 40, 0, 1) * rng.uniform(0, 7) if male else 0.0
    return Traits(
        male=male,
        age=age,
        skin=np.clip(skin, 0.03, 0.9).astype(np.float32),
        hair_colour=np.clip(hair, 0.08, 0.95).astype(np.float32),
        hair_style=style,
        hair_volume=float(rng.uniform(0.0, 1.0)),
        parting=float(rng.choice([-1, 1]) * rng.uniform(2, 22)),
        hairline=float(-50 + rng.uniform(-4, 4) - recede),
        iris=(np.array(iris) * rng.normal(1, 0.08)).astype(np.float32),
        face_width=float(np.clip(rng.normal(1.0 if male else 0.965, 0.035), 0.9, 1.09)),
        jaw=float(np.clip(rng.normal(1.05 if male else 0.93, 0.055), 0.84, 1.17)),
        chin=float(np.clip(rng.normal(0.8 if male else -2.0, 2.4), -6, 6)),
        eye_size=float(np.clip(rng.normal(0.97 if male else 1.07, 0.05), 0.86, 1.2)),
        eye_open=float(np.clip(rng.normal(0.92 if male else 1.06, 0.11), 0.68, 1.3)),
        eye_tilt=float(rng.normal(0.3, 0.6)),
        eye_gap=float(np.clip(rng.normal(21.0, 0.7), 19.6, 22.6)),
        lid_fold=float(rng.uniform(0.2, 1.0)),
        brow_height=float(rng.normal(0.6 if male else -0.8, 1.0)),
        brow_weight=float(np.clip(rng.normal(1.2 if male else 0.8, 0.16), 0.5, 1.6)),
        brow_arch=float(np.clip(rng.normal(0.7 if male else 1.3, 0.4), 0.1, 2.2)),
        nose_width=float(np.clip(rng.normal(1.05 + 0.035 * tone, 0.09), 0.84, 1.4)),
        nose_length=float(rng.normal(0.0, 1.5)),
        mouth_width=float(np.clip(rng.normal(1.0, 0.07), 0.85, 1.18)),
        lip_fullness=float(np.clip(rng.normal(0.88 if male else 1.12, 0.14) + 0.05 * tone, 0.6, 1.6)),
        smile=float(np.clip(rng.normal(1.6, 0.9), 0.3, 3.4)),
        ear=float(rng.uniform(0.9, 1.12)),
        glasses=_choose(rng, {"none": 7.0, "round": 0.9, "square": 1.1, "half": 0.6}),
        beard=beard,
        freckles=bool(tone < 1.3 and rng.random() < 0.25),
        clothes=clothes,
        cloth=(np.array(_CLOTH[int(rng.integers(len(_CLOTH)))]) * rng.normal(1, 0.08)).astype(np.float32),
        light=(light / np.linalg.norm(light)).astype(np.float32),
        roll=float(np.clip(rng.normal(0, 1.8), -4, 4)),
        yaw=float(np.clip(rng.normal(0, 2.2), -5, 5)),
        pitch=float(np.clip(rng.normal(0, 1.2), -2.5, 2.5)),
        size=float(np.clip(rng.normal(1.0, 0.025), 0.95, 1.05)),
        offset=(float(rng.normal(0, 1.2)), float(np.clip(rng.normal(4.0, 1.6), 0, 8))),
    )
