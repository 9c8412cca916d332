"""A tiny data set and tiny settings that train a step in milliseconds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastsketch.training.config import PRESETS, TrainConfig
from fastsketch.training.trainer import Trainer


def draw_pair(seed: int, height: int = 40, width: int = 32) -> tuple[Image.Image, Image.Image, Image.Image]:
    """A blob on white as photo, its outline as sketch, and its mask."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centre, radius = random.uniform(0.4, 0.6, 2), random.uniform(0.25, 0.4)
    inside = (y / height - centre[0]) ** 2 + (x / width - centre[1]) ** 2 < radius**2
    colour = random.integers(40, 200, 3)
    photo = np.where(inside[..., None], colour + random.integers(-20, 20, (height, width, 3)), 255)
    sketch = np.where(inside, random.integers(60, 255, (height, width)), 250)
    images = (photo.clip(0, 255), sketch, inside * 255)
    return tuple(Image.fromarray(image.astype(np.uint8)) for image in images)


def write_pairs(root: Path, train: int = 5, test: int = 2, masks: bool = True, photos: str = "png") -> Path:
    """`root` in the layout of CUFS; `photos`: their format."""
    for split, start, count in (("train", 0, train), ("test", 100, test)):
        for number in range(start, start + count):
            for kind, image in zip(("photos", "sketches", "masks"), draw_pair(number), strict=True):
                if kind != "masks" or masks:
                    suffix = photos if kind == "photos" else "png"
                    path = root / "blobs" / split / kind / f"{number:03d}.{suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    image.save(path)
    return root


@pytest.fixture
def data(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Parametrised indirectly: the photos' format."""
    return write_pairs(tmp_path / "data", photos=getattr(request, "param", "png"))


@pytest.fixture
def tiny(tmp_path: Path, data: Path):
    """tiny(preset="fsscl", **changes): settings of a run in tmp_path/run."""

    def make(preset: str = "fsscl", **changes) -> TrainConfig:
        sizes = {
            "image_size": 40,
            "crop_size": 32,
            "width": 4,
            "blocks": 5,
            "discriminator_width": 4,
            "projection_dim": 8,
            "num_patches": 16,
            "log_every": 1,
            "pictures": 1,
            "device": "cpu",
            "precision": "float32",  # auto is another one on processors with bfloat16
            "perceptual_weights": "random",
        }
        config = TrainConfig(data=str(data), out=tmp_path / "run", **{"preset": preset, **PRESETS[preset], **sizes})
        return replace(config, **{"epochs": 1, "decay_epochs": 1, "lambda_perceptual": 0.0, **changes})

    return make


@pytest.fixture
def weights(tiny) -> Path:
    """The generator's file of a run."""
    trained = Trainer(tiny(decay_epochs=0), Path(tiny().data), quiet=True)
    trained.run()
    return trained.paths.generator
