"""`fastsketch generate` and `evaluate` as a user has them."""

from dataclasses import replace
from pathlib import Path

import pytest
from command import run
from PIL import Image

from fastsketch.training.checkpoint import load_generator, save_generator
from fastsketch.training.images import is_drawing, size_within
from fastsketch.training.run_files import load_settings, save_settings, trained_masks, trained_size
from fastsketch.weights import WeightsNotFound


def test_reduced_size_and_grey_photos(capsys, data, weights, tmp_path):
    drawn = tmp_path / "drawn"
    small = ("--image-size", 32, "--quiet")
    assert run(capsys, "generate", "--data", data, "-o", drawn, "--weights", weights, *small)[0] == 0
    with Image.open(drawn / "blobs" / "100.png") as picture:
        assert picture.size == (26, 32)  # 32×40 to fit
    code, _, err = run(capsys, "evaluate", drawn, "--data", data, "--metrics", "ssim", "--quiet")
    assert code == 1 and "26x32" in err and "32x40" in err
    code, _, err = run(
        capsys, "evaluate", "--grey-photos", "--out", tmp_path / "grey", "--data", data, "--metrics", "ssim", *small
    )
    assert code == 1 and "need 32 pixels" in err
    code, text, _ = run(
        capsys, "evaluate", "--grey-photos", "--out", tmp_path / "grey", "--data", data, "--metrics", "ssim", "--quiet"
    )
    assert code == 0 and "SSIM" in text and (tmp_path / "grey" / "summary.csv").is_file()
    code, _, err = run(capsys, "evaluate", drawn, "--grey-photos", "--data", data)
    assert code == 1 and "either" in err


def test_a_folder_without_a_test_split_is_told(capsys, data, weights, tmp_path):
    drawn, plain = tmp_path / "drawn", data / "blobs" / "train"
    code, text, _ = run(capsys, "generate", "--data", plain, "-o", drawn, "--weights", weights, "--quiet")
    assert code == 0 and text.startswith(f"{plain} has no test split")
    code, text, _ = run(capsys, "evaluate", drawn, "--data", plain, "--metrics", "ssim", "--quiet")
    assert code == 0 and text.startswith(f"{plain} has no test split")
    code, text, _ = run(capsys, "evaluate", drawn, "--data", plain, "--metrics", "ssim", "--quiet", "--split", "train")
    assert code == 0 and "no test split" not in text


@pytest.mark.parametrize(
    ("mode", "size"), [("L", (33, 47)), ("RGB", (64, 41)), ("RGBA", (50, 50)), ("P", (21, 37)), ("RGB", (9, 11))]
)
def test_any_photo(capsys, weights, tmp_path, mode, size):
    photo = tmp_path / "in" / "photo.png"
    photo.parent.mkdir()
    Image.radial_gradient("L").resize(size).convert(mode).save(photo)
    drawing = ("generate", photo, "-o", tmp_path / "o", "--weights", weights, "--masks", "none", "--quiet")
    for option, expected in (((), size_within(size, 40)), (("--image-size", "photo"), size)):
        code, _, err = run(capsys, *drawing, *option)
        assert code == 0, err
        with Image.open(tmp_path / "o" / "photo.png") as drawn:
            assert drawn.size == expected and drawn.mode == "L"


def test_exif_orientation_and_folders(capsys, weights, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        Image.radial_gradient("L").resize((60, 40)).save(folder / name, exif=exif)
    (folder / "notes.txt").touch()
    (folder / "more").mkdir()
    (folder / ".hidden").touch()
    command = ("generate", folder, "-o", tmp_path / "o", "--weights", weights.parent, "--image-size", "photo")
    code, text, _ = run(capsys, *command)
    assert code == 0 and "2 sketches of their photos' sizes" in text
    first = text.splitlines()[0]
    assert first.startswith("left out, not in a format that is read (.jpg, ") and first.endswith("): more/, notes.txt")
    with Image.open(tmp_path / "o" / "b.png") as drawn:
        assert drawn.size == (40, 60)


def test_one_bad_photo_does_not_stop_the_others(capsys, weights, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "acd":
        Image.radial_gradient("L").resize((40, 40)).save(folder / f"{name}.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:200])
    Image.new("L", (2, 2)).save(folder / "e.png")
    (folder / "notes.txt").touch()
    code, text, err = run(capsys, "generate", folder, "-o", tmp_path / "o", "--weights", weights, "--quiet")
    assert code == 1 and "2 of 5 photos could not be drawn, the rest are: " in err
    assert "b.png: unreadable" in err and "e.png: 2×2 pixels" in err and len(err.strip().splitlines()) == 1
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["a.png", "c.png", "d.png"]
    assert text.strip().endswith("notes.txt")
    for name in "fgh":
        (folder / f"{name}.png").write_text("no picture")
    code, _, err = run(capsys, "generate", folder, "-o", tmp_path / "o", "--weights", weights, "--quiet")
    assert code == 1 and "f.png: unreadable image (of no format that is read here); nor " in err
    assert err.strip().endswith(f"nor {folder / 'g.png'}, {folder / 'h.png'}")  # the reason of three, the names of all


def test_the_size_of_training_is_found_or_asked_for(capsys, weights, tmp_path):
    photo = tmp_path / "a.png"
    Image.radial_gradient("L").resize((80, 60)).save(photo)
    alone = tmp_path / "alone" / "generator.safetensors"
    alone.parent.mkdir()
    alone.write_bytes(weights.read_bytes())
    command = ("generate", photo, "-o", tmp_path / "o", "--quiet", "--weights")
    assert run(capsys, *command, alone)[0] == 0
    with Image.open(tmp_path / "o" / "a.png") as drawn:
        assert drawn.size == (40, 30)
    assert trained_masks(alone) == "auto"
    save_generator(alone, load_generator(alone))  # as of before it was kept
    code, _, err = run(capsys, *command, alone)
    assert code == 1 and "--image-size N, or photo" in err
    assert run(capsys, *command, alone, "--image-size", 32)[0] == 0
    code, _, err = run(capsys, *command, alone, "--image-size", 0)
    assert code == 1 and "--image-size must be at least 1" in err
    (tmp_path / "notes.txt").write_text("no weights")
    code, _, err = run(capsys, *command, tmp_path / "notes.txt")
    assert code == 1 and "not a generator saved by fastsketch" in err
    save_generator(weights, load_generator(weights))
    assert trained_size(weights) == 40  # of the settings beside it


def test_generate_refuses(capsys, weights, tmp_path, data):
    photo = tmp_path / "a.png"
    Image.radial_gradient("L").save(photo)
    other = tmp_path / "other" / "a.jpg"
    other.parent.mkdir()
    Image.radial_gradient("L").save(other)
    (tmp_path / "empty").mkdir()
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "IMG_1.HEIC").touch()
    (tmp_path / "torn.png").write_bytes(photo.read_bytes()[:200])
    cases = {
        f"several photos would be drawn into {tmp_path / 'o' / 'a.png'}: {photo}, {other}": [photo, other],
        "IMG_1.HEIC: unreadable image (of no format that is read here); convert": [tmp_path / "phone" / "IMG_1.HEIC"],
        "no such file or folder": [tmp_path / "nothing.png"],
        "no pictures in this folder": [tmp_path / "empty"],
        "in this folder; left out, not in a format that is read": [tmp_path / "phone"],
        "IMG_1.HEIC; convert HEIC to JPEG or PNG first": [tmp_path / "phone"],
        "torn.png": [tmp_path / "torn.png"],
        "give either PHOTOs": [],
    }
    for message, photos in cases.items():
        code, _, err = run(capsys, "generate", *photos, "-o", tmp_path / "o", "--weights", weights, "--quiet")
        assert code == 1 and message in err and len(err.strip().splitlines()) == 1, err
    code, _, err = run(capsys, "generate", photo, "-o", tmp_path, "--weights", weights, "--quiet")
    assert code == 1 and "overwrite" in err
    code, _, err = run(capsys, "generate", photo, "-o", tmp_path / "o", "--weights", tmp_path / "no.safetensors")
    assert code == 1 and "no such file or run" in err


def test_only_drawings_are_replaced(capsys, weights, tmp_path):
    photos, sketches = tmp_path / "mine" / "photos", tmp_path / "mine" / "sketches"
    for folder, suffixes in ((photos, ("jpg", "jpg")), (sketches, ("png", "jpg"))):
        folder.mkdir(parents=True)
        for name, suffix in zip("ab", suffixes, strict=True):
            Image.radial_gradient("L").resize((40, 40)).save(folder / f"{name}.{suffix}")
    by_hand = {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*.*")}
    command = ("generate", photos, "--weights", weights, "--quiet", "-o")

    def refused(out: Path, *words: str) -> None:
        code, _, err = run(capsys, *command, out)
        assert code == 1 and all(word in err for word in words) and len(err.strip().splitlines()) == 1, err
        assert {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*.*")} == by_hand

    refused(sketches, f"{sketches / 'a.png'} is there already", "another output folder", "--overwrite")
    refused(photos, "would lie among the photos")
    (tmp_path / "link").symlink_to(photos)
    refused(tmp_path / "link", "would lie among the photos")
    (sketches / "a.png").rename(tmp_path / "a.png")
    del by_hand[sketches / "a.png"]
    refused(sketches, f"{sketches / 'b.jpg'} is there already")  # b.png beside it: two sketches of one name

    out = tmp_path / "drawn"
    for _ in range(2):  # its own drawings it replaces, with the same
        assert run(capsys, *command, out)[0] == 0
    drawn = {path: path.read_bytes() for path in out.iterdir()}
    for path in out.iterdir():  # as of before drawings said what they are
        with Image.open(path) as picture:
            picture.save(path)
    assert is_drawing(out / "a.png") is False
    code, _, err = run(capsys, *command, out)
    assert code == 1 and f"{out / 'a.png'} is there already" in err
    assert run(capsys, *command, out, "--overwrite")[0] == 0
    assert {path: path.read_bytes() for path in out.iterdir()} == drawn


def test_a_drawing_is_of_one_photo(capsys, data, weights, tmp_path):
    """NAME.png counts where one subset alone has that name."""
    drawn = tmp_path / "drawn"
    assert run(capsys, "generate", "--data", data, "-o", drawn, "--weights", weights, "--quiet")[0] == 0
    (drawn / "blobs" / "100.png").rename(drawn / "100.png")
    command = ("evaluate", drawn, "--data", data, "--metrics", "ssim", "--quiet")
    assert run(capsys, *command)[0] == 0
    others = data / "others" / "test"
    for kind in ("photos", "sketches"):
        (others / kind).mkdir(parents=True)
        (others / kind / "100.png").write_bytes((data / "blobs" / "test" / kind / "100.png").read_bytes())
    code, out, err = run(capsys, *command)
    assert code == 1 and f"{drawn / 'blobs' / '100.png'}: no drawing of" in err and not out
    assert f"({drawn / '100.png'} may be of blobs or others)" in err
    for subset in ("blobs", "others"):
        (drawn / subset).mkdir(exist_ok=True)
        (drawn / subset / "100.png").write_bytes((drawn / "100.png").read_bytes())
    assert run(capsys, *command)[0] == 0


def test_a_table_is_shown_even_where_it_cannot_be_saved(capsys, data, weights, tmp_path, monkeypatch):
    drawn = tmp_path / "drawn"
    assert run(capsys, "generate", "--data", data, "-o", drawn, "--weights", weights, "--quiet")[0] == 0
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    code, out, err = run(
        capsys, "evaluate", drawn, "--data", data, "--metrics", "ssim", "--quiet", "--out", blocked / "x"
    )
    assert code == 1 and "SSIM ↑" in out and "blobs" in out
    assert "metrics.csv: cannot write" in err and len(err.strip().splitlines()) == 1


def test_person_masks_find_the_weights_of_training(capsys, weights, tmp_path, monkeypatch):
    """Those of the run's --weights-dir; another is taken where it is named, by option or environment."""
    monkeypatch.delenv("FASTSKETCH_WEIGHTS", raising=False)
    looked: list[Path | None] = []

    def no_weights(weights_dir: Path | None, download: bool) -> None:
        looked.append(weights_dir)
        raise WeightsNotFound("none here")

    monkeypatch.setattr("fastsketch.training.masks.load_person_segmenter", no_weights)
    photo = tmp_path / "a.png"
    Image.radial_gradient("L").save(photo)
    folders = [tmp_path / name for name in ("own", "environment", "named")]
    for folder in folders:
        folder.mkdir()
    settings = weights.parent / "settings.json"
    save_settings(settings, replace(load_settings(settings), weights_dir=folders[0]))
    command = ("generate", photo, "-o", tmp_path / "o", "--weights", weights.parent, "--masks", "person")
    assert run(capsys, *command)[0] == 1
    monkeypatch.setenv("FASTSKETCH_WEIGHTS", str(folders[1]))
    assert run(capsys, *command)[0] == 1
    assert run(capsys, *command, "--weights-dir", folders[2])[0] == 1
    assert looked == folders
    monkeypatch.delenv("FASTSKETCH_WEIGHTS")
    folders[0].rmdir()
    assert run(capsys, *command)[0] == 1 and looked[3] is None  # the run has moved to another machine
