"""Person masks of photos: given, or made from the photo, and kept in a cache folder.

The paper feeds "the mask derived from the input photo" [P] and does not say how it is derived; every method here is
our decision [D].
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from fastsketch.errors import FastsketchError
from fastsketch.training.images import SMALLEST, fit_within, read_mask, save_image
from fastsketch.training.made_masks import border_is_white, grabcut_mask, person_mask, white_background_mask
from fastsketch.training.mask_methods import METHODS, MaskMethod
from fastsketch.weights import load_person_segmenter

# Part of the cache key: raise it whenever a method's result changes.
MASK_VERSION = 1

_WORKING_SIDE = 512  # masks of larger photos are made at this size and scaled up


class MaskSource:
    """Gives each photo its mask, from a folder or made from the photo, remembering what it made.

    Methods: "folder" (a given file), "white" (white background), "grabcut" (any background, a centred portrait),
    "person" (torchvision's LR-ASPP segmentation, needs its weights), "none" (all person), "auto" (the given file, else
    "white" when the photo's border is near white, else "grabcut").

    Args:
        method: one of the above.
        cache_dir: folder for made masks as PNG, named by a hash of the photo's pixels, the method and `MASK_VERSION`;
            damaged entries are made anew. None keeps nothing.
        weights_dir: where "person" finds its weights; see `fastsketch.weights`.
        download: whether torchvision may download them.

    Raises:
        ValueError: unknown method.
        WeightsNotFound: method "person" without weights.
    """

    def __init__(
        self,
        method: MaskMethod = "auto",
        cache_dir: str | Path | None = None,
        *,
        weights_dir: str | Path | None = None,
        download: bool = True,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"mask method must be one of {', '.join(METHODS)}, got {method!r}")
        self.method = method
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        # Loaded at once: a missing file must not show an hour into the run.
        self._segmenter = load_person_segmenter(weights_dir, download=download) if method == "person" else None

    def __call__(self, photo: Image.Image, *, given: Path | None = None, name: str = "photo") -> Image.Image:
        """The mask of a photo.

        Args:
            photo: RGB image.
            given: mask file of this photo where there is one; only "folder" and "auto" look at it.
            name: of the photo, for messages.

        Returns:
            Mode L image of the photo's size, 255 = person.

        Raises:
            ValueError: photo is not RGB.
            FastsketchError: method "folder" without a file, a mask of another size than its photo, a photo too small to
                make a mask of, or method "white" where no background, or no person, is found.
        """
        if photo.mode != "RGB":
            raise ValueError(f"photo must be an RGB image, got mode {photo.mode}")
        method = self.method
        if method == "auto":
            unasked = "white" if border_is_white(photo) else "grabcut"
            method = unasked if given is None else "folder"
        if method == "folder":
            return _given_mask(photo, given, name)
        if method == "none":
            return Image.new("L", photo.size, 255)
        if min(photo.size) < SMALLEST:
            raise FastsketchError(
                f"{name}: {photo.width}×{photo.height} pixels; the shorter side needs {SMALLEST} at least"
            )
        cached = self._cached_path(photo, method)
        if cached is not None and cached.is_file():
            try:
                mask = read_mask(cached)
            except FastsketchError:
                mask = None  # damaged: made anew below
            if mask is not None and mask.size == photo.size:
                return mask
        mask = self._make(photo, method, name)
        if cached is not None:
            with contextlib.suppress(FastsketchError):  # a run that one may only read: its masks are made every time
                save_image(mask, cached)
        return mask

    def _cached_path(self, photo: Image.Image, method: str) -> Path | None:
        if self.cache_dir is None:
            return None
        key = hashlib.sha256(f"{method} {MASK_VERSION} {self.method == 'auto'} {photo.size} ".encode())
        key.update(photo.tobytes())
        return self.cache_dir / f"{key.hexdigest()[:32]}.png"

    def _make(self, photo: Image.Image, method: str, name: str) -> Image.Image:
        small = fit_within(photo, _WORKING_SIDE)
        if method == "person":
            assert self._segmenter is not None
            values = person_mask(small, self._segmenter)
        elif method == "grabcut":
            values = grabcut_mask(small)
        else:
            values = white_background_mask(small)
            if not 0.02 <= values.mean() <= 0.98:
                if self.method == "white":
                    raise FastsketchError(
                        f"{name}: no person on a white background found (mask covers {values.mean():.0%}); "
                        "use the mask method grabcut, person or none"
                    )
                values = grabcut_mask(small)
        mask = Image.fromarray((values * 255).round().astype(np.uint8))
        return mask if mask.size == photo.size else mask.resize(photo.size, Image.Resampling.BILINEAR)


def _given_mask(photo: Image.Image, given: Path | None, name: str) -> Image.Image:
    if given is None:
        raise FastsketchError(f"{name}: no mask file (mask method folder expects masks/ beside photos/)")
    mask = read_mask(given)
    if mask.size != photo.size:
        raise FastsketchError(
            f"{given}: the mask is {mask.width}x{mask.height} but its photo {name} is {photo.width}x{photo.height}"
        )
    return mask
