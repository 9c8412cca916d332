"""Photo-sketch data: a dataset whose randomness can be resumed, and a resumable sampler."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import functional as TF

from fastsketch.errors import FastsketchError
from fastsketch.training.augment import MAX_AFFINE, MAX_JITTER, Place, change_tones, draw_affine, draw_tones, warp
from fastsketch.training.canvas import Canvas, frame_of, tight_canvas
from fastsketch.training.images import (
    fit_within,
    header_size,
    pad_to,
    picture_size,
    read_photo,
    read_sketch,
    size_within,
)
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import OVERALL, Pair, name_some

# Streams of random numbers that must not coincide for equal (seed, epoch).
_ITEM_STREAM, _ORDER_STREAM = 0, 1


class Drawn(NamedTuple):
    """What chance decided for an item: the places of photo and sketch, the sketch, and whose it is."""

    place: Place
    sketch: int
    sketch_place: Place
    tones: np.ndarray | None
    """Of the photo, as `draw_tones` gives; None: its own."""


class SketchDataset(Dataset):
    """Photos, sketches and masks on canvases of one size, the same whatever the number of workers.

    An item is a dict of `photo` [3, H, W] and `sketch` [C, H, W] in [-1, 1], `mask` [1, H, W] in [0, 1] (float32)
    and `index` (int64 scalar), (H, W) = `item_size`. Unpaired items also have `sketch_mask` [1, H, W]: the mask of the
    photo the drawn sketch belongs to, or ones where no photo is known for it.

    Crop, flip, augmentation and the unpaired choice depend on (seed, epoch, index) alone, so a resumed run sees the
    same items.

    Args:
        pairs: what `find_pairs` gives.
        image_size: a larger picture is first scaled down (antialiased, aspect kept) to fit in a square of this side,
            then it is padded by its border pixels, centred; nothing is ever enlarged or squeezed.
        canvas: what it is padded to: that square, or (tight) the smallest rectangle that holds all pictures, its sides
            multiples of 4 and at least 32.
        crop_size: side of a random crop of the canvas, no longer than its sides; None takes it whole.
        sketch_channels: 1 (grey) or 3.
        masks: how a photo's mask is had; default `MaskSource("auto")`.
        flip: mirror half of the items.
        random_affine: strength of a random turn, scale and shift of each item, the same for photo, mask and the sketch
            of its pair (`draw_affine`); 0: none.
        color_jitter: strength of a random change of each photo's light (`draw_tones`); 0: none.
        augment_epochs: how many epochs, from the first, have `random_affine` and `color_jitter`; None: all.
        unpaired: give each photo a sketch drawn anew each epoch, never its own when there is another.
        sketches: what to draw from when unpaired (`find_sketches`); default the pairs' own sketches.
        cache: keep decoded canvases in memory as uint8 (7 bytes a pixel of the canvas at most).
        seed: of crop, flip, augmentation and choice.

    Raises:
        ValueError: an argument out of range.
        FastsketchError: an image that cannot be read, or pictures whose size differs from their photo's (named): at
            once where their headers tell, else with the item.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        image_size: int = 256,
        canvas: Canvas = "tight",
        crop_size: int | None = None,
        sketch_channels: int = 1,
        masks: MaskSource | None = None,
        flip: bool = True,
        random_affine: float = 0.0,
        color_jitter: float = 0.0,
        augment_epochs: int | None = None,
        unpaired: bool = False,
        sketches: Sequence[Path] | None = None,
        cache: bool = True,
        seed: int = 0,
    ) -> None:
        if not pairs:
            raise ValueError("pairs must not be empty")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        if canvas not in get_args(Canvas):
            raise ValueError(f"canvas must be one of {', '.join(get_args(Canvas))}, got {canvas!r}")
        if crop_size is not None and not 1 <= crop_size <= image_size:
            raise ValueError(f"crop_size must lie in 1..image_size ({image_size}), got {crop_size}")
        if not 0 <= random_affine <= MAX_AFFINE:
            raise ValueError(f"random_affine must lie in 0..{MAX_AFFINE:g}, got {random_affine}")
        if not 0 <= color_jitter <= MAX_JITTER:
            raise ValueError(f"color_jitter must lie in 0..{MAX_JITTER:g}, got {color_jitter}")
        if augment_epochs is not None and augment_epochs < 0:
            raise ValueError(f"augment_epochs must not be negative, got {augment_epochs}")
        if sketch_channels not in (1, 3):
            raise ValueError(f"sketch_channels must be 1 or 3, got {sketch_channels!r}")
        if sketches is not None and not unpaired:
            raise ValueError("sketches is only for unpaired=True")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.pairs = list(pairs)
        self.image_size = image_size
        self.sketch_channels = sketch_channels
        self.masks = MaskSource("auto") if masks is None else masks
        self.flip = flip
        self.random_affine, self.color_jitter, self.augment_epochs = random_affine, color_jitter, augment_epochs
        self.unpaired = unpaired
        self.seed = seed
        own = [pair.sketch for pair in self.pairs if pair.sketch is not None]
        if unpaired:
            self.sketches = list(own if sketches is None else sketches)
            if not self.sketches:
                raise ValueError("unpaired data has no sketches: give `sketches`")
        elif len(own) < len(self.pairs):
            lonely = [pair.name for pair in self.pairs if pair.sketch is None]
            raise FastsketchError(f"{len(lonely)} photos have no sketch: {name_some(lonely)}")
        # What `Drawn.sketch` counts: the sketches of the pairs, or when unpaired those drawn from.
        self.drawings = self.sketches if unpaired else own
        self._owners = {pair.sketch: pair for pair in self.pairs if pair.sketch is not None}
        self._cache: dict[tuple[str, Path], tuple[Tensor, tuple[int, int]]] | None = {} if cache else None
        # In shared memory, so that persistent workers see the epoch that the main process sets.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._check_sizes()
        self.frame = self._measure() if canvas == "tight" else (image_size, image_size)
        """(height, width) of the rectangle that holds all pictures once scaled; of a square canvas its own."""
        self.canvas_size = tight_canvas(self.frame) if canvas == "tight" else self.frame
        """(height, width) of what they are padded to."""
        self.item_size = self.canvas_size if crop_size is None else tuple(min(crop_size, s) for s in self.canvas_size)
        """(height, width) of the items."""

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def fingerprint(self) -> str:
        """Of the names of the pairs and sketches, wherever they lie: a run goes on with the same ones.

        What a plain pair of folders lies in may be called something else by then.
        """
        return self._fingerprint("")

    @property
    def fingerprints(self) -> list[str]:
        """`fingerprint`, and what it may have been in a checkpoint of before.

        Then it held the name of a plain pair's folder, as that was given: also empty for `.`, and `..`, and what
        no folder may be called any more.
        """
        return list(dict.fromkeys(self._fingerprint(plain) for plain in ("", "..", OVERALL, self.pairs[0].subset)))

    def _fingerprint(self, plain: str) -> str:
        subsets = (plain if pair.plain else pair.subset for pair in self.pairs)
        names = [f"{subset}/{pair.name}" for subset, pair in zip(subsets, self.pairs, strict=True)]
        return hashlib.sha256("\n".join(names + [path.name for path in self.drawings]).encode()).hexdigest()

    @property
    def epoch(self) -> int:
        """The epoch whose random numbers are used."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random numbers of an epoch (0, 1, ...); call it before iterating a loader."""
        self._epoch.fill_(_checked_epoch(epoch))

    def _strength(self, strength: float) -> float:
        """Of an augmentation in the current epoch."""
        return strength if self.augment_epochs is None or self.epoch < self.augment_epochs else 0.0

    def draw(self, index: int) -> Drawn:
        """The random choices of an item in the current epoch."""
        random = np.random.default_rng([self.seed, _ITEM_STREAM, self.epoch, index])
        place = self._draw_place(random)
        jitter = self._strength(self.color_jitter)
        tones = draw_tones(random, jitter) if jitter else None
        if not self.unpaired:
            return Drawn(place, index, place, tones)
        sketch = self._draw_sketch(random, self.pairs[index].sketch)
        return Drawn(place, sketch, self._draw_place(random), tones)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        index = range(len(self.pairs))[index]  # IndexError beyond the end, and negative indices
        drawn, pair = self.draw(index), self.pairs[index]
        together = [self._canvas("photo", pair.photo)[0], self._mask_canvas(pair)]
        if not self.unpaired:
            together.append(self._sketch_canvas(drawn.sketch))
        photo, mask, sketch = self._crop(torch.cat(together), drawn.place).tensor_split((3, 4))
        if drawn.tones is not None:
            photo = change_tones(photo[None], torch.from_numpy(drawn.tones)[None])[0]
        item = {
            "photo": _signed(photo),
            "mask": mask.float() / 255.0,
            "index": torch.tensor(index, dtype=torch.int64),
        }
        if self.unpaired:
            both = torch.cat((self._sketch_canvas(drawn.sketch), self.mask_of_drawing(drawn.sketch)))
            sketch, mask = self._crop(both, drawn.sketch_place).split((self.sketch_channels, 1))
            item["sketch_mask"] = mask.float() / 255.0
        item["sketch"] = _signed(sketch)
        return item

    def canvases(self) -> tuple[Tensor, Tensor, Tensor]:
        """All of them, uint8: photos [N, 3, H, W], masks [N, 1, H, W], `drawings` [M, C, H, W]; `canvas_size`."""
        photos = torch.stack([self._canvas("photo", pair.photo)[0] for pair in self.pairs])
        masks = torch.stack([self._mask_canvas(pair) for pair in self.pairs])
        return photos, masks, torch.stack([self._sketch_canvas(i) for i in range(len(self.drawings))])

    def mask_of_drawing(self, number: int) -> Tensor:
        """The canvas of the mask of one of `drawings`, uint8 [1, H, W]; where its photo is not known, all is person."""
        owner = self._owners.get(self.drawings[number])
        if owner is None:
            return torch.full((1, *self.canvas_size), 255, dtype=torch.uint8)
        return self._mask_canvas(owner)

    def _check_sizes(self) -> None:
        """Refuse all pairs that cannot be aligned, before the first of them stops a run in its middle."""
        unreadable, odd = [], []
        for pair in self.pairs:
            partners = [] if self.unpaired else [pair.sketch]
            if self.masks.method in ("auto", "folder"):
                partners.append(pair.mask)
            for path in filter(None, partners):
                try:
                    if header_size(path) == header_size(pair.photo):
                        continue
                    size, photo = picture_size(path), picture_size(pair.photo)
                except FastsketchError as problem:
                    unreadable.append(str(problem))
                    continue
                if size != photo:
                    odd.append(f"{path} is {size[0]}x{size[1]} but its photo {photo[0]}x{photo[1]}")
        reasons = list(dict.fromkeys(unreadable))[:3]
        if odd:
            these = "1 picture is" if len(odd) == 1 else f"{len(odd)} pictures are"
            reasons.append(
                f"{these} not of the photo's size: {name_some(odd)}; photo, sketch and mask of a pair must be aligned "
                "and of one size"
            )
        if reasons:
            raise FastsketchError("; ".join(reasons))

    def _measure(self) -> tuple[int, int]:
        """The frame of all pictures, scaled."""
        pictures = {pair.photo for pair in self.pairs} | set(self.drawings)
        return frame_of(size_within(header_size(path), self.image_size) for path in pictures)

    def _draw_place(self, random: np.random.Generator) -> Place:
        room = [canvas - item for canvas, item in zip(self.canvas_size, self.item_size, strict=True)]
        top, left = (random.integers(0, most + 1) for most in room)
        mirrored = random.random() < 0.5
        place = Place(int(top), int(left), bool(mirrored and self.flip))
        affine = self._strength(self.random_affine)
        return draw_affine(random, affine, place, self.item_size) if affine else place

    def _draw_sketch(self, random: np.random.Generator, own: Path | None) -> int:
        others = [i for i, path in enumerate(self.sketches) if path != own] or list(range(len(self.sketches)))
        return others[int(random.integers(len(others)))]

    def _crop(self, canvas: Tensor, place: Place) -> Tensor:
        height, width = self.item_size
        if place.matrix:
            return warp(canvas[None], torch.tensor([place.matrix]), self.item_size)[0]
        crop = canvas[:, place.top : place.top + height, place.left : place.left + width]
        return crop.flip(-1) if place.mirrored else crop

    def _sketch_canvas(self, number: int) -> Tensor:
        """One of `drawings`; of a pair it must be aligned with its photo."""
        path = self.drawings[number]
        sketch, sketch_size = self._canvas("sketch", path)
        if not self.unpaired:
            photo = self.pairs[number].photo
            size = self._canvas("photo", photo)[1]
            if sketch_size != size:
                raise FastsketchError(
                    f"{path}: the sketch is {sketch_size[0]}x{sketch_size[1]} but its photo {photo} is "
                    f"{size[0]}x{size[1]}; the two of a pair must be aligned and of one size"
                )
        return sketch

    def _mask_canvas(self, pair: Pair) -> Tensor:
        return self._canvas("mask", pair.photo, given=pair.mask)[0]

    def _canvas(self, kind: str, path: Path, *, given: Path | None = None) -> tuple[Tensor, tuple[int, int]]:
        """The uint8 canvas [C, H, W] and the picture's own (width, height)."""
        key = (kind, path)
        if self._cache is not None and key in self._cache:
            return self._cache[key]
        if kind == "photo":
            image = read_photo(path)
        elif kind == "sketch":
            image = read_sketch(path, self.sketch_channels)
        else:
            image = self.masks(read_photo(path), given=given, name=str(path))
        scaled = fit_within(image, self.image_size, mask=kind == "mask")
        if scaled.height > self.canvas_size[0] or scaled.width > self.canvas_size[1]:
            raise FastsketchError(
                f"{path}: {image.width}x{image.height} does not fit the canvas that its file's first bytes "
                "gave it: save it anew, upright, or use a square canvas"
            )
        entry = pad_to(TF.pil_to_tensor(scaled), *self.canvas_size)[0], image.size
        if self._cache is not None:
            self._cache[key] = entry
        return entry


def _signed(pixels: Tensor) -> Tensor:
    """0..255 to [-1, 1]."""
    return (pixels.float() / 255.0).mul_(2.0).sub_(1.0)


def _checked_epoch(epoch: int) -> int:
    if epoch < 0:
        raise ValueError(f"epoch must not be negative, got {epoch}")
    return epoch


class EpochSampler(Sampler[int]):
    """A permutation of 0..length-1 for each epoch, depending on (seed, epoch) only, that can start in its middle.

    Args:
        length: of the dataset.
        seed: of the permutations.

    Raises:
        ValueError: negative seed, epoch or start, length below 1, start beyond the end.
    """

    def __init__(self, length: int, seed: int = 0) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.length = length
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses the epoch, and how many of its items have been seen already."""
        if not 0 <= start <= self.length:
            raise ValueError(f"start must lie in 0..{self.length}, got {start}")
        self.epoch = _checked_epoch(epoch)
        self.start = start

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, _ORDER_STREAM, self.epoch])
        return iter(random.permutation(self.length)[self.start :].tolist())

    def __len__(self) -> int:
        return self.length - self.start
