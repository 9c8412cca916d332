"""Sketches of photos with a trained generator: any size, single files, folders, or a data set's split."""

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from fastsketch.errors import FastsketchError
from fastsketch.nn import ResnetGenerator
from fastsketch.training.images import (
    SMALLEST,
    crop_back,
    fit_within,
    list_folder,
    list_images,
    mask_to_tensor,
    pad_to_multiple,
    read_photo,
    save_image,
    to_image,
    to_tensor,
)
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import Pair, name_some


@torch.inference_mode()
def draw_sketch(generator: ResnetGenerator, photo: Image.Image, mask: Image.Image | None) -> Image.Image:
    """The sketch of one photo.

    Args:
        generator: in eval mode, on the device to use.
        photo: RGB, any size; padded to multiples of 4 and cut back.
        mask: mode L, the photo's size; needed by a generator with a mask channel.

    Returns:
        A picture of the photo's size.
    """
    device = next(generator.parameters()).device
    x, padding = pad_to_multiple(to_tensor(photo)[None], 4)
    m = None
    if generator.mask_channel:
        m = pad_to_multiple(mask_to_tensor(mask)[None], 4)[0].to(device)
    drawn = generator(x.to(device), m)
    return to_image(crop_back(drawn, padding)[0])


def find_photos(sources: Iterable[Path]) -> list[Pair]:
    """Files as they are, and the pictures directly inside folders, in order.

    Raises:
        FastsketchError: something named does not exist, holds no picture, or two would get the same name.
    """
    found: list[Pair] = []
    for source in sources:
        if source.is_dir():
            inside = list_images(source)
            if not inside:
                raise FastsketchError(f"{source}: no pictures in this folder")
        elif source.is_file():
            inside = [source]
        else:
            raise FastsketchError(f"{source}: no such file or folder")
        found += [Pair(photo=p, sketch=None, mask=None, subset="", name=p.stem) for p in inside]
    return found


def left_out(sources: Iterable[Path]) -> str:
    """What lies in these folders and is drawn by nobody, for a message; empty: nothing."""
    folders = [source for source in sources if source.is_dir()]
    rest = [p for folder in folders for p in sorted(set(list_folder(folder)) - set(list_images(folder)))]
    return name_some([f"{p.name}/" if p.is_dir() else p.name for p in rest])


def scale_down(photo: Image.Image, image_size: int | None, name: str) -> Image.Image:
    """The photo as it is to be drawn, no larger than a square of this side (None: any size).

    Raises:
        FastsketchError: too small, or too narrow once scaled.
    """
    scaled = photo if image_size is None else fit_within(photo, image_size, image_size)
    if min(scaled.size) < SMALLEST:
        drawn = "" if scaled.size == photo.size else f", scaled down to {scaled.width}×{scaled.height}"
        raise FastsketchError(
            f"{name}: {photo.width}×{photo.height} pixels{drawn}; the shorter side needs {SMALLEST} at least"
        )
    return scaled


def draw_sketches(
    generator: ResnetGenerator,
    photos: list[Pair],
    out: Path,
    masks: MaskSource,
    *,
    image_size: int | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Draw each photo into out/[SUBSET/]NAME.png.

    Args:
        generator: in eval mode, on the device to use.
        photos: what `find_photos` or `find_pairs` gives.
        out: folder, made when missing.
        masks: where masks come from, for a generator that reads them.
        image_size: scale larger photos down to fit in this square first, in pixels: the size the generator was trained
            at. None: as they are.
        quiet: no progress bar.

    Raises:
        FastsketchError: two photos of one name, or a drawing in the place of its photo, when nothing is drawn;
            photos that are unreadable, too small or too narrow, or without the mask they need, when all others are
            drawn; a drawing that cannot be written.
    """
    targets = [out / pair.subset / f"{pair.name}.png" for pair in photos]
    twice = {target for target in targets if targets.count(target) > 1} if len(set(targets)) < len(targets) else ()
    if twice:
        raise FastsketchError(f"several photos would be drawn into {min(twice)}: rename them, or draw them apart")
    for pair, target in zip(photos, targets, strict=True):
        if target.resolve() == pair.photo.resolve():
            raise FastsketchError(f"{target} would overwrite the photo itself: choose another output folder")
    problems: list[FastsketchError] = []
    for pair, target in zip(tqdm(photos, unit="photo", disable=quiet), targets, strict=True):
        try:
            photo, mask = _read(pair, masks if generator.mask_channel else None, image_size)
        except FastsketchError as problem:
            problems.append(problem)
            continue
        save_image(draw_sketch(generator, photo, mask), target)
    if len(photos) == 1 and problems:
        raise problems[0]
    if problems:
        listed = "; ".join(map(str, problems[:3])) + ("; and so on" if len(problems) > 3 else "")
        raise FastsketchError(f"{len(problems)} of {len(photos)} photos could not be drawn, the rest are: {listed}")
    return targets


def _read(pair: Pair, masks: MaskSource | None, image_size: int | None) -> tuple[Image.Image, Image.Image | None]:
    """A photo and its mask, as they are to be drawn."""
    photo = read_photo(pair.photo)
    scaled = scale_down(photo, image_size, str(pair.photo))
    if masks is None:
        return scaled, None
    mask = masks(photo, given=pair.mask, name=str(pair.photo))
    return scaled, mask if image_size is None else fit_within(mask, image_size, image_size, mask=True)
