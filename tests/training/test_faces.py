"""The built-in procedural faces: determinism, agreement of photo, sketch and mask, variety, and the folder writer."""

from __future__ import annotations

import csv
from collections import Counter

import cv2
import numpy as np
import pytest

from fastsketch.errors import FastsketchError
from fastsketch.training.faces import Face, draw_face, folder, write_faces
from fastsketch.training.faces.canvas import Canvas, part, spline
from fastsketch.training.faces.traits import FEMALE_STYLES, MALE_STYLES, Traits, draw_traits

SEEDS = tuple(range(10))


@pytest.fixture(scope="module")
def faces() -> list[Face]:
    return [draw_face(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def many_traits() -> list[Traits]:
    return [draw_traits(np.random.default_rng([seed, 0])) for seed in range(600)]


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    return cv2.dilate(mask, np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)) > 0


def test_shapes_and_dtypes(faces: list[Face]) -> None:
    for face in faces:
        assert face.photo.shape == (250, 200, 3)
        assert face.sketch.shape == face.mask.shape == (250, 200)
        assert face.photo.dtype == face.sketch.dtype == face.mask.dtype == np.uint8
        assert set(np.unique(face.mask)) == {0, 255}


def test_same_seed_gives_same_bytes(faces: list[Face]) -> None:
    for seed in (0, 3):
        again = draw_face(seed)
        for name in ("photo", "sketch", "mask"):
            assert np.array_equal(getattr(again, name), getattr(faces[seed], name)), name


def test_other_seeds_give_other_faces(faces: list[Face]) -> None:
    for i, one in enumerate(faces):
        for other in faces[:i]:
            # sensor noise alone would give a mean difference of about 2
            difference = np.abs(one.photo.astype(int) - other.photo.astype(int)).mean()
            assert difference > 8
            assert np.abs(one.sketch.astype(int) - other.sketch.astype(int)).mean() > 8


def test_huge_seeds_are_welcome() -> None:
    assert draw_face(2**64 - 1, 64, 52).photo.shape == (64, 52, 3)


@pytest.mark.parametrize(("height", "width"), [(120, 96), (96, 96), (256, 256), (400, 200), (131, 377), (501, 401)])
def test_other_sizes(height: int, width: int) -> None:
    face = draw_face(5, height, width)
    assert face.photo.shape == (height, width, 3)
    assert face.sketch.shape == face.mask.shape == (height, width)
    # shoulders reach the lower edge, the top row is background
    assert face.mask[-1].any()
    assert not face.mask[0].any()


def test_small_face_is_the_large_one_reduced(faces: list[Face]) -> None:
    small = draw_face(2, 125, 100)
    reduced = cv2.resize(faces[2].photo, (100, 125), interpolation=cv2.INTER_AREA)
    assert np.abs(small.photo.astype(int) - reduced.astype(int)).mean() < 4


def test_photo_background_is_near_white_and_outside_the_mask(faces: list[Face]) -> None:
    for face in faces:
        outside = ~_grown(face.mask, 3)
        assert outside.mean() > 0.15
        assert np.percentile(face.photo[outside], 1) > 235
        # and the person is mostly darker than the background
        inside = cv2.erode(face.mask, np.ones((5, 5), np.uint8)) > 0
        assert (face.photo[inside].mean(axis=1) < 235).mean() > 0.95


def test_mask_is_one_person(faces: list[Face]) -> None:
    for face in faces:
        assert 0.3 < (face.mask > 0).mean() < 0.75
        count, _, stats, _ = cv2.connectedComponentsWithStats(face.mask)
        assert count >= 2
        areas = np.sort(stats[1:, cv2.CC_STAT_AREA])
        assert areas[-1] > 0.995 * areas.sum()


def test_dark_strokes_lie_inside_the_mask(faces: list[Face]) -> None:
    for face in faces:
        dark = face.sketch < 150
        assert dark.mean() > 0.03
        assert (dark & _grown(face.mask, 1)).sum() > 0.995 * dark.sum()


def test_sketch_is_light_paper_with_dark_accents(faces: list[Face]) -> None:
    for face in faces:
        outside = ~_grown(face.mask, 3)
        assert 225 < face.sketch[outside].mean() < 252
        assert face.sketch[outside].std() > 0.5  # the paper has grain
        assert face.sketch.min() < 80


def test_sketch_is_aligned_with_the_photo(faces: list[Face]) -> None:
    """Edges of photo and sketch correlate best where they lie, not two or more pixels away."""

    def edges(image: np.ndarray) -> np.ndarray:
        smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 0.8)
        gradient = np.hypot(cv2.Sobel(smooth, -1, 1, 0), cv2.Sobel(smooth, -1, 0, 1))
        return gradient[8:-8, 8:-8]

    total: Counter[tuple[int, int]] = Counter()
    for face in faces:
        photo = edges(cv2.cvtColor(face.photo, cv2.COLOR_RGB2GRAY))
        for dy in range(-4, 5):
            for dx in range(-4, 5):
                moved = np.roll(face.sketch, (dy, dx), axis=(0, 1))
                total[dy, dx] += float(np.corrcoef(photo.ravel(), edges(moved).ravel())[0, 1])
    best, value = total.most_common(1)[0]
    assert max(abs(best[0]), abs(best[1])) <= 1
    assert value / len(faces) > 0.4


def test_sketch_is_no_grey_photo(faces: list[Face]) -> None:
    for face in faces:
        grey = cv2.cvtColor(face.photo, cv2.COLOR_RGB2GRAY).astype(int)
        assert np.abs(grey - face.sketch)[face.mask > 0].mean() > 25


def test_traits_vary(many_traits: list[Traits]) -> None:
    count = len(many_traits)
    glasses = sum(t.glasses != "none" for t in many_traits) / count
    assert 0.15 < glasses < 0.4
    assert 0.4 < sum(t.male for t in many_traits) / count < 0.65
    assert {t.hair_style for t in many_traits} == set(MALE_STYLES) | set(FEMALE_STYLES)
    assert {t.beard for t in many_traits} == {"none", "stubble", "moustache", "goatee", "full"}
    assert {t.glasses for t in many_traits} == {"none", "round", "square", "half"}
    assert {t.clothes for t in many_traits} == {"crew", "shirt", "suit", "vneck", "roll"}
    assert all(t.male or t.beard == "none" for t in many_traits)
    most_common = Counter((t.male, t.hair_style, t.glasses, t.beard) for t in many_traits).most_common(1)[0][1]
    assert most_common < 0.15 * count


def test_traits_stay_in_range(many_traits: list[Traits]) -> None:
    for t in many_traits:
        assert 18 <= t.age <= 75
        for colour in (t.skin, t.hair_colour):
            assert colour.shape == (3,)
            assert colour.dtype == np.float32
            assert (colour > 0).all()
            assert (colour < 1).all()
        assert np.linalg.norm(t.light) == pytest.approx(1.0, abs=1e-5)  # float32
    brightness = [float(t.skin.mean()) for t in many_traits]
    assert min(brightness) < 0.25
    assert max(brightness) > 0.5
    assert {float(np.sign(t.light[0])) for t in many_traits} == {-1.0, 1.0}


def test_spline_passes_through_its_points() -> None:
    points = np.array([(0.0, 0.0), (4.0, 1.0), (6.0, 5.0), (2.0, 7.0)])
    for closed in (False, True):
        curve = spline(points, closed=closed, samples=5)
        assert np.allclose(curve[::5][: len(points)], points)  # exact but for rounding
    straight = spline([(0, 0), (1, 2), (2, 4)])
    assert np.allclose(part(straight, 0.25, 0.75, 3), [(0.5, 1), (1, 2), (1.5, 3)])


def test_canvas_fills_where_it_is_told() -> None:
    canvas = Canvas(40, 60, 2.0, (10.0, 10.0))
    square = np.array([(0.0, 0.0), (5.0, 0.0), (5.0, 4.0), (0.0, 4.0)])
    cover = canvas.full(canvas.fill(square))
    assert cover[21:27, 21:29].min() == 1.0  # face unit 0 lies at pixel edge 20
    assert cover[:18].max() == cover[:, :18].max() == cover[31:].max() == cover[:, 33:].max() == 0.0
    # a shape off the canvas is no error
    assert canvas.full(canvas.fill(square + 500)).max() == 0.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed.*-1"),
        ({"seed": 1.5}, TypeError, "seed.*float"),
        ({"seed": True}, TypeError, "seed.*bool"),
        ({"seed": 0, "height": 16}, ValueError, "height.*16"),
        ({"seed": 0, "width": 5000}, ValueError, "width.*5000"),
        ({"seed": 0, "width": "200"}, TypeError, "width.*str"),
        ({"seed": 0, "height": 500, "width": 100}, ValueError, "ratio.*500 x 100"),
    ],
)
def test_draw_face_refuses_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        draw_face(**arguments)


SMALL = {"train": 2, "test": 1, "height": 60, "width": 48}


def test_write_faces_layout(tmp_path) -> None:
    root = write_faces(tmp_path / "deep" / "set", seed=4, **SMALL)
    assert root == tmp_path / "deep" / "set"
    names = {"train": ["000", "001"], "test": ["002"]}
    for split, ids in names.items():
        for kind, flag in (("photos", cv2.IMREAD_COLOR), ("sketches", -1), ("masks", -1)):
            files = sorted((root / "builtin" / split / kind).iterdir())
            assert [file.name for file in files] == [f"{name}.png" for name in ids]
            image = cv2.imread(str(files[0]), flag)
            assert image.shape == ((60, 48, 3) if kind == "photos" else (60, 48))
    with (root / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"subset": "builtin", "split": split, "id": name} for split in names for name in names[split]]
    face = draw_face(folder.face_seed(4, 1), 60, 48)
    stored = cv2.imread(str(root / "builtin/train/photos/001.png"))[..., ::-1]
    assert np.array_equal(stored, face.photo)
    assert [entry.name for entry in root.parent.iterdir()] == ["set"]  # no draft left


def test_write_faces_reuses_a_finished_set(tmp_path, monkeypatch) -> None:
    root = write_faces(tmp_path / "set", **SMALL)
    monkeypatch.setattr(folder, "draw_face", lambda *a: pytest.fail("drew again"))
    assert write_faces(root, **SMALL) == root


def test_write_faces_mends_and_replaces(tmp_path) -> None:
    root = write_faces(tmp_path / "set", **SMALL)
    lost = root / "builtin/train/sketches/001.png"
    lost.unlink()
    write_faces(root, **SMALL)
    assert lost.is_file()
    write_faces(root, **(SMALL | {"train": 1}))
    assert not lost.exists()
    assert len(list((root / "builtin/train/photos").iterdir())) == 1


def test_write_faces_leaves_nothing_half_written(tmp_path, monkeypatch) -> None:
    def full_disk(path, image) -> None:
        if path.stem == "001":
            raise OSError(28, "No space left on device")
        path.write_bytes(b"")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_write_png", full_disk)
        with pytest.raises(FastsketchError, match=r"set.*No space left"):
            write_faces(tmp_path / "set", **SMALL)
        assert list(tmp_path.iterdir()) == []
    root = write_faces(tmp_path / "set", **SMALL)
    before = (root / folder.STAMP).read_text()
    monkeypatch.setattr(folder, "_write_png", full_disk)
    with pytest.raises(FastsketchError, match="No space left"):
        write_faces(root, seed=9, **SMALL)
    assert (root / folder.STAMP).read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_write_faces_never_overwrites_other_files(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FastsketchError, match=r"root.*notes\.txt"):
        write_faces(tmp_path, **SMALL)
    with pytest.raises(FastsketchError, match=r"root.*file"):
        write_faces(tmp_path / "notes.txt", **SMALL)
    root = write_faces(tmp_path / "set", **SMALL)
    (root / "mine.txt").write_text("mine")
    with pytest.raises(FastsketchError, match=r"mine\.txt"):
        write_faces(root, seed=1, **SMALL)
    assert (tmp_path / "notes.txt").read_text() == (root / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train": -1}, ValueError, "train.*-1"),
        ({"test": 1.0}, TypeError, "test.*float"),
        ({"train": 0, "test": 0}, ValueError, "at least one face"),
        ({"height": 8}, ValueError, "height.*8"),
        ({"seed": -2}, ValueError, "seed.*-2"),
    ],
)
def test_write_faces_refuses_bad_arguments(tmp_path, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        write_faces(tmp_path / "set", **arguments)
    assert list(tmp_path.iterdir()) == []
