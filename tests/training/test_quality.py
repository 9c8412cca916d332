"""The quality benchmark: its rows, its held-out pairs, and a whole small run that is not done twice."""

import itertools
import json
import shutil
import sys

import pytest

from benchmarks import quality
from benchmarks.quality_data import prepare, split_training
from benchmarks.quality_table import GREY, markdown
from fastsketch.errors import FastsketchError
from fastsketch.training.pairs import find_pairs

TINY = ["width=4", "blocks=5", "discriminator_width=4", "projection_dim=8", "num_patches=16", "epochs=1"]
TINY += ["decay_epochs=0", "image_size=40", 'perceptual_weights="random"']


def test_each_row_adds_one_part(tmp_path):
    names = ("random", "+regions", "+dynamic", "+mask", "+pixel", "+perceptual")
    rows = [quality.row_config(name, 0, tmp_path, tmp_path, quality.SCALES["small"]) for name in names]
    added = []
    for before, after in itertools.pairwise(rows):
        a, b = json.loads(before.to_json()), json.loads(after.to_json())
        added.append([name for name in a if a[name] != b[name]])
    assert added == [["regions"], ["dynamic"], ["mask"], ["lambda_pixel"], ["lambda_perceptual"]]
    everything = [quality.row_config(name, 0, tmp_path, tmp_path, quality.SCALES["full"]) for name in quality.ROWS]
    assert len({(config.epochs, config.decay_epochs) for config in everything}) == 1


def test_held_out_pairs_are_training_pairs_and_the_same_each_time(tmp_path, data):
    pairs = find_pairs(data, "train")
    rest, held = split_training(pairs, 2)
    assert sorted(p.name for p in rest + held) == [p.name for p in pairs]
    assert split_training(pairs, 2) == (rest, held) != split_training(pairs, 2, seed=1)
    folder = prepare(data, tmp_path / "held", holdout=2)
    assert [p.name for p in find_pairs(folder, "test")] == sorted(p.name for p in held)
    assert all(p.mask is not None for p in find_pairs(folder, "train"))
    with pytest.raises(ValueError, match="held"):
        split_training(pairs, 5)


def test_a_run_of_the_benchmark(tmp_path, data, monkeypatch, capsys):
    for split in ("train", "test"):
        shutil.rmtree(data / "blobs" / split / "masks")
    monkeypatch.setattr(quality, "IMAGE_METRICS", ("fsim", "ssim"))
    command = ["quality", "--data", str(data), "--out", str(tmp_path / "out"), "--scale", "small", "--device", "cpu"]
    rows = ["--rows", GREY, "fastcut", "unpaired", "+pixel", "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", [*command, *rows, "--set", *TINY])
    quality.main()
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| fastcut | 2 | " in table and "| +pixel | 2 | " in table and "±" in table and "| cut |" not in table
    lines = (tmp_path / "out" / "results.csv").read_text().splitlines()
    header = lines.index("row,seed,steps,seconds,subset,images,fsim,ssim")
    assert len(lines[header + 1 :]) == 2 * (1 + 3 * 2)  # the subset and all of it, for the photo and three rows of two
    weights = tmp_path / "out" / "runs" / "pixel-1" / "generator.safetensors"
    before = weights.stat().st_mtime_ns
    quality.main()
    assert weights.stat().st_mtime_ns == before
    assert table in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, *rows, "--set", *TINY, "lr=0.1"])
    with pytest.raises(FastsketchError, match="other lr"):
        quality.main()


def test_spread_is_the_sample_standard_deviation():
    runs = [
        {"row": "cut", "seed": seed, "steps": 1, "seconds": 1.0, "subsets": {"all": {"images": 2, "fsim": value}}}
        for seed, value in ((0, 0.5), (1, 0.7))
    ]
    assert "| cut | 2 | 0.6000 ± 0.1414 |" in markdown(runs, ["fsim"])
    assert "| cut | 1 | 0.5000 |" in markdown(runs[:1], ["fsim"])


def test_minutes_choose_the_epochs_once_for_all_rows(tmp_path, data, monkeypatch):
    monkeypatch.setattr(quality, "IMAGE_METRICS", ("fsim",))
    command = ["quality", "--data", str(data), "--out", str(tmp_path / "out"), "--scale", "small", "--device", "cpu"]
    command += ["--rows", "+pixel", "--seeds", "0", "--minutes", "1e-9", "--set", *TINY, "lambda_perceptual=0"]
    monkeypatch.setattr(sys, "argv", command)
    quality.main()
    saved = json.loads((tmp_path / "out" / "plan.json").read_text())["settings"]
    assert (saved["epochs"], saved["decay_epochs"]) == (1, 1)  # the least: one at full rate, one decaying
    monkeypatch.setattr(quality, "epochs_within", None)  # a second call reads the plan
    quality.main()
