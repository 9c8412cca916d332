"""Quality, part by part: train, draw and evaluate each row of the ablation with each seed.

    python -m benchmarks.quality --data CUFS --out DIR --scale small --weights-dir WEIGHTS
    python -m benchmarks.quality --data CUFS --out DIR --scale full --weights-dir WEIGHTS --minutes 10    # one GPU

Rows are the paper's parts, one added at a time, `cut`, `fastcut`, and the method without paired data. All train for
equally many steps. What is done is not done again and what is half done goes on, so the command can be stopped
and repeated. Runs go seed by seed. DIR/results.csv has a line a run and subset, DIR/table.md means and spreads.
"""

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality_data import prepare
from benchmarks.quality_table import GREY, write_results
from fastsketch.bench.machine import processor
from fastsketch.errors import FastsketchError
from fastsketch.files import write_text
from fastsketch.metrics import IMAGE_METRICS, Item, evaluate, grey_photo_yardstick
from fastsketch.training.checkpoint import load_generator
from fastsketch.training.config import PRESETS, TrainConfig
from fastsketch.training.generate import draw_sketches
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import find_pairs
from fastsketch.training.trainer import Trainer, choose_device

_UNAIDED = {"lambda_pixel": 0.0, "lambda_perceptual": 0.0}
ROWS: dict[str, dict[str, Any]] = {
    "cut": PRESETS["cut"],
    "fastcut": PRESETS["fastcut"],
    "random": {"regions": False, "dynamic": False, "mask": False, **_UNAIDED},
    "+regions": {"dynamic": False, "mask": False, **_UNAIDED},
    "+dynamic": {"mask": False, **_UNAIDED},
    "+mask": _UNAIDED,
    "+pixel": {"lambda_perceptual": 0.0},
    "+perceptual": {},
    "unpaired": {"unpaired": True, **_UNAIDED},
}
"""What each row changes from the full method. `cut` and `fastcut` have CUT's small initial weights and norms besides.
`random` is CUT's sampling with attention in the generator, so that up to `+dynamic` only the sampling changes;
`+perceptual` is the full method, `fsscl`; `unpaired` is `+mask` with random sketches."""

SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "image_size": 64,
        "width": 12,
        "discriminator_width": 12,
        "projection_dim": 64,
        "num_patches": 64,
        "density_window": 3,  # of a 16×16 map: 7 is for 64×64
        "epochs": 1,
        "decay_epochs": 1,
        "lr": 5e-4,
        "masks": "folder",
        "pictures": 0,
    },
    "full": {"epochs": 20, "decay_epochs": 20, "precision": "bfloat16", "masks": "folder"},
}
"""Settings of a scale, the same for all rows; the epochs win over a preset's."""


def row_config(row: str, seed: int, out: Path, data: Path, settings: dict[str, Any]) -> TrainConfig:
    """The settings of a run: the scale's, then the row's own, but never its schedule."""
    preset = row if row in PRESETS else "fsscl"
    changes = {name: value for name, value in ROWS[row].items() if name not in ("epochs", "decay_epochs")}
    return TrainConfig(data=str(data), out=out, preset=preset, seed=seed, **{**settings, **changes})


def epochs_within(minutes: float, settings: dict[str, Any], data: Path, out: Path) -> dict[str, int]:
    """Epochs, half of them decaying, in which the dearest row (the full method) takes `minutes` on this machine.

    Times whole steps of a throw-away run, twice: the first round warms up.
    """
    trainer = Trainer(row_config("+perceptual", 0, out, data, settings), data, quiet=True)
    seconds = 0.0
    for _ in range(2):
        started, steps = time.perf_counter(), 0
        for batch in trainer.batches.of_epoch(0):
            trainer.train_step(batch)
            steps += 1
            if steps >= 10 and time.perf_counter() - started > 5:
                break
        seconds = (time.perf_counter() - started) / steps
    per_epoch = -(-len(trainer.dataset) // trainer.config.batch_size)
    epochs = max(2, int(minutes * 60 / seconds / per_epoch))
    print(f"{seconds * 1e3:.1f} ms a step: {epochs} epochs of {per_epoch} steps in {minutes:g} minutes", flush=True)
    return {"epochs": epochs - epochs // 2, "decay_epochs": epochs // 2}


def plan(arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """The settings of all runs in this folder: decided once, then read back."""
    kept = arguments.out / "plan.json"
    changes = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in arguments.set)}
    if arguments.rehearse:
        changes |= {"epochs": 1, "decay_epochs": 0}
    asked = {**SCALES[arguments.scale], **changes}
    if kept.is_file():
        saved = json.loads(kept.read_text())
        same = {name for name in asked if name not in ("epochs", "decay_epochs") or not arguments.minutes}
        if different := [name for name in same if saved["settings"].get(name) != asked[name]]:
            raise FastsketchError(f"{kept}: this folder's runs have other {', '.join(sorted(different))}")
        return saved["settings"]
    if arguments.minutes:
        own = {**asked, "device": arguments.device, "weights_dir": arguments.weights_dir}
        asked |= epochs_within(arguments.minutes, own, data, arguments.out / "timing")
    write_text(kept, json.dumps({"scale": arguments.scale, "settings": asked}, indent=2) + "\n")
    return asked


def run_row(config: TrainConfig, data: Path, weights_dir: Path | None) -> dict[str, Any] | None:
    """Train (or go on), draw the test photos, evaluate; None when stopped by a signal."""
    resumed = (config.out / "checkpoint.pt").exists()
    trainer = Trainer(replace(config, resume=resumed), data)
    started = time.perf_counter()
    if not trainer.run():
        return None
    seconds = None if resumed else round(time.perf_counter() - started, 1)
    pairs = find_pairs(data, "test")
    generator = load_generator(trainer.paths.generator, trainer.device)
    size = config.image_size if config.image_size < 256 else None
    folder, masks = config.out / "drawn", MaskSource("folder")
    drawn = draw_sketches(generator, pairs, folder, masks, image_size=size, overwrite=True, quiet=True)
    items = [Item(p.subset, p.name, path, p.sketch) for p, path in zip(pairs, drawn, strict=True)]
    result = evaluate(
        items,
        metrics=IMAGE_METRICS,
        weights_dir=weights_dir,
        device=trainer.device,
        batch_size=32,
        quiet=True,
        image_size=size,
    )
    return {"steps": trainer.step, "seconds": seconds, "subsets": result.summary}


def run_grey(settings: dict[str, Any], data: Path, weights_dir: Path | None, device: str) -> dict[str, Any]:
    """The yardstick: each photo, made grey, in place of a drawing."""
    size = settings.get("image_size", 256)
    result = grey_photo_yardstick(
        find_pairs(data, "test"),
        image_size=size if size < 256 else None,
        metrics=IMAGE_METRICS,
        weights_dir=weights_dir,
        device=choose_device(device),
        batch_size=32,
        quiet=True,
    )
    return {"steps": 0, "seconds": None, "subsets": result.summary}


def machine(device: str) -> str:
    chosen = choose_device(device)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else processor()
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}, threads {torch.get_num_threads()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="SUBSET/{train,test}/{photos,sketches[,masks]}")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs, results.csv and table.md")
    parser.add_argument("--scale", choices=SCALES, required=True)
    parser.add_argument("--rows", nargs="+", choices=[GREY, *ROWS], default=[GREY, *ROWS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, help="choose the epochs so that the full method trains this long here")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=JSON", help="settings other than the scale's")
    parser.add_argument("--weights-dir", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rehearse", action="store_true", help="one pair of each subset, one epoch: does it run?")
    arguments = parser.parse_args()

    data = prepare(arguments.data, arguments.out / "data", most=1 if arguments.rehearse else None)
    settings = plan(arguments, data)
    about = {"scale": arguments.scale, "machine": machine(arguments.device), "settings": json.dumps(settings)}
    if arguments.rehearse:
        about["scale"] += ", a rehearsal: the figures mean nothing"
    for seed in arguments.seeds:
        for row in arguments.rows:
            name = GREY if row == GREY else f"{row.removeprefix('+')}-{seed}"
            done = arguments.out / "runs" / name / "result.json"
            if done.is_file():
                continue
            print(f"{time.strftime('%H:%M:%S')} {row}, seed {seed}", flush=True)
            if row == GREY:
                result = run_grey(settings, data, arguments.weights_dir, arguments.device)
            else:
                config = row_config(row, seed, done.parent, data, settings)
                config = replace(config, device=arguments.device, weights_dir=arguments.weights_dir)
                result = run_row(config, data, arguments.weights_dir)
            if result is None:
                raise SystemExit(130)
            result |= {"row": row, "seed": None if row == GREY else seed}
            write_text(done, json.dumps(result, indent=2) + "\n")
            write_results(arguments.out, about, IMAGE_METRICS)
    print(write_results(arguments.out, about, IMAGE_METRICS))


if __name__ == "__main__":
    main()
