"""What the report and the app show is what `fastsketch generate` draws."""

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load, save

from fastsketch import app
from fastsketch.cli import main
from fastsketch.drawing import draw
from fastsketch.errors import FastsketchError
from fastsketch.nn import StructureSampler
from fastsketch.training.checkpoint import Training, load_generator, read_training, save_generator
from fastsketch.training.faces import write_faces
from fastsketch.training.generate import draw_sketch


@pytest.mark.parametrize("parts", [{}, {"mask_channel": False, "attention": False}], ids=["all", "none"])
@pytest.mark.parametrize("size", [(64, 80), (37, 90), (9, 11)])
def test_the_sketch_is_that_of_generate(lively, parts, size):
    generator = load_generator(lively(**parts))
    photo = Image.radial_gradient("L").resize(size).convert("RGB")
    mask = Image.linear_gradient("L").resize(size)
    drawing = draw(generator, photo, mask, StructureSampler(32))
    sketch = draw_sketch(generator, photo, mask)
    assert drawing.sketch.size == size and drawing.sketch.tobytes() == sketch.tobytes()
    assert drawing.points.size == drawing.structure.size
    width, height = drawing.points.size
    assert width * size[1] == height * size[0] and max(width, height) >= 320


def test_the_points_are_those_of_the_seed(lively):
    generator = load_generator(lively())
    photo = Image.radial_gradient("L").resize((64, 80)).convert("RGB")
    one, same, other = (draw(generator, photo, photo.convert("L"), StructureSampler(32), seed) for seed in (0, 0, 1))
    assert one.points.tobytes() == same.points.tobytes() != other.points.tobytes()
    assert one.structure.tobytes() == other.structure.tobytes()


def test_the_app_draws_what_generate_draws(a_run, tmp_path):
    """Of a photo larger than those of training too: the mask is made from the whole photo, then scaled."""
    run = a_run()  # at 80 pixels
    (photo,) = (write_faces(tmp_path / "set", train=0, test=1) / "builtin" / "test" / "photos").iterdir()
    with pytest.raises(SystemExit) as caught:
        main(["generate", str(photo), "-o", str(tmp_path), "--weights", str(run), "--device", "cpu", "--quiet"])
    assert caught.value.code == 0
    sketch, mask, *_ = app.Sketcher.load(run)(photo)
    assert sketch.size == mask.size == (64, 80)
    with Image.open(tmp_path / photo.name) as drawn:
        assert sketch.tobytes() == drawn.tobytes()


@pytest.mark.parametrize("how", [draw_sketch, lambda *arguments: draw(*arguments, StructureSampler(32))])
def test_a_mask_is_asked_for(lively, how):
    with pytest.raises(ValueError, match="mask must be given"):
        how(load_generator(lively()), Image.new("RGB", (32, 32)), None)


def drawn(capsys, out: Path, *arguments: object) -> tuple[bytes, str]:
    """The only drawing of `fastsketch generate`, and what it said."""
    with pytest.raises(SystemExit) as caught:
        main(["generate", *map(str, arguments), "-o", str(out), "--device", "cpu", "--quiet"])
    text, err = capsys.readouterr()
    assert caught.value.code == 0, err
    (path,) = out.rglob("[0-9]*.png")
    return path.read_bytes(), text


@pytest.mark.parametrize("said_by", ["weights", "settings", "nobody"])
def test_masks_are_those_of_training(capsys, a_run, faces, tmp_path, said_by):
    photo = faces / "builtin" / "test" / "photos" / "001.png"
    run = a_run("run", kept=False, masks="auto" if said_by == "weights" else "none")
    weights = run / "generator.safetensors"
    if said_by == "weights":
        save_generator(weights, load_generator(weights), Training(80, 1, 1, masks="none"))
    elif said_by == "settings":  # the file is of before it kept the masks
        about = {**load_generator(weights).architecture, "training": {"image_size": 80, "step": 1, "epoch": 1}}
        weights.write_bytes(save(load(weights.read_bytes()), {"fastsketch": json.dumps(about)}))
        assert read_training(weights) == Training(80, 1, 1, masks=None)
    else:
        (run / "settings.json").unlink()
    size = ("--image-size", 80)
    results = {
        masks: drawn(capsys, tmp_path / masks, photo, "--weights", run, *size, "--masks", masks)[0]
        for masks in ("trained", "none", "auto")
    }
    assert results["none"] != results["auto"]
    expected = "auto" if said_by == "nobody" else "none"
    assert results["trained"] == results[expected] == drawn(capsys, tmp_path / "o", photo, "--weights", run, *size)[0]
    sketch = app.Sketcher.load(run)(photo)[0]
    with Image.open(tmp_path / expected / "001.png") as picture:
        assert sketch.tobytes() == picture.tobytes()


def test_given_masks_are_made_for_photos_without(capsys, a_run, faces, tmp_path):
    run = a_run(masks="folder")
    photo = faces / "builtin" / "test" / "photos" / "001.png"
    made, text = drawn(capsys, tmp_path / "made", photo, "--weights", run)
    assert text.startswith("trained with given masks: for 1 of 1 photos, which have none, they are made (auto)")
    assert made == drawn(capsys, tmp_path / "auto", photo, "--weights", run, "--masks", "auto")[0]
    assert app.Sketcher.load(run).masks.method == "auto"
    save_generator(run / "generator.safetensors", load_generator(run / "generator.safetensors"), Training(8, 1, 1, "x"))
    with pytest.raises(FastsketchError, match="trained with masks 'x', which are not known here"):
        app.Sketcher.load(run)
