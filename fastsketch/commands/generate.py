"""`fastsketch generate PHOTO... -o DIR --weights RUN`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fastsketch.commands import data_folder
from fastsketch.errors import FastsketchError
from fastsketch.training.mask_methods import MaskMethod

if TYPE_CHECKING:
    from fastsketch.training.pairs import Pair


@dataclass
class Generate:
    """Draw sketches of photos: files, folders, or a split of a data set."""

    photos: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Picture files, or folders of them; any size, grey, RGB or RGBA."""
    weights: Path = tyro.MISSING
    """Folder of a run, or its generator.safetensors."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = tyro.MISSING
    """Folder to draw into: NAME.png, or SUBSET/NAME.png with --data."""
    data: str | None = None
    """A data set's folder, in place of PHOTOs."""
    split: Literal["train", "test"] = "test"
    """Which part of it."""
    image_size: int | Literal["trained", "photo"] = "trained"
    """Larger photos are scaled down to this many pixels first; trained: as in training, photo: not at all (slow)."""
    masks: MaskMethod | Literal["trained"] = "trained"
    """Where masks come from; trained: as in training, but that a mask is made for a photo whose folder has none."""
    weights_dir: Path | None = None
    """Folder of pretrained weights, for masks by person; default: the run's own."""
    overwrite: bool = False
    """Replace any picture of a drawing's name, not only earlier drawings."""
    device: str = "auto"
    """cpu, cuda …; auto: a GPU if there is one."""
    quiet: bool = False
    """No progress bar."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    from fastsketch.training.checkpoint import load_generator
    from fastsketch.training.generate import draw_sketches, find_photos, left_out
    from fastsketch.training.masks import MaskSource
    from fastsketch.training.pairs import find_pairs, note_on_split
    from fastsketch.training.run_files import find_generator, find_weights_dir
    from fastsketch.training.trainer import choose_device

    options = tyro.cli(Generate, args=arguments, prog="fastsketch generate")
    if bool(options.photos) == bool(options.data):
        raise FastsketchError("give either PHOTOs (files or folders) or --data DIR")
    weights = find_generator(options.weights)
    generator = load_generator(weights, choose_device(options.device))
    image_size = _drawn_size(options.image_size, weights)
    if options.data:
        data = data_folder(options.data, options.out / "data")
        photos = find_pairs(data, options.split, unpaired=True)
        if note := note_on_split(data, options.split):
            print(note)
    else:
        photos = find_photos(options.photos)
        if ignored := left_out(options.photos):
            print(ignored)
    method = _mask_method(options.masks, weights, photos)
    weights_dir = find_weights_dir(options.weights_dir, weights) if method == "person" else options.weights_dir
    masks = MaskSource(method, weights_dir=weights_dir)
    drawn = draw_sketches(
        generator,
        photos,
        options.out,
        masks,
        image_size=image_size,
        overwrite=options.overwrite,
        quiet=options.quiet,
    )
    size = "their photos' sizes" if image_size is None else f"{image_size} pixels or less"
    print(f"{len(drawn)} sketches of {size} in {options.out}")
    return 0


def _mask_method(wanted: MaskMethod | Literal["trained"], weights: Path, photos: "list[Pair]") -> MaskMethod:
    """Where masks come from; it says so where training's masks are not to be had."""
    from fastsketch.training.run_files import trained_masks

    if wanted != "trained":
        return wanted
    method = trained_masks(weights)
    if method != "folder":
        return method
    if lacking := sum(pair.mask is None for pair in photos):
        print(f"trained with given masks: for {lacking} of {len(photos)} photos, which have none, they are made (auto)")
    return "auto"


def _drawn_size(wanted: int | str, weights: Path) -> int | None:
    """The size to draw at, pixels; None: each photo's own."""
    from fastsketch.training.run_files import trained_size

    if wanted == "photo":
        return None
    size = trained_size(weights) if wanted == "trained" else wanted
    if size is None:
        raise FastsketchError(f"{weights} does not say at what size it was trained: add --image-size N, or photo")
    if size < 1:
        raise FastsketchError(f"--image-size must be at least 1, trained or photo, got {size}")
    return size
