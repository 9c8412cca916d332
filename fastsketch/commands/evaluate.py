"""`fastsketch evaluate GENERATED --data DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import tyro

from fastsketch.commands import data_folder
from fastsketch.errors import FastsketchError

if TYPE_CHECKING:
    from fastsketch.metrics import Item
    from fastsketch.training.pairs import Pair

Metric = Literal["fsim", "ssim", "lpips-alex", "lpips-vgg", "fid"]


@dataclass
class Evaluate:
    """Compare drawings with the sketches of a data set: FSIM, SSIM, LPIPS, FID, per subset and over all."""

    generated: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of drawings: SUBSET/NAME.png, or NAME.png where one subset alone has a photo of that name."""
    grey_photos: bool = False
    """Evaluate the photos themselves, made grey, in place of drawings: what learning nothing would score."""
    data: str = tyro.MISSING
    """The data set's folder."""
    split: Literal["train", "test"] = "test"
    """Which part of it."""
    out: Path | None = None
    """Folder for metrics.csv, summary.csv and metrics.json; default: the folder of drawings."""
    image_size: int | None = None
    """Scale larger sketches down to fit this many pixels first, as drawings of reduced size were."""
    metrics: tuple[Metric, ...] = get_args(Metric)
    """What to compute."""
    weights_dir: Path | None = None
    """Folder of pretrained weights (alexnet_features.safetensors, vgg16_features.safetensors)."""
    inception: Path | None = None
    """Inception weights, for FID."""
    batch_size: int = 8
    """Pictures at a time."""
    device: str = "auto"
    """cpu, cuda …; auto: a GPU if there is one."""
    quiet: bool = False
    """No progress bar."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    from fastsketch.metrics import evaluate, grey_photo_yardstick
    from fastsketch.training.pairs import find_pairs, note_on_split
    from fastsketch.training.trainer import choose_device

    options = tyro.cli(Evaluate, args=arguments, prog="fastsketch evaluate")
    if (options.generated is None) != options.grey_photos:
        raise FastsketchError("give either a folder of drawings or --grey-photos")
    out = options.out or options.generated
    if out is None:
        raise FastsketchError("--grey-photos needs --out DIR for its tables")
    if options.batch_size < 1:
        raise FastsketchError(f"--batch-size must be at least 1, got {options.batch_size}")
    if options.image_size is not None and options.image_size < 1:
        raise FastsketchError(f"--image-size must be at least 1, got {options.image_size}")
    if not options.metrics:
        raise FastsketchError("--metrics needs one metric at least")
    if options.generated is not None and not options.generated.is_dir():
        raise FastsketchError(f"{options.generated}: no such folder of drawings")
    data = data_folder(options.data, out / "data")
    pairs = find_pairs(data, options.split)
    if (note := note_on_split(data, options.split)) and not options.grey_photos:
        print(note)
    settings = {
        "metrics": options.metrics,
        "weights_dir": options.weights_dir,
        "inception": options.inception,
        "device": str(choose_device(options.device)),
        "batch_size": options.batch_size,
        "quiet": options.quiet,
        "image_size": options.image_size,
    }
    if options.grey_photos:
        result = grey_photo_yardstick(pairs, **settings)
    else:
        result = evaluate(drawings_of(pairs, options.generated), **settings)
    print(result.table(), flush=True)  # whether or not it can be saved
    result.save(out)
    print(f"saved in {out}: metrics.csv, summary.csv, metrics.json")
    return 0


def drawings_of(pairs: Sequence[Pair], folder: Path) -> list[Item]:
    """The drawings of the pairs' photos, as something to evaluate.

    SUBSET/NAME.png, or NAME.png where one subset alone has a photo of that name.

    Raises:
        FastsketchError: a photo without a drawing.
    """
    from fastsketch.metrics import Item

    subsets: dict[str, list[str]] = {}
    for pair in pairs:
        subsets.setdefault(pair.name, []).append(pair.subset)
    items = []
    for pair in pairs:
        path, flat = folder / pair.subset / f"{pair.name}.png", folder / f"{pair.name}.png"
        sharing = subsets[pair.name]
        if not path.is_file() and flat.is_file() and len(sharing) > 1:
            raise FastsketchError(f"{path}: no drawing of {pair.photo} ({flat} may be of {' or '.join(sharing)})")
        if not path.is_file() and not flat.is_file():
            raise FastsketchError(f"{path}: no drawing of {pair.photo}")
        items.append(Item(pair.subset, pair.name, path if path.is_file() else flat, pair.sketch))
    return items
