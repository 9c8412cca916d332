"""The one function that evaluates generated sketches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from fastsketch.errors import FastsketchError, KeptName
from fastsketch.metrics.fid import SubsetDistances, find_inception
from fastsketch.metrics.perceptual import Perceptual
from fastsketch.metrics.report import METRICS, OVERALL, Evaluation, summarise
from fastsketch.metrics.similarity import fsim, ssim
from fastsketch.progress import progress_bar
from fastsketch.training.images import fit_within, picture_size, read_photo, save_image, size_within
from fastsketch.training.pairs import Pair
from fastsketch.weights import WeightsNotFound, weights_folder

# Smaller pictures are refused: SSIM's window needs 11 pixels, AlexNet's poolings 31, FSIM's wavelets some room.
MIN_SIDE = 32
# Below some thousands of images FID depends strongly on their number.
_FEW_FOR_FID = 2048

ImageMetric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Item:
    """A generated sketch and the drawn one it is compared with."""

    subset: str
    name: str
    generated: Path
    reference: Path


def _check(items: Sequence[Item], metrics: Sequence[str], batch_size: int, image_size: int | None) -> None:
    if not items:
        raise ValueError("items must not be empty")
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics must be some of {', '.join(METRICS)}, got {', '.join(unknown) or 'none'}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    seen: set[tuple[str, str]] = set()
    for item in items:
        if (item.subset, item.name) in seen:
            raise ValueError(f"items has {item.subset}/{item.name} twice")
        if item.subset == OVERALL:
            raise KeptName(f"the subset name {OVERALL!r} is kept for the mean over all images")
        seen.add((item.subset, item.name))
    for item in items:
        _check_sizes(item, image_size)


def _check_sizes(item: Item, image_size: int | None) -> None:
    """Refuse pictures that cannot be compared, before hours are spent on the others."""
    generated, whole = picture_size(item.generated), picture_size(item.reference)
    reference = whole if image_size is None else size_within(whole, image_size)
    if generated != reference:
        scaled = "" if reference == whole else f", scaled down to {reference[0]}x{reference[1]}"
        fits = size_within(whole, max(generated)) == generated
        raise FastsketchError(
            f"{item.generated} is {generated[0]}x{generated[1]} but its reference {item.reference} is "
            f"{whole[0]}x{whole[1]}{scaled}; sizes must be equal"
            + (f": image_size={max(generated)} (--image-size {max(generated)}) scales references down" if fits else "")
        )
    if min(reference) < MIN_SIDE:
        raise FastsketchError(f"{item.reference}: {reference[0]}x{reference[1]}, need {MIN_SIDE} pixels a side")


def _read_item(item: Item, image_size: int | None) -> tuple[Image.Image, Image.Image]:
    generated, reference = read_photo(item.generated), read_photo(item.reference)
    return generated, reference if image_size is None else fit_within(reference, image_size)


def _batches(
    items: Sequence[Item], batch_size: int, image_size: int | None
) -> Iterator[list[tuple[Item, Image.Image, Image.Image]]]:
    """Runs of items of one image size, at most batch_size long."""
    batch: list[tuple[Item, Image.Image, Image.Image]] = []
    for item in items:
        pair = _read_item(item, image_size)
        if batch and (len(batch) == batch_size or batch[0][1].size != pair[0].size):
            yield batch
            batch = []
        batch.append((item, *pair))
    yield batch


def _stack(images: Sequence[Image.Image], mode: str, device: torch.device) -> Tensor:  # [B, C, H, W]
    return torch.stack([TF.to_tensor(image.convert(mode)) for image in images]).to(device)


def evaluate(
    items: Sequence[Item],
    *,
    metrics: Sequence[str] = tuple(METRICS),
    weights_dir: str | Path | None = None,
    inception: str | Path | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 8,
    quiet: bool = False,
    download: bool = True,
    image_size: int | None = None,
) -> Evaluation:
    """Compares generated images with references, each pair at the reference's own size.

    FSIM and SSIM see luminance (ITU-R 601) in [0, 1]; LPIPS and FID see RGB, a grey image replicated to three channels.
    A metric whose weights are not to be had is left out with the reason: it stays in the table as n/a.

    Args:
        items: what to compare; names unique inside a subset.
        metrics: some of "fsim", "ssim", "lpips-alex", "lpips-vgg", "fid".
        weights_dir: folder with `alexnet_features.safetensors` and `vgg16_features.safetensors`; see
            `fastsketch.weights`.
        inception: torch-fidelity's Inception weights file, for FID; default its cache. Never downloaded.
        device: where to compute.
        batch_size: images at a time.
        quiet: no progress bar (on stderr).
        download: whether torchvision may download LPIPS' backbones.
        image_size: scale larger references down to fit in this square first, in pixels (antialiased, aspect kept), as
            training at reduced size does; values at different sizes are not comparable.

    Returns:
        Values by image, subset and over all.

    Raises:
        ValueError: no items, an item twice, an unknown metric, batch_size or image_size below 1.
        FastsketchError: an unreadable image, sizes that differ (both named), damaged weights, non-finite values.
    """
    _check(items, metrics, batch_size, image_size)
    metrics = tuple(dict.fromkeys(metrics))
    device = torch.device(device)
    unavailable: dict[str, str] = {}
    by_image: dict[str, tuple[str, ImageMetric]] = {}
    distances: SubsetDistances | None = None
    weights_folder(weights_dir)  # a wrong folder is a mistake to report, not a metric to leave out
    for name in metrics:
        try:
            if name == "fid":
                distances = SubsetDistances(find_inception(inception), device)
            elif name.startswith("lpips-"):
                net = Perceptual(name.removeprefix("lpips-"), weights_dir, download=download).to(device)
                by_image[name] = "RGB", net
            else:
                by_image[name] = "L", {"fsim": fsim, "ssim": ssim}[name]
        except WeightsNotFound as error:
            unavailable[name] = str(error)

    rows: list[dict[str, str | float]] = []
    with progress_bar(total=len(items), desc="evaluate", unit="image", disable=quiet) as bar:
        for batch in _batches(items, batch_size, image_size):
            chosen, *sides = zip(*batch, strict=True)
            values = _batch_values(by_image, distances, chosen, sides, device)
            for index, item in enumerate(chosen):
                row = {name: column[index] for name, column in values.items()}
                rows.append({"subset": item.subset, "name": item.name, **row})
            bar.update(len(batch))

    summary = summarise(rows, list(by_image))
    notes = []
    if distances is not None:
        for subset, value in distances.compute().items():
            summary[OVERALL if subset is None else subset]["fid"] = value
        if len(items) < _FEW_FOR_FID:
            notes.append(f"FID from fewer than {_FEW_FOR_FID} images depends on their number: compare equal sets only.")
    return Evaluation(metrics, rows, summary, unavailable, notes)


@torch.inference_mode()
def _batch_values(
    by_image: dict[str, tuple[str, ImageMetric]],
    distances: SubsetDistances | None,
    chosen: Sequence[Item],
    sides: Sequence[Sequence[Image.Image]],
    device: torch.device,
) -> dict[str, list[float]]:
    """Each metric's value for each image of a batch, and the batch's features for FID."""
    needed = {mode for mode, _ in by_image.values()} | ({"RGB"} if distances is not None else set())
    stacks = {mode: [_stack(images, mode, device) for images in sides] for mode in needed}
    values: dict[str, list[float]] = {}
    for name, (mode, metric) in by_image.items():
        result = metric(*stacks[mode])
        if not torch.isfinite(result).all():
            bad = chosen[int((~torch.isfinite(result)).nonzero()[0])]
            raise FastsketchError(f"{name} of {bad.generated} against {bad.reference} is not finite")
        values[name] = result.tolist()
    if distances is not None:
        distances.update([item.subset for item in chosen], *stacks["RGB"])
    return values


def grey_photo_yardstick(pairs: Sequence[Pair], *, image_size: int | None = None, **options: object) -> Evaluation:
    """Evaluates each photo, made grey, as if it were the generated sketch: below this, nothing was learned.

    Args:
        pairs: photos with their sketches (`fastsketch.training.pairs.find_pairs`).
        image_size: as `evaluate`, for the photos too.
        options: further keyword arguments of `evaluate`.

    Raises:
        ValueError: a pair has no sketch.
        FastsketchError: as `evaluate`.
    """
    lonely = [pair.name for pair in pairs if pair.sketch is None]
    if lonely:
        raise ValueError(f"pairs without a sketch have nothing to be compared with: {lonely[0]}")
    with tempfile.TemporaryDirectory() as folder:
        items = []
        for number, pair in enumerate(pairs):
            generated = Path(folder) / f"{number}.png"
            photo = read_photo(pair.photo)
            if image_size is not None:
                photo = fit_within(photo, image_size)
            save_image(photo.convert("L"), generated)
            items.append(Item(pair.subset, pair.name, generated, pair.sketch))
        return evaluate(items, image_size=image_size, **options)
