"""Masks made from drawn portraits whose true outline is known."""

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fastsketch.errors import FastsketchError
from fastsketch.training import made_masks, masks
from fastsketch.training.images import save_image
from fastsketch.training.made_masks import border_is_white, grabcut_mask, person_mask, white_background_mask
from fastsketch.training.masks import MaskSource
from fastsketch.weights import WeightsNotFound

HEIGHT, WIDTH = 250, 200


def portrait(background: tuple[int, int, int], shirt: tuple[int, int, int] = (40, 60, 120)) -> tuple:
    """A head over shoulders, with JPEG-like noise, and its true outline [H, W]."""
    pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:] = background
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    for canvas, tones in ((pixels, (shirt, (210, 160, 130), (30, 25, 20))), (truth, (1, 1, 1))):
        cv2.ellipse(canvas, (100, 265), (88, 60), 0, 0, 360, tones[0], -1)
        cv2.rectangle(canvas, (78, 170), (122, 225), tones[1], -1)
        cv2.ellipse(canvas, (100, 110), (58, 78), 0, 0, 360, tones[1], -1)
        cv2.ellipse(canvas, (100, 75), (58, 50), 0, 180, 360, tones[2], -1)
    noise = np.random.default_rng(0).normal(0, 3, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8), truth


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return float(np.minimum(mask, truth).sum() / np.maximum(mask, truth).sum())


def test_white_background():
    pixels, truth = portrait((250, 250, 250))
    photo = Image.fromarray(pixels)
    assert border_is_white(photo)
    mask = white_background_mask(photo)
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert overlap(mask, truth) > 0.99


def test_white_background_with_rules_specks_and_white_inside():
    pixels, truth = portrait((250, 250, 250))
    clean = pixels.copy()
    cv2.line(pixels, (0, 8), (199, 14), (0, 0, 0), 1)  # the edge of a rotated scan
    cv2.ellipse(pixels, (170, 15), (25, 8), 0, 0, 360, (230, 200, 190), -1)  # a stain
    for x in (85, 115):
        cv2.circle(pixels, (x, 110), 9, (255, 255, 255), -1)  # spectacles that reflect
    cv2.fillPoly(pixels, [np.array([[85, 249], [100, 215], [115, 249]])], (255, 255, 255))  # a collar, open below
    assert overlap(white_background_mask(Image.fromarray(pixels)), truth) > 0.985
    assert overlap(white_background_mask(Image.fromarray(clean)), truth) > 0.99


@pytest.mark.parametrize("shirt", [(40, 60, 120), (45, 45, 50)])
def test_black_wedge_below_is_background(shirt):
    pixels, truth = portrait((250, 250, 250), shirt)
    wedge = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(wedge, [np.array([[0, 249], [0, 242], [199, 228], [199, 249]])], 1)
    pixels[wedge == 1] = 3
    mask = white_background_mask(Image.fromarray(pixels))
    assert mask[wedge == 1].mean() < 0.1
    assert overlap(mask, truth * (1 - wedge)) > 0.97


def test_black_clothes_are_no_wedge():
    pixels, truth = portrait((250, 250, 250), (5, 5, 5))
    assert overlap(white_background_mask(Image.fromarray(pixels)), truth) > 0.99
    pixels[230:] = np.where(truth[230:, :, None] == 1, pixels[230:], 250)
    assert not made_masks._black_wedge(pixels.max(axis=2)).any()


def test_grabcut_on_a_textured_background():
    pixels, truth = portrait((120, 150, 110))
    stripes = (25 * np.sin(np.arange(WIDTH) / 7))[None, :, None] * (1 - truth[..., None])
    photo = Image.fromarray(np.clip(pixels + stripes, 0, 255).astype(np.uint8))
    assert not border_is_white(photo)
    mask = grabcut_mask(photo)
    assert overlap(mask, truth) > 0.97
    assert np.array_equal(mask, grabcut_mask(photo))


def test_grabcut_without_contrast_gives_the_portrait_shape():
    mask = grabcut_mask(Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)))
    assert 0.3 < mask.mean() < 0.7
    assert mask[110, 100] == 1
    assert mask[0].max() == 0


class Segmenter(torch.nn.Module):
    """Calls red pixels a person."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        red = x[:, :1] - x[:, 1:2]
        logits = torch.zeros(len(x), 21, *x.shape[-2:])
        logits[:, 15:16] = self.gain * red
        return {"out": logits}


def test_person_mask_is_the_probability_of_its_class():
    pixels = np.zeros((8, 6, 3), np.uint8)
    pixels[2:5, 1:4, 0] = 255
    mask = person_mask(Image.fromarray(pixels), Segmenter())
    assert mask.shape == (8, 6)
    assert mask.dtype == np.float32
    assert mask[2:5, 1:4].min() > 0.99
    assert mask[0].max() < 0.2


def test_person_without_weights_fails_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.delenv("FASTSKETCH_WEIGHTS", raising=False)
    with pytest.raises(WeightsNotFound, match=r"lraspp_mobilenet_v3_large.*turned off"):
        MaskSource("person", download=False)


def test_person_with_weights(tmp_path):
    from safetensors.torch import save_file
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    save_file(network.state_dict(), tmp_path / "lraspp_mobilenet_v3_large.safetensors")
    photo = Image.fromarray(portrait((120, 150, 110))[0]).resize((64, 80))
    mask = MaskSource("person", weights_dir=tmp_path, download=False)(photo)
    expected = (person_mask(photo, network) * 255).round()
    assert mask.size == photo.size
    # The network's values are rounded to bytes; the same arithmetic twice differs by less than a step.
    assert np.abs(np.asarray(mask) - expected).max() <= 1


def test_auto_chooses(tmp_path):
    white, coloured = (Image.fromarray(portrait(tone)[0]) for tone in ((250, 250, 250), (120, 150, 110)))
    given = Image.new("L", white.size, 77)
    save_image(given, tmp_path / "given.png")
    source = MaskSource("auto")
    assert np.array_equal(source(white), white_background_mask(white) * 255)
    assert np.array_equal(source(coloured), grabcut_mask(coloured) * 255)
    assert np.array_equal(source(white, given=tmp_path / "given.png"), given)
    assert np.array_equal(MaskSource("white")(white, given=tmp_path / "given.png"), source(white))
    assert np.asarray(MaskSource("none")(white)).min() == 255
    blank = Image.new("RGB", white.size, "white")
    assert np.array_equal(source(blank), grabcut_mask(blank) * 255)


def test_large_photos_are_masked_at_working_size():
    pixels, truth = portrait((250, 250, 250))
    big = Image.fromarray(pixels).resize((800, 1000), Image.Resampling.BICUBIC)
    mask = MaskSource("white")(big)
    assert mask.size == big.size
    assert overlap(np.asarray(mask.resize((WIDTH, HEIGHT))) / 255.0, truth) > 0.97


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"mask method must be one of auto, .*got 'magic'"):
        MaskSource("magic")
    photo = Image.fromarray(portrait((250, 250, 250))[0])
    with pytest.raises(FastsketchError, match=r"p\.png: no mask file"):
        MaskSource("folder")(photo, name="p.png")
    save_image(Image.new("L", (10, 10)), tmp_path / "small.png")
    with pytest.raises(FastsketchError, match=r"small\.png: the mask is 10x10 but its photo p\.png is 200x250"):
        MaskSource("auto")(photo, given=tmp_path / "small.png", name="p.png")
    with pytest.raises(FastsketchError, match=r"p\.png: no person on a white background .*covers 0%"):
        MaskSource("white")(Image.new("RGB", (50, 50), "white"), name="p.png")
    with pytest.raises(ValueError, match="got mode L"):
        MaskSource("none")(photo.convert("L"))


@pytest.mark.parametrize("method", ["auto", "white", "grabcut"])
def test_photos_too_small_for_a_mask_are_named(method):
    with pytest.raises(FastsketchError, match="dot: 1×1 pixels; the shorter side needs 8"):
        MaskSource(method)(Image.new("RGB", (1, 1)), name="dot")


def test_cache(tmp_path, monkeypatch):
    photo = Image.fromarray(portrait((250, 250, 250))[0])
    cache = tmp_path / "run" / "masks"
    first = MaskSource("white", cache)(photo)
    (entry,) = cache.iterdir()
    assert re.fullmatch(r"[0-9a-f]{32}\.png", entry.name)

    # A second source reads the entry, and does not make the mask again.
    save_image(Image.new("L", photo.size, 99), entry)
    assert np.asarray(MaskSource("white", cache)(photo)).max() == 99

    # Damaged or wrong entries are made anew.
    for damage in (entry.read_bytes()[:40], b""):
        entry.write_bytes(damage)
        assert np.array_equal(MaskSource("white", cache)(photo), first)
    save_image(Image.new("L", (3, 3)), entry)
    assert np.array_equal(MaskSource("white", cache)(photo), first)
    assert np.array_equal(np.asarray(Image.open(entry)), first)

    # Another photo, method or version is another entry.
    MaskSource("white", cache)(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    MaskSource("grabcut", cache)(photo)
    monkeypatch.setattr(masks, "MASK_VERSION", 999)
    MaskSource("white", cache)(photo)
    assert len(list(cache.iterdir())) == 4

    # What auto makes where there is no white background is no mask of the method white.
    blank = Image.new("RGB", photo.size, "white")
    assert np.asarray(MaskSource("auto", cache)(blank)).max() == 255
    with pytest.raises(FastsketchError, match="no person on a white background"):
        MaskSource("white", cache)(blank)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    photo = Image.fromarray(portrait((250, 250, 250))[0])
    closed = tmp_path / "masks"
    closed.write_text("no folder")
    assert np.array_equal(MaskSource("white", closed)(photo), MaskSource("white")(photo))


def test_real_photos():
    root = os.environ.get("FASTSKETCH_CUFS")
    if not root:
        pytest.skip("FASTSKETCH_CUFS names no folder with the CUFS pairs")
    photos = sorted(Path(root).glob("*/*/photos/*.jpg"))[::12]
    for path in photos:
        photo = Image.open(path).convert("RGB")
        assert border_is_white(photo)
        mask = white_background_mask(photo)
        assert 0.35 < mask.mean() < 0.95
        assert mask[110:180, 80:120].mean() > 0.99  # the middle of the face
        assert mask[:12].mean() < 0.5
