"""Looking at a run: draw its test photos, score them, keep some to show."""

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from fastsketch.drawing import draw
from fastsketch.errors import FastsketchError
from fastsketch.metrics import IMAGE_METRICS, Evaluation, Item, evaluate
from fastsketch.progress import progress_bar
from fastsketch.training.checkpoint import Training, load_generator, read_training
from fastsketch.training.config import TrainConfig
from fastsketch.training.generate import read_for_drawing
from fastsketch.training.history import LossHistory
from fastsketch.training.images import fit_within, picture_size, read_sketch, save_image
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import Pair, find_pairs
from fastsketch.training.run_files import RunPaths, find_generator, find_weights_dir, load_settings
from fastsketch.training.translator import structure_sampler

POINTS_SEED = 0


@dataclass(frozen=True)
class Shown:
    """A picture of the gallery.

    Attributes:
        subset: of the data set.
        name: the photo's.
        photo: RGB.
        points: the structure map and the sampled points; larger, of the photo's proportions.
        generated: of the photo's size.
        real: the drawn sketch, of the photo's size; None where unpaired data has none for this photo.
        scores: by metric, those that were available; none without a sketch.
    """

    subset: str
    name: str
    photo: Image.Image
    points: Image.Image
    generated: Image.Image
    real: Image.Image | None
    scores: dict[str, float]


@dataclass(frozen=True)
class Look:
    """All that the page shows of a run.

    Attributes:
        name: the run's folder, by name.
        folder: the run's folder.
        data: the data set's folder.
        config: the settings.
        training: how far the generator was trained; None where its file does not say.
        history: the losses.
        drawn: number of test photos.
        evaluation: over all of them, or those that have a sketch.
        pictures: a digest of these photos and sketches: equal for runs tested on the same ones.
        gallery: the pictures shown, in the data set's order.
        has_map: whether the generator has a structure map.
    """

    name: str
    folder: Path
    data: Path
    config: TrainConfig
    training: Training | None
    history: LossHistory
    drawn: int
    evaluation: Evaluation
    pictures: str
    gallery: list[Shown]
    has_map: bool

    @property
    def scored(self) -> int:
        """Number of test photos whose drawing was compared with a sketch."""
        return len(self.evaluation.rows)


def run_settings(run: Path) -> TrainConfig:
    """The settings of a run.

    Raises:
        FastsketchError: not the folder of a run.
    """
    path = RunPaths(run).settings
    if not path.is_file():
        hint = f"; to write the page there: -o {run}" if run.suffix.lower() in (".html", ".htm") else ""
        raise FastsketchError(f"{run}: not the folder of a run (no {path.name}){hint}")
    return load_settings(path)


def look_at_run(
    run: Path,
    data: Path,
    *,
    limit: int = 48,
    weights_dir: Path | None = None,
    device: torch.device | str = "cpu",
    quiet: bool = False,
) -> Look:
    """Draw the test photos of a data set as `fastsketch generate` would, and score them as `fastsketch evaluate`.

    Photos of an unpaired run that have no sketch of their name and size are drawn, and not scored.

    Args:
        run: folder of a run.
        data: folder of a data set with a test split.
        limit: pictures to keep for the gallery, spread evenly over the test photos, at least 1.
        weights_dir: folder of pretrained weights, for LPIPS; default as `find_weights_dir`. Nothing is downloaded.
        device: where to draw and score.
        quiet: no progress bars.

    Raises:
        FastsketchError: no such run or data set, or pictures that cannot be read.
    """
    if limit < 1:
        raise FastsketchError(f"limit must be at least 1, got {limit}")
    paths = RunPaths(run)
    config = run_settings(run)
    weights = find_generator(run)
    weights_dir = find_weights_dir(weights_dir, weights)
    generator, training = load_generator(weights, device), read_training(weights)
    pairs = find_pairs(data, "test", unpaired=config.unpaired)
    if config.unpaired:
        pairs = [replace(pair, sketch=_own_sketch(pair)) for pair in pairs]
    masks = MaskSource(config.mask_method, paths.masks, weights_dir=weights_dir)
    sampler = structure_sampler(config)
    kept = {i * len(pairs) // min(limit, len(pairs)) for i in range(min(limit, len(pairs)))}
    shown: list[tuple[Pair, Image.Image, Image.Image, Image.Image]] = []
    has_map = generator.attention is not None
    with tempfile.TemporaryDirectory() as folder:
        items = []
        bar = progress_bar(pairs, desc=f"draw {run.name}", unit="photo", disable=quiet)
        for number, pair in enumerate(bar):
            photo, mask = read_for_drawing(
                pair.photo, masks if generator.mask_channel else None, config.image_size, given=pair.mask
            )
            drawing = draw(generator, photo, mask, sampler, POINTS_SEED)
            path = Path(folder) / f"{number}.png"
            save_image(drawing.sketch, path)
            if pair.sketch is not None:
                items.append(Item(pair.subset, pair.name, path, pair.sketch))
            if number in kept:
                shown.append((pair, photo, drawing.points, drawing.sketch))
        evaluation = Evaluation(IMAGE_METRICS, [], {})
        if items:
            evaluation = evaluate(
                items,
                metrics=IMAGE_METRICS,
                weights_dir=weights_dir,
                device=device,
                quiet=quiet,
                download=False,
                image_size=config.image_size,
            )
    scores = {(row["subset"], row["name"]): row for row in evaluation.rows}
    gallery = []
    for pair, photo, points, sketch in shown:
        real = None
        if pair.sketch is not None:
            real = fit_within(read_sketch(pair.sketch, config.sketch_channels), config.image_size)
        row = scores.get((pair.subset, pair.name), {})
        scored = {metric: float(row[metric]) for metric in IMAGE_METRICS if metric in row}
        gallery.append(Shown(pair.subset, pair.name, photo, points, sketch, real, scored))
    history = LossHistory(paths.losses, last_step=training.step if training else sys.maxsize)
    name = run.resolve().name
    return Look(name, run, data, config, training, history, len(pairs), evaluation, _digest(pairs), gallery, has_map)


def _digest(pairs: Sequence[Pair]) -> str:
    """Of names and contents: built-in faces lie in each run's own folder."""
    digest = hashlib.sha256()
    for pair in pairs:
        if pair.sketch is not None:
            digest.update(f"{pair.subset}/{pair.name}".encode())
            for path in (pair.photo, pair.sketch):
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _own_sketch(pair: Pair) -> Path | None:
    """The sketch of an unpaired photo's name, if it can be of the same picture."""
    if pair.sketch is None or picture_size(pair.photo) != picture_size(pair.sketch):
        return None
    return pair.sketch
