"""What pictures are padded to: sizes, a tight canvas in training, and drawings padded as that was."""

import json

import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load, save

from fastsketch.errors import FastsketchError
from fastsketch.training.canvas import frame_of, in_proportion, tight_canvas
from fastsketch.training.checkpoint import load_generator, read_training
from fastsketch.training.data import SketchDataset
from fastsketch.training.generate import draw_sketch, read_for_drawing
from fastsketch.training.images import crop_back, pad_to, pad_to_frame, to_image
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import find_pairs
from fastsketch.training.trainer import Trainer

NONE = MaskSource("none")


def write_pair(root, name, size):
    for kind in ("photos", "sketches"):
        (root / kind).mkdir(parents=True, exist_ok=True)
        Image.radial_gradient("L").resize(size).convert("RGB").save(root / kind / f"{name}.png")


def test_the_frame_holds_all_pictures():
    assert frame_of([(200, 250)]) == (250, 200) and tight_canvas((250, 200)) == (252, 200)
    assert frame_of([(200, 250), (240, 180)]) == (250, 240)
    assert frame_of([(20, 64)]) == (64, 32)  # less cannot be trained on


@pytest.mark.parametrize(
    ("size", "frame", "want"),
    [
        ((250, 200), (250, 200), (252, 200)),
        ((1000, 800), (250, 200), (1000, 800)),  # of any size: nothing is rounded before it is scaled
        ((125, 100), (250, 200), (128, 100)),
        ((100, 100), (250, 200), (128, 100)),
        ((100, 200), (250, 200), (252, 200)),
        ((300, 100), (250, 200), (300, 240)),
        ((250, 200), None, (252, 252)),
        ((13, 6), (256, 256), (16, 16)),
    ],
)
def test_the_smallest_canvas_of_the_frames_proportions(size, frame, want):
    assert in_proportion(size, frame) == want
    image = torch.rand(3, *size)
    padded, padding = pad_to_frame(image, frame)
    assert torch.equal(padded, pad_to(image, *want)[0]) and torch.equal(crop_back(padded, padding), image)


def test_a_tight_canvas_holds_the_largest_and_pads_the_others(tmp_path):
    for name, size in (("a", (40, 50)), ("b", (46, 38)), ("c", (200, 400))):  # c is scaled to 32x64
        write_pair(tmp_path, name, size)
    data = SketchDataset(find_pairs(tmp_path), image_size=64, canvas="tight", masks=NONE, flip=False)
    square = SketchDataset(find_pairs(tmp_path), image_size=64, canvas="square", masks=NONE, flip=False)
    assert (data.frame, data.canvas_size, data.item_size) == ((64, 46), (64, 48), (64, 48))
    assert (square.frame, square.canvas_size, square.item_size) == ((64, 64),) * 3
    for index in range(3):
        for name in ("photo", "sketch", "mask"):
            assert torch.equal(data[index][name], square[index][name][..., 8:56])
    cropped = SketchDataset(find_pairs(tmp_path), image_size=64, canvas="tight", crop_size=56, masks=NONE)
    assert cropped.item_size == (56, 48) == tuple(cropped[0]["photo"].shape[1:])


def test_unpaired_sketches_are_held_too(tmp_path):
    write_pair(tmp_path, "a", (40, 36))
    Image.new("L", (36, 60)).save(tmp_path / "large.png")
    pairs = find_pairs(tmp_path)
    data = SketchDataset(
        pairs, image_size=64, canvas="tight", masks=NONE, unpaired=True, sketches=[tmp_path / "large.png"]
    )
    assert data.canvas_size == (60, 40) and data[0]["sketch"].shape == data[0]["sketch_mask"].shape == (1, 60, 40)


def test_a_picture_that_says_late_that_it_is_to_be_turned_is_named(tmp_path):
    write_pair(tmp_path, "a", (60, 40))
    photo = tmp_path / "photos" / "a.png"
    Image.open(tmp_path / "sketches" / "a.png").transpose(Image.Transpose.ROTATE_90).save(tmp_path / "sketches/a.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(photo).save(photo, exif=exif)
    whole = photo.read_bytes()
    start = whole.index(b"eXIf") - 4
    length = 12 + int.from_bytes(whole[start : start + 4], "big")
    photo.write_bytes(whole[:start] + whole[start + length : -12] + whole[start : start + length] + whole[-12:])
    pairs = find_pairs(tmp_path)
    data = SketchDataset(pairs, image_size=64, canvas="tight", masks=NONE, unpaired=True, sketches=[pairs[0].photo])
    with pytest.raises(FastsketchError, match=r"photos/a\.png: 40x60 does not fit the canvas .* a square canvas"):
        data[0]
    assert SketchDataset(pairs, image_size=64, canvas="square", masks=NONE)[0]["photo"].shape == (3, 64, 64)


def test_an_unknown_canvas_is_named(data, tiny):
    with pytest.raises(ValueError, match="canvas must be one of square, tight, got 'round'"):
        SketchDataset(find_pairs(data), canvas="round")
    with pytest.raises(FastsketchError, match="canvas must be one of square, tight, got 'round'"):
        tiny(canvas="round")


@pytest.fixture
def trained(tiny):
    """trained(**changes): the trainer of a run that has ended, of pictures 32×40."""

    def run(**changes) -> Trainer:
        config = tiny(crop_size=None, **changes)
        trainer = Trainer(config, config.data, quiet=True)
        assert trainer.run()
        return trainer

    return run


def test_a_run_is_drawn_as_it_was_trained(trained, data):
    """Instance norm averages over the padding: a photo padded otherwise is drawn otherwise."""
    trainer = trained(canvas="tight")
    assert trainer.dataset.item_size == (40, 32)
    generator = load_generator(trainer.paths.generator)
    pair = find_pairs(data, "test")[0]
    square, tight = (
        SketchDataset([pair], image_size=40, canvas=canvas, masks=MaskSource("folder"), flip=False)[0]
        for canvas in ("square", "tight")
    )
    photo, mask = read_for_drawing(pair.photo, MaskSource("folder"), None, pair.mask)
    drawn = []
    for frame, item, left in (((40, 32), tight, 0), ((40, 40), square, 4), (None, square, 4)):  # None: of before
        with torch.inference_mode():
            whole = to_image(generator(item["photo"][None], item["mask"][None])[0])
        if frame == (40, 32):
            assert generator.frame == frame  # as it was kept in the file
        generator.frame = frame
        drawn.append(draw_sketch(generator, photo, mask).tobytes())
        assert drawn[-1] == whole.crop((left, 0, left + 32, 40)).tobytes()
    assert drawn[0] != drawn[1] == drawn[2]
    with Image.open(trainer.paths.pictures / "epoch_0001.png") as grid:  # a row of four, the longer side 128
        assert grid.size == (4 * 102 + 3 * 4, 128)


@pytest.mark.parametrize("changes", [{}, {"data_on_device": "on", "random_affine": 0.1}], ids=["loaded", "on device"])
def test_a_tight_run_resumes_bit_for_bit(tiny, changes):
    config = tiny(crop_size=None, canvas="tight", epochs=2, **changes)
    straight = Trainer(config, config.data, quiet=True)
    straight.run()
    want = straight.paths.generator.read_bytes()
    for path in straight.paths.root.rglob("*"):
        path.is_file() and path.unlink()
    first = Trainer(tiny(crop_size=None, canvas="tight", epochs=1, decay_epochs=0, **changes), config.data, quiet=True)
    first.run()
    again = Trainer(tiny(crop_size=None, canvas="tight", epochs=2, resume=True, **changes), config.data, quiet=True)
    assert again.epoch == 1 and again.run()
    assert again.paths.generator.read_bytes() == want
    with pytest.raises(FastsketchError, match="canvas tight -> square"):
        Trainer(tiny(crop_size=None, canvas="square", resume=True, **changes), config.data, quiet=True)


@pytest.mark.parametrize("frame", [[0, 3], [3], "ab", [1.5, 2]])
def test_a_damaged_frame_is_refused(trained, frame):
    path = trained(canvas="tight").paths.generator
    about = {**load_generator(path).architecture, "frame": frame}
    path.write_bytes(save(load(path.read_bytes()), {"fastsketch": json.dumps(about)}))
    with pytest.raises(FastsketchError, match=r"not a generator saved by fastsketch \(its frame must be"):
        load_generator(path)


@pytest.mark.parametrize("about", [[], "text", 3, None])
def test_metadata_that_is_no_mapping_is_refused(trained, about):
    path = trained().paths.generator
    path.write_bytes(save(load(path.read_bytes()), {"fastsketch": json.dumps(about)}))
    with pytest.raises(FastsketchError, match="not a generator saved by fastsketch"):
        load_generator(path)
    assert read_training(path) is None


def test_too_many_patches_for_the_canvas_are_refused(tiny):
    config = tiny(crop_size=None, canvas="tight", num_patches=81)
    message = r"num_patches must be at most 80, .* 8×10 map .* 32×40 .* got 81; or add --canvas square"
    with pytest.raises(FastsketchError, match=message):
        Trainer(config, config.data, quiet=True)
    Trainer(tiny(crop_size=None, canvas="square", num_patches=81), config.data, quiet=True)
