"""Image files in and out: reading photos, sketches and masks, tensors, padding, saving.

Tensors are float32. Photos and sketches lie in [-1, 1], masks in [0, 1] (1 = person).
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as TF

from fastsketch.errors import FastsketchError
from fastsketch.files import written_whole
from fastsketch.training.canvas import in_proportion

SMALLEST = 8
"""Pixels a side that a photo needs at least, to be drawn or to have a mask made."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

HEIC_HINT = "convert HEIC to JPEG or PNG first"
_HEIC_SUFFIXES = (".heic", ".heif")

# What Pillow's decoders raise on a damaged file, by experience: not only OSError.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_DECODING = threading.Lock()

_DRAWN_BY = "Software", "fastsketch"  # the text in a drawing's PNG


@contextmanager
def _whole_files_only() -> Iterator[None]:
    """Pillow's switch that makes up what a truncated file lacks, off, however a program has set it."""
    with _DECODING:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def list_folder(folder: Path) -> list[Path]:
    """What lies directly inside a folder, in order; not hidden files, which macOS puts beside pictures."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def list_images(folder: Path) -> list[Path]:
    """The pictures directly inside a folder, in order."""
    return [p for p in list_folder(folder) if p.suffix.lower() in IMAGE_SUFFIXES]


def is_heic(name: str) -> bool:
    """Whether a file's name is that of a telephone's photo, which Pillow does not read."""
    return name.lower().endswith(_HEIC_SUFFIXES)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """An image file, opened; whatever goes wrong with it is one error with its name."""
    path = Path(path)
    if not path.is_file():
        kind = "is a folder, not an image file" if path.is_dir() else "no such image file"
        raise FastsketchError(f"{path}: {kind}")
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as error:
        hint = f"; {HEIC_HINT}" if is_heic(path.name) else ""
        raise FastsketchError(f"{path}: unreadable image (of no format that is read here){hint}") from error
    except _DECODE_ERRORS as error:
        raise FastsketchError(f"{path}: unreadable image ({error})") from error


def _decode(path: str | Path) -> Image.Image:
    with _opened(path) as image, _whole_files_only():
        image.load()
        return ImageOps.exif_transpose(image)


def picture_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of an image file, pixels, upright; its pixels are decoded only where it is to be turned.

    Raises:
        FastsketchError: missing or unreadable file.
    """
    with _opened(path) as image:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image.size
    return _decode(path).size


def header_size(path: str | Path) -> tuple[int, int]:
    """`picture_size` as the file's first bytes have it, in a fraction of a millisecond.

    It is another one where a PNG says only after its pixels that it is to be turned.

    Raises:
        FastsketchError: missing file, or one that does not begin as a picture.
    """
    with _opened(path) as image:
        turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # PNG's own would decode the pixels
        if turned not in (5, 6, 7, 8):
            return image.size
        if image.format != "TIFF":
            return image.size[::-1]
    return picture_size(path)  # some Pillows turn a TIFF when it is opened, others later


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """Any 8-bit or 16-bit image as 8-bit RGB; transparent parts show white paper."""
    if image.mode.startswith("I"):
        # Pillow opens 16-bit grey as "I;16" (PNG, TIFF) or "I" (PGM): both hold 0..65535.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise FastsketchError(f"{path}: expected integer values in 0..65535, got {values.min()}..{values.max()}")
        values = (values.astype(np.uint32) + 128) // 257
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise FastsketchError(f"{path}: floating-point images have no known range; save as 8-bit")
    try:
        if not image.has_transparency_data:
            return image.convert("RGB")
        image = image.convert("RGBA")
    except ValueError as error:
        raise FastsketchError(f"{path}: cannot convert mode {image.mode} to RGB") from error
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def read_photo(path: str | Path) -> Image.Image:
    """Reads an image file as 8-bit RGB.

    The EXIF orientation is applied; grey, palette, CMYK and 16-bit images are converted;
    transparency is composited on white. A PNG that lacks only its last checksums and end marker is read: it has all
    its pixels.

    Raises:
        FastsketchError: missing, truncated or unreadable file (named, with the reason), whatever the program made of
            `PIL.ImageFile.LOAD_TRUNCATED_IMAGES`.
    """
    return _to_rgb(_decode(path), path)


def read_sketch(path: str | Path, channels: int = 1) -> Image.Image:
    """Reads a sketch as 8-bit grey (mode L, ITU-R 601 luma) or RGB.

    Args:
        path: image file.
        channels: 1 or 3.

    Raises:
        ValueError: `channels` is neither 1 nor 3.
        FastsketchError: missing, truncated or unreadable file.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels!r}")
    image = read_photo(path)
    return image.convert("L") if channels == 1 else image


def read_mask(path: str | Path) -> Image.Image:
    """Reads a mask as 8-bit grey (mode L): 255 = person, 0 = background."""
    return read_photo(path).convert("L")


def to_signed_tensor(image: Image.Image) -> Tensor:  # [C, H, W]
    """8-bit L or RGB image to float32 [C, H, W] in [-1, 1]: 2x / 255 - 1. (torchvision's `to_tensor` is in [0, 1].)

    Raises:
        ValueError: another mode.
    """
    if image.mode not in ("L", "RGB"):
        raise ValueError(f"image mode must be L or RGB, got {image.mode}")
    return TF.to_tensor(image).mul_(2.0).sub_(1.0)


def to_image(tensor: Tensor) -> Image.Image:
    """Float [C, H, W] in [-1, 1] (C = 1 or 3) to an 8-bit L or RGB image, rounded to the nearest.

    Values outside the range are clamped; `to_image(to_signed_tensor(image))` is the image.

    Raises:
        ValueError: another shape, or non-finite values.
    """
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise ValueError(f"tensor must be [1, H, W] or [3, H, W], got {tuple(tensor.shape)}")
    unsigned = ((tensor.detach().float() + 1.0) / 2.0).cpu()
    if not torch.isfinite(unsigned).all():
        raise ValueError("tensor has non-finite values and cannot become an image")
    return TF.to_pil_image((unsigned.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8))


def fit_within(image: Image.Image, side: int, *, mask: bool = False) -> Image.Image:
    """Scales an image down (antialiased, aspect kept) to fit in a square of this side, pixels.

    An image that already fits is returned as it is: nothing is ever enlarged.

    Args:
        image: any PIL image.
        side: of the square, at least 1.
        mask: bilinear instead of bicubic, which would overshoot at the edges of a mask.
    """
    size = size_within(image.size, side)
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BILINEAR if mask else Image.Resampling.BICUBIC)


def size_within(size: tuple[int, int], side: int) -> tuple[int, int]:
    """What `fit_within` makes of an image of this (width, height), pixels: (width, height)."""
    scale = side / max(size)
    return size if scale >= 1 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


class Padding(NamedTuple):
    """Pixels added on each side of an image, in torchvision's order."""

    left: int
    top: int
    right: int
    bottom: int


def pad_to(tensor: Tensor, height: int, width: int) -> tuple[Tensor, Padding]:
    """Pads an image, centred, by its border pixels: shoulders go on, where a reflection would double them.

    Args:
        tensor: [C, H, W] or [B, C, H, W], uint8 or float.
        height: of the canvas, at least H.
        width: of the canvas, at least W.

    Returns:
        The padded tensor [..., height, width] of the same dtype, contiguous, and the padding, for `crop_back`.

    Raises:
        ValueError: the canvas is smaller than the image.
    """
    extra_h, extra_w = height - tensor.shape[-2], width - tensor.shape[-1]
    if min(extra_h, extra_w) < 0:
        image = "x".join(map(str, tensor.shape[-2:]))
        raise ValueError(f"canvas {height}x{width} is smaller than the image {image} (H x W)")
    left, top = extra_w // 2, extra_h // 2
    padding = Padding(left, top, extra_w - left, extra_h - top)
    return TF.pad(tensor, padding, padding_mode="edge").contiguous(), padding


def pad_to_frame(tensor: Tensor, frame: tuple[int, int] | None) -> tuple[Tensor, Padding]:
    """Pads to the proportions of training's canvas (`in_proportion`). See `pad_to`.

    Instance norm averages over the padding too: a drawing needs as much of it as training had (docs/results.md).

    Args:
        tensor: [C, H, W] or [B, C, H, W], uint8 or float.
        frame: (height, width) of `SketchDataset.frame`; None: a square.
    """
    return pad_to(tensor, *in_proportion(tuple(tensor.shape[-2:]), frame))


def crop_back(tensor: Tensor, padding: Padding) -> Tensor:
    """Cuts the padding off again: [..., top + H + bottom, left + W + right] to [..., H, W].

    Raises:
        ValueError: nothing would be left.
    """
    height, width = tensor.shape[-2:]
    bottom, right = height - padding.bottom, width - padding.right
    if bottom <= padding.top or right <= padding.left:
        raise ValueError(f"tensor {height}x{width} is smaller than its padding {padding}")
    return tensor[..., padding.top : bottom, padding.left : right]


def save_image(image: Image.Image | Tensor, path: str | Path, **options: object) -> None:
    """Writes an image file whole or not at all; the suffix chooses the format.

    Args:
        image: a PIL image, or a tensor [C, H, W] in [-1, 1].
        path: where to; its folder is made when missing.
        options: of the format, for Pillow.

    Raises:
        FastsketchError: unknown suffix, or the file could not be written.
    """
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        known = ", ".join(IMAGE_SUFFIXES)
        raise FastsketchError(f"{path}: unknown image suffix (expected one of {known})")
    if isinstance(image, Tensor):
        image = to_image(image)
    with written_whole(path) as temporary:
        image.save(temporary, **options)


def save_drawing(image: Image.Image | Tensor, path: str | Path) -> None:
    """`save_image` of a PNG that says who drew it, for `is_drawing`."""
    mark = PngImagePlugin.PngInfo()
    mark.add_text(*_DRAWN_BY)
    save_image(image, path, pnginfo=mark)


def is_drawing(path: str | Path) -> bool:
    """Whether this is a file of `save_drawing`. Drawings of before there was that do not say so, and are none here."""
    key, value = _DRAWN_BY
    try:
        with _opened(path) as image:
            return image.format == "PNG" and image.info.get(key) == value
    except FastsketchError:
        return False
