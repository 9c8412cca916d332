"""Random changes of the training pictures: against plain crops, the cubic's formula in float64, and their bounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fastsketch.errors import FastsketchError
from fastsketch.training.augment import Place, change_tones, draw_affine, draw_tones, warp
from fastsketch.training.data import SketchDataset
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import find_pairs
from fastsketch.training.trainer import Trainer

SIZE, CANVAS = (24, 18), (32, 28)


@pytest.fixture
def canvases():
    return torch.randint(0, 256, (2, 3, *CANVAS), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def places(strength, count, top=3, left=5):
    random = np.random.default_rng(1)
    for number in range(count):
        yield draw_affine(random, strength, Place(top, left, number % 2 == 1), SIZE)


@pytest.mark.parametrize("mirrored", [False, True])
def test_without_strength_it_is_the_plain_crop(canvases, mirrored):
    place = draw_affine(np.random.default_rng(0), 0.0, Place(3, 5, mirrored), SIZE)
    crop = canvases[:, :, 3:27, 5:23]
    got = warp(canvases, torch.tensor([place.matrix] * 2), SIZE)
    assert torch.equal(got, crop.flip(-1) if mirrored else crop)
    assert got.is_contiguous()


def keys(x):
    """Cubic convolution with a = -½ (Keys, 1981)."""
    x = abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0.0))


def test_is_cubic_sampling_with_the_border_going_on():
    """Of smooth pictures, whose steps from pixel to pixel bound what coordinates of 1/256 pixel may change."""
    down, across = (torch.linspace(0, 3, side) for side in CANVAS)
    smooth = (127 + 60 * torch.sin(down[:, None] + 1) + 60 * torch.cos(2 * across)).to(torch.uint8)
    margin = max(CANVAS)
    wide = np.pad(smooth.numpy().astype(float), margin, mode="edge")
    i, j = np.mgrid[: SIZE[0], : SIZE[1]]
    beyond = 0
    for place in places(0.3, 20):
        a, b, c, d, e, f = (value / 65536 for value in place.matrix)
        row, column = a * i + b * j + c, d * i + e * j + f
        beyond += int((row < 0).sum() + (column > CANVAS[1] - 1).sum())
        want = np.zeros(SIZE)
        for k in range(-1, 3):
            for m in range(-1, 3):
                y, x = np.floor(row).astype(int) + k, np.floor(column).astype(int) + m
                want += keys(row - y) * keys(column - x) * wide[y + margin, x + margin]
        got = warp(smooth[None, None], torch.tensor([place.matrix]), SIZE)[0, 0].numpy()
        assert np.abs(got - want).max() < 0.75  # ½ by rounding to whole values
    assert beyond > 100  # so that the border was needed


def test_black_beside_white_stays_within_its_range():
    """A cubic overshoots there."""
    stripes = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).repeat(CANVAS[0], CANVAS[1] // 4)[None, None]
    half = warp(stripes, torch.tensor([[65536, 0, 0, 0, 65536, 32768]]), SIZE)[0, 0, 0, :8]
    assert half.tolist() == [0, 128, 255, 128, 0, 128, 255, 128]


def test_turns_scales_and_shifts_about_the_middle_within_its_strength():
    strength, seen = 0.2, []
    for place in places(strength, 400):
        a, b, c, d, e, f = (value / 65536 for value in place.matrix)
        way = -1 if place.mirrored else 1
        assert math.isclose(a, e * way, abs_tol=1e-4) and math.isclose(d, -b * way, abs_tol=1e-4)  # no shear
        middle, centre = ((side - 1) / 2 for side in SIZE)
        seen.append(
            (
                math.log(math.hypot(a, d)),
                math.atan2(d, a),
                (a * middle + b * centre + c - middle - 3) / SIZE[0],
                (d * middle + e * centre + f - centre - 5) / SIZE[1],
            )
        )
    most, least = np.max(seen, axis=0), np.min(seen, axis=0)
    assert np.all(most <= strength + 1e-3) and np.all(least >= -strength - 1e-3)
    assert np.all(most > 0.9 * strength) and np.all(least < -0.9 * strength)


def test_each_picture_has_its_own_matrix(canvases):
    both = [place.matrix for place in places(0.2, 2)]
    together = warp(canvases, torch.tensor(both), SIZE)
    for got, canvas, matrix in zip(together, canvases, both, strict=True):
        assert torch.equal(got, warp(canvas[None], torch.tensor([matrix]), SIZE)[0])


def test_tones_never_fall_and_differ_from_channel_to_channel(canvases):
    random = np.random.default_rng(0)
    assert (draw_tones(random, 0.0) == np.arange(256)).all()
    tones = np.stack([draw_tones(random, 0.3) for _ in range(2)])
    assert tones.dtype == np.uint8 and tones.shape == (2, 3, 256)
    assert (np.diff(tones.astype(int)) >= 0).all() and len(np.unique(tones[:, :, 128])) > 3
    got = change_tones(canvases, torch.from_numpy(tones)).numpy()
    for picture in range(2):
        for channel in range(3):
            assert (got[picture, channel] == tones[picture, channel][canvases[picture, channel].numpy()]).all()


@pytest.mark.parametrize("way", [-1, 1])
@pytest.mark.parametrize(
    ("number", "tone"),
    [
        (0, lambda level, s: level ** math.exp(s)),
        (1, lambda level, s: 0.5 + (level - 0.5) * (1 + s / 2)),
        (2, lambda level, s: level + s / 4),
        (3, lambda level, s: level * (1 + s / 4)),
    ],
    ids=["gamma", "contrast", "brightness", "white balance of red"],
)
def test_light_changes_as_far_as_is_said(number, tone, way):
    class Extreme:
        @staticmethod
        def uniform(low, high, size):
            chances = np.zeros(size)
            chances[number] = high if way > 0 else low
            return chances

    level, strength = np.arange(256) / 255, 0.4
    red, *others = draw_tones(Extreme, strength)
    want = np.clip(tone(level, way * strength), 0, 1) * 255
    assert np.abs(red - want).max() <= 0.5 + 1e-9
    for other in others:
        assert (other == (np.arange(256) if number == 3 else red)).all()


def test_photo_mask_and_sketch_of_a_pair_move_together(data):
    """A grey photo put in the place of its mask and sketch stays equal to them; light changes the photo alone."""
    pair = find_pairs(data, "train")[0]
    Image.open(pair.photo).convert("L").save(pair.photo)
    sets = [
        SketchDataset([replace(pair, sketch=pair.photo, mask=pair.photo)], image_size=64, sketch_channels=3, **options)
        for options in (
            {"random_affine": 0.1, "masks": MaskSource("folder")},
            {"random_affine": 0.1, "color_jitter": 0.3, "masks": MaskSource("folder")},
        )
    ]
    for epoch in range(4):
        plain, lit = (dataset.set_epoch(epoch) or dataset[0] for dataset in sets)
        assert torch.equal(plain["photo"], plain["sketch"])
        assert torch.equal(plain["photo"][:1], plain["mask"] * 2 - 1)
        assert not torch.equal(lit["photo"], lit["sketch"])


def test_items_without_augmentation_are_those_of_before(data):
    """The same numbers of chance: a run of before there was a choice goes on with the same pictures."""
    dataset = SketchDataset(find_pairs(data, "train"), image_size=40, canvas="square", crop_size=32, seed=3)
    random = np.random.default_rng([3, 0, 2, 1])
    top, left = random.integers(0, 9, size=2)
    dataset.set_epoch(2)
    drawn = dataset.draw(1)
    assert drawn.place == (top, left, random.random() < 0.5, None) and drawn.tones is None


def test_from_some_epoch_on_items_are_those_without_augmentation(data):
    options = {"random_affine": 0.1, "color_jitter": 0.3}
    plain, always, early, never = (
        SketchDataset(find_pairs(data, "train"), image_size=40, **changes)
        for changes in ({}, options, options | {"augment_epochs": 2}, options | {"augment_epochs": 0})
    )
    for epoch in range(4):
        items = [dataset.set_epoch(epoch) or dataset[1] for dataset in (plain, always, early, never)]
        for name in ("photo", "sketch", "mask"):
            without, with_it, until_two, without_too = (item[name] for item in items)
            assert torch.equal(without, without_too) and not torch.equal(without, with_it)
            assert torch.equal(until_two, with_it if epoch < 2 else without)


@pytest.mark.parametrize(("augment_decay", "epochs"), [(True, [True, True, True]), (False, [True, True, False])])
def test_a_run_may_end_without_augmentation(tiny, augment_decay, epochs):
    config = tiny(epochs=2, decay_epochs=1, random_affine=0.1, augment_decay=augment_decay)
    dataset = Trainer(config, config.data, quiet=True).dataset
    assert [bool((dataset.set_epoch(epoch) or dataset.draw(0)).place.matrix) for epoch in range(3)] == epochs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random_affine": -0.1}, r"random_affine must (be 0 to 0\.5|lie in 0\.\.0\.5), got -0\.1"),
        ({"random_affine": 0.6}, r"random_affine must (be 0 to 0\.5|lie in 0\.\.0\.5), got 0\.6"),
        ({"color_jitter": 1.5}, r"color_jitter must (be 0 to 1|lie in 0\.\.1), got 1\.5"),
        ({"color_jitter": float("nan")}, r"color_jitter must (be 0 to 1|lie in 0\.\.1), got nan"),
    ],
)
def test_bad_strengths_are_named(data, tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        SketchDataset(find_pairs(data, "train"), image_size=32, **changes)
    with pytest.raises(FastsketchError, match=message):
        tiny(**changes)
