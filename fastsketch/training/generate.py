"""Sketches of photos with a trained generator: any size, single files, folders, or a data set's split."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from fastsketch.errors import FastsketchError
from fastsketch.nn import ResnetGenerator
from fastsketch.progress import progress_bar
from fastsketch.training.images import (
    SMALLEST,
    Padding,
    crop_back,
    fit_within,
    is_drawing,
    list_folder,
    list_images,
    pad_to_frame,
    read_photo,
    save_drawing,
    to_image,
    to_signed_tensor,
)
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import Pair, name_some, not_read


def read_for_drawing(
    path: Path, masks: MaskSource | None, image_size: int | None, given: Path | None = None
) -> tuple[Image.Image, Image.Image | None]:
    """A photo and its mask as they are to be drawn; the mask is made from the whole photo, then both are scaled down.

    Args:
        path: of the photo.
        masks: where the mask comes from; None: no mask.
        image_size: side of the square to fit in, pixels; None: the photo's own size.
        given: the photo's mask file, where there is one.

    Returns:
        (photo, mask): RGB and mode L (255 = person) of one size; mask is None without `masks`.

    Raises:
        FastsketchError: a photo that is unreadable, too small, or too narrow once scaled; no mask to be had.
    """
    photo = read_photo(path)
    scaled = scale_down(photo, image_size, str(path))
    if masks is None:
        return scaled, None
    mask = masks(photo, given=given, name=str(path))
    return scaled, mask if image_size is None else fit_within(mask, image_size, mask=True)


def to_inputs(
    generator: ResnetGenerator, photo: Image.Image, mask: Image.Image | None
) -> tuple[Tensor, Tensor | None, Padding]:
    """What a generator reads of one photo, on its device, padded as in its training (`pad_to_frame`).

    Args:
        generator: on the device to use.
        photo: RGB, any size.
        mask: mode L, the photo's size; needed by a generator with a mask channel, unused by others.

    Returns:
        (photo [1, 3, H, W] in [-1, 1], mask [1, 1, H, W] in [0, 1] or None, the padding for `crop_back`), float32.

    Raises:
        ValueError: no mask for a generator with a mask channel.
    """
    device = next(generator.parameters()).device
    x, padding = pad_to_frame(to_signed_tensor(photo)[None], generator.frame)
    if not generator.mask_channel:
        return x.to(device), None, padding
    if mask is None:
        raise ValueError("mask must be given: the generator has a mask channel")
    m, _ = pad_to_frame(TF.to_tensor(mask)[None], generator.frame)
    return x.to(device), m.to(device), padding


@torch.inference_mode()
def draw_sketch(generator: ResnetGenerator, photo: Image.Image, mask: Image.Image | None) -> Image.Image:
    """The sketch of one photo.

    Args:
        generator: in eval mode, on the device to use.
        photo: RGB, any size; padded as in training and cut back.
        mask: mode L, the photo's size; needed by a generator with a mask channel.

    Returns:
        A picture of the photo's size, grey or RGB.

    Raises:
        ValueError: no mask for a generator with a mask channel.
    """
    x, m, padding = to_inputs(generator, photo, mask)
    return to_image(crop_back(generator(x, m), padding)[0])


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
                rest = left_out([source])
                raise FastsketchError(f"{source}: no pictures in this folder{'; ' if rest else ''}{rest}")
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
    return not_read([f"{p.name}/" if p.is_dir() else p.name for p in rest])


def scale_down(photo: Image.Image, image_size: int | None, name: str) -> Image.Image:
    """The photo as it is to be drawn, no larger than a square of this side (None: any size).

    Raises:
        FastsketchError: too small, or too narrow once scaled.
    """
    scaled = photo if image_size is None else fit_within(photo, image_size)
    if min(scaled.size) < SMALLEST:
        drawn = "" if scaled.size == photo.size else f", scaled down to {scaled.width}×{scaled.height}"
        raise FastsketchError(
            f"{name}: {photo.width}×{photo.height} pixels{drawn}; the shorter side needs {SMALLEST} at least"
        )
    return scaled


def _refuse_same_names(photos: list[Pair], targets: list[Path]) -> None:
    """Photos that differ in suffix or folder only would be drawn over one another."""
    sources: dict[Path, list[str]] = {}
    for pair, target in zip(photos, targets, strict=True):
        sources.setdefault(target, []).append(str(pair.photo))
    for target, names in sorted(sources.items()):
        if len(names) > 1:
            raise FastsketchError(
                f"several photos would be drawn into {target}: {name_some(names)}; rename them, or draw them apart"
            )


def _refuse_among_photos(photos: list[Pair], targets: list[Path]) -> None:
    """Drawings beside their photos would be taken for photos the next time, or replace some."""
    folders = {folder: folder.resolve() for folder in {path.parent for path in (*targets, *(p.photo for p in photos))}}
    among = {folders[pair.photo.parent] for pair in photos}
    for pair, target in zip(photos, targets, strict=True):
        if folders[target.parent] in among or target.resolve() == pair.photo.resolve():
            raise FastsketchError(
                f"{target} would lie among the photos, or overwrite one: choose another output folder"
            )


def _first_not_drawn(targets: list[Path]) -> Path | None:
    """The first picture in a drawing's place, or beside it with another suffix, that is none of our drawings."""
    folders = [folder for folder in {target.parent for target in targets} if folder.is_dir()]
    there = {path.with_suffix(".png"): path for folder in folders for path in list_images(folder)}
    for target in targets:
        other = target if os.path.lexists(target) else there.get(target)
        if other is not None and not is_drawing(other):
            return other
    return None


def draw_sketches(
    generator: ResnetGenerator,
    photos: list[Pair],
    out: Path,
    masks: MaskSource,
    *,
    image_size: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> list[Path]:
    """Draw each photo into out/[SUBSET/]NAME.png; earlier drawings there are replaced, other pictures are not.

    Args:
        generator: in eval mode, on the device to use.
        photos: what `find_photos` or `find_pairs` gives.
        out: folder, made when missing.
        masks: where masks come from, for a generator that reads them.
        image_size: scale larger photos down to fit in this square first, in pixels: the size the generator was trained
            at. None: as they are.
        overwrite: replace any picture, for a folder that holds nothing but drawings: those of before `is_drawing` are
            not known for what they are.
        quiet: no progress bar.

    Raises:
        FastsketchError: two photos of one name, a drawing among the photos, or a picture of its name there that
            fastsketch did not draw, when nothing is drawn; photos that are unreadable, too small or too narrow, or
            without the mask they need, when all others are drawn; a drawing that cannot be written.
    """
    targets = [out / pair.subset / f"{pair.name}.png" for pair in photos]
    _refuse_same_names(photos, targets)
    _refuse_among_photos(photos, targets)
    if not overwrite and (other := _first_not_drawn(targets)) is not None:
        raise FastsketchError(
            f"{other} is there already, and does not say that fastsketch drew it (nor do older drawings): "
            "choose another output folder, remove it, or add --overwrite"
        )
    problems: dict[str, FastsketchError] = {}
    for pair, target in zip(progress_bar(photos, unit="photo", disable=quiet), targets, strict=True):
        try:
            photo, mask = read_for_drawing(
                pair.photo, masks if generator.mask_channel else None, image_size, given=pair.mask
            )
        except FastsketchError as problem:
            problems[str(pair.photo)] = problem
            continue
        save_drawing(draw_sketch(generator, photo, mask), target)
    if len(photos) == 1 and problems:
        raise next(iter(problems.values()))
    if problems:
        listed = "; ".join(map(str, list(problems.values())[:3]))
        if len(problems) > 3:
            listed += f"; nor {name_some(list(problems)[3:], most=50)}"
        raise FastsketchError(f"{len(problems)} of {len(photos)} photos could not be drawn, the rest are: {listed}")
    return targets
