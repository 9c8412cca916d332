"""Image files in and out: reading photos, sketches and masks, tensors, padding, saving.

Tensors are float32. Photos and sketches lie in [-1, 1], masks in [0, 1] (1 = person).
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageFile, ImageOps
from torch import Tensor

from fastsketch.errors import FastsketchError
from fastsketch.training.files import written_whole

SMALLEST = 8
"""Pixels a side that a photo needs at least, to be drawn or to have a mask made."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

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


def to_tensor(image: Image.Image) -> Tensor:  # [C, H, W]
    """8-bit L or RGB image to float32 [C, H, W] in [-1, 1]: x / 127.5 - 1."""
    return mask_to_tensor(image).mul_(2.0).sub_(1.0)


def to_image(tensor: Tensor) -> Image.Image:
    """Float [C, H, W] in [-1, 1] (C = 1 or 3) to an 8-bit L or RGB image.

    Values outside the range are clamped; `to_image(to_tensor(image))` is the image.

    Raises:
        ValueError: another shape, or non-finite values.
    """
    return mask_to_image((tensor.detach().float() + 1.0) / 2.0)


def mask_to_tensor(image: Image.Image) -> Tensor:  # [C, H, W]
    """8-bit L or RGB image to float32 [C, H, W] in [0, 1]."""
    if image.mode not in ("L", "RGB"):
        raise ValueError(f"image mode must be L or RGB, got {image.mode}")
    array = np.array(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array)).float() / 255.0


def mask_to_image(tensor: Tensor) -> Image.Image:
    """Float [C, H, W] in [0, 1] (C = 1 or 3) to an 8-bit L or RGB image."""
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise ValueError(f"tensor must be [1, H, W] or [3, H, W], got {tuple(tensor.shape)}")
    tensor = tensor.detach().float().cpu()
    if not torch.isfinite(tensor).all():
        raise ValueError("tensor has non-finite values and cannot become an image")
    array = (tensor.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()
    return Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0).copy())


def fit_within(image: Image.Image, height: int, width: int, *, mask: bool = False) -> Image.Image:
    """Scales an image down (antialiased, aspect kept) to fit in height x width.

    An image that already fits is returned as it is: nothing is ever enlarged.

    Args:
        image: any PIL image.
        height: room in pixels.
        width: room in pixels.
        mask: bilinear instead of bicubic, which would overshoot at the edges of a mask.
    """
    size = size_within(image.size, height, width)
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BILINEAR if mask else Image.Resampling.BICUBIC)


def size_within(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """What `fit_within` makes of an image of this (width, height)."""
    scale = min(height / size[1], width / size[0])
    return size if scale >= 1 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


@dataclass(frozen=True)
class Padding:
    """Pixels added on each side of an image."""

    left: int
    top: int
    right: int
    bottom: int


def centred_padding(size: tuple[int, int], height: int, width: int) -> Padding:
    """Padding that centres an image of size (H, W) on a height x width canvas.

    Raises:
        ValueError: the image is larger than the canvas.
    """
    extra_h, extra_w = height - size[0], width - size[1]
    if extra_h < 0 or extra_w < 0:
        raise ValueError(f"canvas {height}x{width} is smaller than the image {size[0]}x{size[1]} (H x W)")
    left, top = extra_w // 2, extra_h // 2
    return Padding(left, top, extra_w - left, extra_h - top)


def pad(tensor: Tensor, padding: Padding, mode: str = "edge") -> Tensor:
    """Pads the last two dimensions of a [..., H, W] tensor; see `pad_to` for `mode`."""
    sides = (padding.left, padding.right, padding.top, padding.bottom)
    if mode == "white":
        return F.pad(tensor, sides, value=1.0)
    if mode != "edge":
        raise ValueError(f"mode must be 'edge' or 'white', got {mode!r}")
    # torch's replicate padding wants a batch dimension and a floating-point dtype; indexing does not.
    height, width = tensor.shape[-2:]
    rows = torch.arange(-padding.top, height + padding.bottom, device=tensor.device)
    columns = torch.arange(-padding.left, width + padding.right, device=tensor.device)
    tensor = tensor.index_select(-2, rows.clamp_(0, height - 1))
    return tensor.index_select(-1, columns.clamp_(0, width - 1))


def pad_to(
    tensor: Tensor,  # [..., H, W]
    height: int,
    width: int,
    mode: str = "edge",
) -> tuple[Tensor, Padding]:
    """Pads an image, centred, to height x width.

    Args:
        tensor: [..., H, W], any dtype.
        height: of the canvas, at least H.
        width: of the canvas, at least W.
        mode: "edge" repeats the border pixels (shoulders go on, paper stays paper; a reflection
            would double shoulders), "white" fills with 1, which is white paper in [-1, 1].

    Returns:
        The padded tensor [..., height, width] and the padding, for `crop_back`.

    Raises:
        ValueError: canvas smaller than the image, or unknown mode.
    """
    padding = centred_padding((tensor.shape[-2], tensor.shape[-1]), height, width)
    return pad(tensor, padding, mode), padding


def pad_to_multiple(
    tensor: Tensor,  # [..., H, W]
    multiple: int = 4,
    mode: str = "edge",
) -> tuple[Tensor, Padding]:
    """Pads height and width up to a multiple (4: the generator halves twice); see `pad_to`."""
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}")
    height, width = (-(-size // multiple) * multiple for size in tensor.shape[-2:])
    return pad_to(tensor, height, width, mode)


def crop_back(tensor: Tensor, padding: Padding) -> Tensor:
    """Cuts the padding off again: [..., H + top + bottom, W + left + right] to [..., H, W]."""
    height, width = tensor.shape[-2:]
    bottom, right = height - padding.bottom, width - padding.right
    if bottom <= padding.top or right <= padding.left:
        raise ValueError(f"tensor {height}x{width} is smaller than its padding {padding}")
    return tensor[..., padding.top : bottom, padding.left : right]


def save_image(image: Image.Image | Tensor, path: str | Path) -> None:
    """Writes an image file whole or not at all; the suffix chooses the format.

    Args:
        image: a PIL image, or a tensor [C, H, W] in [-1, 1].
        path: where to; its folder is made when missing.

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
        image.save(temporary)
