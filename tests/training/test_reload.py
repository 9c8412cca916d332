"""A trained generator reloaded into a fresh process draws the same sketches, bit for bit."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

from fastsketch.errors import FastsketchError
from fastsketch.nn import ResnetGenerator
from fastsketch.training.generate import draw_sketches, find_photos
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import find_pairs
from fastsketch.training.trainer import Trainer

FRESH_PROCESS = """
import sys
from pathlib import Path
import torch
from fastsketch.training.checkpoint import load_checkpoint, load_generator
from fastsketch.training.generate import draw_sketches
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import find_pairs
from fastsketch.training.run_files import load_settings
from fastsketch.training.translator import build_generator

run, data, inputs = (Path(argument) for argument in sys.argv[1:])
torch.set_num_threads(1)
given = torch.load(inputs, weights_only=True)
from_weights = load_generator(run / "generator.safetensors")
from_checkpoint = build_generator(load_settings(run / "settings.json")).eval()
state = load_checkpoint(run / "checkpoint.pt", torch.device("cpu"))
from_checkpoint.load_state_dict(state["networks"]["generator"])
with torch.inference_mode():
    outputs = [generator(given["photo"], given["mask"]) for generator in (from_weights, from_checkpoint)]
torch.save([output.clone() for output in outputs], run / "outputs.pt")
draw_sketches(from_weights, find_pairs(data, "test"), run / "fresh", MaskSource("auto"), quiet=True)
"""


def test_a_fresh_process_draws_the_same_bits(tiny, data, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over another number of threads may round otherwise
    try:
        run = Trainer(tiny(decay_epochs=0), data, quiet=True)
        assert run.run()
        generator = run.translator.generator.eval()
        given = {"photo": torch.rand(2, 3, 48, 40) * 2 - 1, "mask": torch.rand(2, 1, 48, 40)}
        torch.save(given, tmp_path / "inputs.pt")
        with torch.inference_mode():
            expected = generator(given["photo"], given["mask"])
        drawn = draw_sketches(generator, find_pairs(data, "test"), tmp_path / "here", MaskSource("auto"), quiet=True)
    finally:
        torch.set_num_threads(threads)
    command = [sys.executable, "-c", FRESH_PROCESS, str(run.paths.root), str(data), str(tmp_path / "inputs.pt")]
    subprocess.run(command, check=True, timeout=300)
    for output in torch.load(run.paths.root / "outputs.pt", weights_only=True):
        assert torch.equal(output, expected)
    for path in drawn:
        fresh = run.paths.root / "fresh" / path.relative_to(tmp_path / "here")
        assert fresh.read_bytes() == path.read_bytes()


def test_photos_too_small_to_draw_are_named(tmp_path):
    generator = ResnetGenerator(width=4, blocks=5, attention=False, mask_channel=False).eval()
    for name, size in (("narrow", (400, 20)), ("tiny", (3, 3))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    (tmp_path / "._narrow.png").write_bytes(b"of another system")
    photos = find_photos([tmp_path])
    assert [photo.name for photo in photos] == ["narrow", "tiny"]
    with pytest.raises(FastsketchError, match=r"narrow\.png: 400×20 pixels, scaled down to 64×3; .* needs 8"):
        draw_sketches(generator, photos[:1], tmp_path / "drawn", MaskSource("none"), image_size=64, quiet=True)
    with pytest.raises(FastsketchError, match=r"tiny\.png: 3×3 pixels; the shorter side needs 8"):
        draw_sketches(generator, photos[1:], tmp_path / "drawn", MaskSource("none"), quiet=True)
