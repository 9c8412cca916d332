"""The report in a real browser: it opens, sorts, shows all its pictures, asks nobody, and says what it compared."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from fastsketch.cli import main
from fastsketch.report import curves
from fastsketch.training.history import LossHistory, running_mean


def report(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["report", *map(str, arguments), "--device", "cpu", "--quiet"])
    return caught.value.code, *capsys.readouterr()


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    """LPIPS has no weights, wherever the tests run."""
    monkeypatch.delenv("FASTSKETCH_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def order(page) -> list[str]:
    return page.locator(".gallery").first.locator("h4").all_inner_texts()


def scores(page, metric: str) -> list[float]:
    items = page.locator(".gallery").first.locator("li")
    return [float(items.nth(i).get_attribute(f"data-{metric}")) for i in range(items.count())]


def test_one_run_in_the_browser(capsys, a_run, tmp_path, page):
    target = tmp_path / "pages" / "report.html"
    code, out, err = report(capsys, a_run(), "-o", target)
    assert code == 0 and re.search(rf"{re.escape(str(target))}: [1-9]\d* KiB", out), err

    shown = page(viewport={"width": 1280, "height": 900})
    shown.goto(target.as_uri())
    pictures = shown.locator("img")
    assert pictures.count() == 4 * 4
    sizes = pictures.evaluate_all(
        "all => Promise.all(all.map(i => i.decode().then(() => [i.naturalWidth, i.naturalHeight])))"
    )
    assert sizes == [[64, 80], [256, 320], [64, 80], [64, 80]] * 4
    assert all(text for text in pictures.evaluate_all("all => all.map(i => i.alt)"))
    assert shown.locator("svg[role=img] polyline.mean").count() == 2
    assert shown.locator("h3 ~ .scroll th[scope=col]").count() == 6
    text = shown.inner_text("main")
    assert "All 4 test pictures." in text and "LPIPS-vgg is not available: " in text and "preset fsscl" in text
    assert "trained for 50 steps, 3 of 100 epochs" in text and "over 50 steps" in shown.content()

    assert order(shown) == sorted(order(shown))
    for metric in ("fsim", "ssim"):
        button = shown.locator(f"button[data-key={metric}]")
        button.focus()
        shown.keyboard.press("Enter")
        best_first = scores(shown, metric)
        assert best_first == sorted(best_first, reverse=True) and len(set(best_first)) == 4
        assert button.get_attribute("aria-pressed") == "true" and "best first" in shown.inner_text("[role=status]")
        names = order(shown)
        shown.keyboard.press("Space")
        assert order(shown) == names[::-1] and "worst first" in shown.inner_text("[role=status]")
    shown.click("button[data-key=order]")
    assert order(shown) == sorted(order(shown))

    assert [url for url in shown.requests if not url.startswith("data:")] == [target.as_uri()]
    assert shown.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(capsys, a_run, tmp_path, page, scheme):
    target = tmp_path / "report.html"
    assert report(capsys, a_run(), "-o", target, "--limit", 3)[0] == 0
    shown = page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    shown.goto(target.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360  # nothing sticks out
    assert "3 of 4 test pictures" in shown.inner_text("main")
    red, green, blue = shown.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )
    assert (max(red, green, blue) < 60) if scheme == "dark" else (min(red, green, blue) > 230)


def test_several_runs_are_compared(capsys, a_run, tmp_path, page):
    target = tmp_path / "report.html"
    runs = a_run(), a_run("<b>second & last", "cut", 4, lr=1e-3, attention=False)
    assert report(capsys, *runs, "-o", target)[0] == 0
    shown = page()
    shown.goto(target.as_uri())
    rows = shown.locator(".compared tbody tr")
    assert rows.locator("th").all_inner_texts() == ["first", "<b>second & last"]  # escaped, not obeyed
    heads = [text.strip() for text in shown.locator(".compared thead th").all_inner_texts()]
    cells = dict(zip(heads, rows.nth(1).locator("th, td").all_inner_texts(), strict=True))
    assert cells["lr"] == "0.001" and cells["attention"] == "no" and cells["lambda pixel"] == "0"
    assert cells["steps"] == "50" and cells["LPIPS-vgg ↓"] == "n/a"
    assert shown.locator(".compared .best").count() == 2
    assert shown.locator(".warning").count() == 0
    assert "no structure map" in shown.inner_text("#run1")
    assert shown.errors == []


def test_a_folder_without_a_test_split_is_told(capsys, a_run, faces, tmp_path):
    target, plain = tmp_path / "report.html", next(faces.glob("*/test"))
    for data, told in ((plain, True), (faces, False)):
        assert report(capsys, a_run(), "--data", data, "-o", target, "--limit", 1)[0] == 0
        assert (f"{data} has no test split" in target.read_text()) == told


def test_runs_of_different_sizes_are_not_called_comparable(capsys, a_run, tmp_path):
    target = tmp_path / "report.html"
    assert report(capsys, a_run(), a_run("smaller", image_size=64), "-o", target, "--limit", 1)[0] == 0
    text = target.read_text()
    assert "figures are not comparable" in text and 'class="number best"' not in text


@pytest.mark.parametrize("another", [False, True])
def test_runs_are_comparable_by_their_pictures_not_their_folders(capsys, a_run, faces, tmp_path, another):
    data, target = tmp_path / "copy", tmp_path / "report.html"
    shutil.copytree(faces, data)
    if another:
        first, second = sorted(data.glob("*/test/sketches/*"))[:2]
        shutil.copy(second, first)
    assert report(capsys, a_run(), a_run("second", seed=4, data=str(data)), "-o", target, "--limit", 1)[0] == 0
    assert ("figures are not comparable" in target.read_text()) == another


def test_an_unpaired_run(capsys, a_run, faces, tmp_path, page):
    """Some test photos have a sketch of their name; one of them is of another size, so of something else."""
    data = tmp_path / "unpaired"
    shutil.copytree(faces, data)
    (data / "manifest.csv").unlink(missing_ok=True)
    sketches = sorted(data.glob("*/test/sketches/*"))
    sketches[0].unlink()
    with Image.open(sketches[1]) as sketch:
        larger = sketch.resize((70, 80))
    larger.save(sketches[1])
    run = a_run(unpaired=True, lambda_pixel=0.0, lambda_perceptual=0.0)
    target = tmp_path / "report.html"
    assert report(capsys, run, "--data", data, "-o", target)[0] == 0
    shown = page()
    shown.goto(target.as_uri())
    assert "Over the 2 of 4 test photos that have a sketch" in shown.inner_text("main")
    assert shown.locator("img").count() == 4 * 4 - 2
    unscored = order(shown)[:2]
    for _ in range(2):  # best first, worst first
        shown.click("button[data-key=ssim]")
        assert order(shown)[2:] == unscored

    for sketch in sketches[1:]:
        sketch.unlink()
    (sketches[0].parent / "other.png").write_bytes(b"")
    assert report(capsys, run, "--data", data, "-o", target)[0] == 0
    shown.goto(target.as_uri())
    assert "No test photo has a sketch of its own" in shown.inner_text("main")
    assert shown.locator("button").count() == 1 and shown.locator("img").count() == 4 * 3
    second = a_run("second", kept=False)
    assert report(capsys, run, second, "-o", target)[0] == 0  # the paired data of both
    shown.goto(target.as_uri())
    assert "set to train for 100 epochs" in shown.inner_text("#run1")
    assert shown.errors == []


def test_refuses(capsys, a_run, tmp_path):
    run = a_run()
    (tmp_path / "empty").mkdir()
    cases = {
        "not the folder of a run": [tmp_path / "empty"],
        "limit must be at least 1": [run, "--limit", 0],
        "no-such-data": [run, "--data", tmp_path / "no-such-data"],
        "is a folder": [run, "-o", tmp_path],
        "needs the folder of a run": [],
    }
    for message, arguments in cases.items():
        code, _, err = report(capsys, *arguments, *([] if "-o" in arguments else ["-o", tmp_path / "report.html"]))
        assert code == 1 and message in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "report.html").exists()
    (run / "generator.safetensors").unlink()
    code, _, err = report(capsys, run, "-o", tmp_path / "report.html")
    assert code == 1 and "no generator.safetensors" in err


def test_curves(tmp_path):
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    assert np.allclose(running_mean(values, 3), [1.5, 7 / 3, 14 / 3, 28 / 3, 12])
    assert np.array_equal(running_mean(values, 1), values)
    assert curves.nice_ticks(0, 1.7) == [0, 0.5, 1, 1.5]
    assert curves.nice_ticks(10, 640) == [200, 400, 600]
    history = LossHistory(tmp_path / "losses.csv")
    for step in range(1, 2001):
        history.add(step, {"nce": 3.0, **({"late": 1.0} if step == 2000 else {})})
    (flat,) = curves.curves(history)  # a loss with one row is no curve
    points = [tuple(map(float, point.split(","))) for point in flat.mean.split()]
    assert flat.name == "nce" and flat.first == flat.last == 3.0 and len(points) == curves.MOST_POINTS
    assert points[0][0] == curves.LEFT and points[-1][0] == curves.WIDTH - curves.RIGHT
    assert {y for _, y in points} == {curves.TOP}
    falling = LossHistory(tmp_path / "falling.csv")
    for step in range(1, 41):
        falling.add(step, {"nce": 41.0 - step})
    (curve,) = curves.curves(falling)
    heights = [float(point.split(",")[1]) for point in curve.raw.split()]
    assert (curve.first, curve.last, curve.steps) == (39.5, 1.5, 40)
    assert heights == sorted(heights) and heights[0] < heights[-1] < curves.HEIGHT - curves.BOTTOM


def test_all_runs_are_looked_for_before_one_is_drawn(capsys, a_run, tmp_path, monkeypatch):
    def drawn(*arguments, **named):
        raise AssertionError("drawn before all runs were looked for")

    monkeypatch.setattr("fastsketch.report.look_at_run", drawn)
    page = tmp_path / "report.html"
    code, _, err = report(capsys, a_run(), page)
    assert (
        code == 1 and f"{page}: not the folder of a run (no settings.json); to write the page there: -o {page}" in err
    )
    torn = a_run("torn")
    (torn / "generator.safetensors").unlink()
    code, _, err = report(capsys, a_run(), torn)
    assert code == 1 and "no generator.safetensors" in err


def test_a_run_that_one_may_only_read(capsys, a_run, tmp_path):
    run = a_run(masks="grabcut")
    (run / "masks").write_text("no folder, so nothing can be kept here")
    code, _, err = report(capsys, run, "-o", tmp_path / "report.html")
    assert code == 0, err
