"""Generators that draw something without being trained, a run made of one, and a real browser."""

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastsketch.nn import ResnetGenerator
from fastsketch.training.checkpoint import Training, save_generator
from fastsketch.training.config import PRESETS, TrainConfig
from fastsketch.training.faces import write_faces

SHAPE = {"in_channels": 3, "out_channels": 1, "width": 4, "blocks": 5, "mask_channel": True, "attention": True}


def write_generator(path: Path, seed: int = 3, training: Training | None = None, **changes) -> Path:
    """The weights of a small generator whose every part shows in its drawings."""
    torch.manual_seed(seed)
    generator = ResnetGenerator(**{**SHAPE, **changes})
    with torch.no_grad():
        for name, value in generator.named_parameters():
            value.mul_(50 if name.endswith("weight") else 1)
            if name.endswith("gain"):
                value.fill_(0.5)
    save_generator(path, generator, training)
    return path


@pytest.fixture
def lively(tmp_path: Path):
    """lively(**changes): the weights file of such a generator."""
    return lambda **changes: write_generator(tmp_path / "lively" / "generator.safetensors", **changes)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four test faces of 64×80 pixels and one to train on."""
    return write_faces(tmp_path_factory.mktemp("faces") / "set", train=1, test=4, height=80, width=64)


@pytest.fixture
def a_run(tmp_path: Path, faces: Path):
    """a_run(name, preset, seed, kept, **changes): the folder of a run as training would leave it.

    kept: its weights' file says how far it was trained, as older ones do not.
    """

    def make(name: str = "first", preset: str = "fsscl", seed: int = 3, kept: bool = True, **changes) -> Path:
        folder = tmp_path / name
        values = {
            "data": str(faces),
            "preset": preset,
            **PRESETS[preset],
            "image_size": 80,
            "width": 4,
            "blocks": 5,
            "num_patches": 32,
        }
        config = TrainConfig(out=folder, **{**values, **changes})
        training = Training(config.image_size, step=50, epoch=3) if kept else None  # stopped before its last losses
        parts = {"mask_channel": config.mask, "attention": config.attention}
        write_generator(folder / "generator.safetensors", seed, training, **parts)
        (folder / "settings.json").write_text(config.to_json())
        with (folder / "losses.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["step", "discriminator", "nce"])
            rows.writerows([step, 0.25 + 0.01 * (step % 3), 8 / step] for step in range(1, 61))
        return folder

    return make


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A headless chromium: FASTSKETCH_CHROMIUM, or the one on the path."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = (os.environ.get("FASTSKETCH_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # chromium's sandbox does not run as root
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """page(**options): a fresh page with `errors` (console and script errors) and `requests` (what it asked for)."""
    opened = []

    def make(**options):
        page = browser.new_page(**options)
        opened.append(page)
        page.errors, page.requests = [], []
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        return page

    yield make
    for page in opened:
        page.close()
