"""Generators that draw something without being trained."""

from pathlib import Path

import pytest
import torch

from fastsketch.nn import ResnetGenerator
from fastsketch.training.checkpoint import save_generator


@pytest.fixture
def lively(tmp_path: Path):
    """lively(**changes): the weights file of a small generator whose every part shows in its drawings."""

    def make(**changes) -> Path:
        shape = {"in_channels": 3, "out_channels": 1, "width": 4, "blocks": 5, "mask_channel": True, "attention": True}
        shape |= changes
        torch.manual_seed(3)
        generator = ResnetGenerator(**shape)
        with torch.no_grad():
            for name, value in generator.named_parameters():
                value.mul_(50 if name.endswith("weight") else 1)
                if name.endswith("gain"):
                    value.fill_(0.5)
        path = tmp_path / "lively" / "generator.safetensors"
        save_generator(path, generator, shape)
        return path

    return make
