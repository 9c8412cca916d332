"""What the report and the app show is what `fastsketch generate` draws."""

import pytest
from PIL import Image

from fastsketch import app
from fastsketch.cli import main
from fastsketch.drawing import draw
from fastsketch.nn import StructureSampler
from fastsketch.training.checkpoint import load_generator
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
