"""The demo app in a real browser: a photo in, four pictures out, clear words for bad files, nobody else asked."""

import subprocess
import sys

import pytest
from PIL import Image

from fastsketch import app
from fastsketch.cli import main
from fastsketch.errors import FastsketchError

START = "import sys; from fastsketch.cli import main; main(sys.argv[1:])"
DECODED = (
    "name => { const i = document.querySelector(`#${name} .image-container img`); return i && i.naturalWidth > 0 }"
)
OUTPUTS = ("sketch", "mask", "structure", "points")


@pytest.fixture
def served(a_run):
    """The app's address."""
    pytest.importorskip("gradio", reason="the extra `app` is not installed (make test-app)")
    arguments = ["demo-app", "--weights", str(a_run()), "--port", "0", "--device", "cpu"]
    with subprocess.Popen([sys.executable, "-c", START, *arguments], stdout=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        yield line.split()[0]
        server.terminate()


def test_upload(served, faces, page, tmp_path):
    shown = page()
    shown.goto(served)
    upload = shown.locator("#photo input[type=file]")
    upload.set_input_files(faces / "builtin" / "test" / "photos" / "001.png")
    for name in OUTPUTS:
        shown.wait_for_function(DECODED, arg=name)
    sizes = [
        shown.eval_on_selector(f"#{name} .image-container img", "i => [i.naturalWidth, i.naturalHeight]")
        for name in OUTPUTS
    ]
    assert sizes == [[64, 80], [64, 80], [256, 320], [256, 320]]
    assert shown.errors == []
    others = [url for url in shown.requests if not url.startswith((served, "data:", "blob:"))]
    assert others == []

    for content, message in ((b"no picture", "Unreadable image"), (None, "20×5 pixels; the shorter side needs 8")):
        bad = tmp_path / "bad.png"
        if content is None:
            Image.new("RGB", (20, 5)).save(bad)
        else:
            bad.write_bytes(content)
        again = page()
        again.goto(served)
        again.locator("#photo input[type=file]").set_input_files(bad)
        toast = again.locator(".toast-body")
        toast.wait_for()
        assert message in toast.inner_text() and "/" not in toast.inner_text()  # no path of the server's


def test_any_photo_gives_four_pictures_of_its_proportions(a_run, lively, tmp_path):
    photo = tmp_path / "photo.png"
    Image.radial_gradient("L").resize((210, 90)).save(photo)
    sketch, mask, structure, points = app.Sketcher.load(a_run(), "none")(photo)  # the run's image_size is 80
    assert sketch.size == mask.size == (80, 34) and structure.size == points.size == (320, 136)
    assert structure.tobytes() != points.tobytes()
    sketch, _, structure, _ = app.Sketcher.load(lively(mask_channel=False, attention=False))(photo)
    assert sketch.size == (210, 90) and structure.getextrema() == ((0, 0), (0, 0), (3, 3))


def test_refuses(lively, tmp_path, monkeypatch, capsys):
    with pytest.raises(FastsketchError, match="no such file or run"):
        app.Sketcher.load(tmp_path / "nothing")
    with app.listen("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(FastsketchError, match="cannot listen there"):
            app.listen("127.0.0.1", taken.getsockname()[1])
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        main(["demo-app", "--weights", str(lively()), "--port", "0"])
    assert caught.value.code == 1 and "pip install 'fastsketch[app]'" in capsys.readouterr().err
