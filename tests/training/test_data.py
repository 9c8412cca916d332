"""Finding pairs, the dataset, and the sampler."""

import csv
import hashlib
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.utils.data import DataLoader

from fastsketch.errors import FastsketchError
from fastsketch.training.data import EpochSampler, SketchDataset
from fastsketch.training.images import to_signed_tensor
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import find_pairs, find_sketches, left_out, note_on_split

NONE = MaskSource("none")


def write_image(path: Path, seed: int, size: tuple[int, int] = (20, 25), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def tree(tmp_path) -> Path:
    """Two subsets of three and two training pairs, one test pair each, masks in the first."""
    seed = 0
    for subset, count in (("b", 3), ("a", 2)):
        for split, number in (("train", count), ("test", 1)):
            for index in range(number):
                seed += 1
                for kind, mode in (("photos", "RGB"), ("sketches", "L")):
                    write_image(tmp_path / subset / split / kind / f"{index:03d}.png", seed, mode=mode)
                if subset == "b":
                    write_image(tmp_path / subset / split / "masks" / f"{index:03d}.png", seed + 50, mode="L")
    return tmp_path


def write_manifest(root: Path, *rows: str) -> None:
    (root / "manifest.csv").write_text("\n".join(["subset,split,id", *rows]) + "\n")


def test_tree_layout(tree):
    pairs = find_pairs(tree)
    assert [(p.subset, p.name) for p in pairs] == [("a", "000"), ("a", "001"), ("b", "000"), ("b", "001"), ("b", "002")]
    assert pairs[0].mask is None
    assert pairs[2].mask == tree / "b/train/masks/000.png"
    assert pairs[2].sketch == tree / "b/train/sketches/000.png"
    assert len(find_pairs(str(tree), "test")) == 2
    assert len(find_sketches(tree)) == 5


def test_plain_layout(tree):
    pairs = find_pairs(tree / "b" / "train", "test")
    assert [p.name for p in pairs] == ["000", "001", "002"]
    assert {p.subset for p in pairs} == {"train"}
    assert all(p.mask for p in pairs)
    assert "has no test split" in note_on_split(tree / "b" / "train", "test")
    assert note_on_split(tree / "b" / "train", "train") == note_on_split(tree, "test") == ""


def test_a_plain_folder_has_its_name_however_it_is_given(tree, monkeypatch):
    monkeypatch.chdir(tree / "b" / "train")
    assert {p.subset for p in find_pairs(".")} == {"train"}
    monkeypatch.chdir(tree / "b" / "train" / "photos")
    assert {p.subset for p in find_pairs("..")} == {"train"}
    write_image(tree / "photos/1.png", 1)
    write_image(tree / "sketches/1.png", 1)
    (tree / "link").symlink_to(tree)
    assert {p.subset for p in find_pairs(tree / "link")} == {"link"}


@pytest.mark.parametrize("subset", ["..", "a/../..", "/tmp", "."])
def test_no_subset_leads_out_of_the_folder(tree, subset):
    """Drawings go where it leads."""
    write_manifest(tree, "a,train,001", f"{subset},train,001")
    with pytest.raises(FastsketchError, match=r"manifest\.csv: line 3: the subset '.*' is no folder inside"):
        find_pairs(tree)


def fingerprint_of_before(data: SketchDataset, subset: str) -> str:
    names = [f"{subset}/{pair.name}" for pair in data.pairs] + [path.name for path in data.drawings]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def test_a_plain_folder_may_be_called_something_else(tree):
    data = SketchDataset(find_pairs(tree / "b/train"), masks=NONE)
    for subset in ("", "..", "all", "train"):
        assert fingerprint_of_before(data, subset) in data.fingerprints
    (tree / "b/train").rename(tree / "b/other")
    renamed = SketchDataset(find_pairs(tree / "b/other"), masks=NONE)
    assert renamed.fingerprint == data.fingerprint == data.fingerprints[0]
    split = SketchDataset(find_pairs(tree, "test")[:1], masks=NONE)
    assert split.fingerprints == [fingerprint_of_before(split, "a")]
    (tree / "a").rename(tree / "c")  # another subset are other pictures
    assert SketchDataset(find_pairs(tree, "test")[-1:], masks=NONE).fingerprint != split.fingerprint


def test_manifest_decides(tree):
    write_manifest(tree, "a,train,001", "b,test,000", "b,train,002")
    assert [(p.subset, p.name) for p in find_pairs(tree)] == [("a", "001"), ("b", "002")]
    assert [p.parent.parent.parent.name for p in find_sketches(tree)] == ["a", "b"]
    assert len(find_pairs(tree, "test")) == 1
    write_manifest(tree, "a,train,077")
    with pytest.raises(FastsketchError, match=r"photos/077, which is missing"):
        find_pairs(tree)
    write_manifest(tree, "a,train,001")
    (tree / "a/train/sketches/001.png").unlink()
    with pytest.raises(FastsketchError, match=r"sketches/001, which is missing"):
        find_pairs(tree)
    with pytest.raises(FastsketchError, match="nothing for split 'test'"):
        find_pairs(tree, "test")
    write_manifest(tree, "a,train,001", "a,train")
    with pytest.raises(FastsketchError, match="line 3 is incomplete"):
        find_pairs(tree)
    write_manifest(tree, "a,train,001", "a,test,000", "a,train,001")
    with pytest.raises(FastsketchError, match="line 4 lists a,train,001 again, after 2"):
        find_pairs(tree, "test")
    (tree / "manifest.csv").write_text("subset,id\na,1\n")
    with pytest.raises(FastsketchError, match=r"expected columns .*missing split"):
        find_pairs(tree)
    (tree / "manifest.csv").write_bytes(b"\xff\xfe\x00\xd8\n")
    with pytest.raises(FastsketchError, match=r"manifest\.csv"):
        find_pairs(tree)


def test_missing_things_are_named(tree, tmp_path):
    with pytest.raises(FastsketchError, match="nowhere: no such data folder"):
        find_pairs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FastsketchError, match="found neither"):
        find_pairs(tmp_path / "empty")
    (tmp_path / "empty" / "photos").mkdir()
    with pytest.raises(FastsketchError, match="no photos in"):
        find_pairs(tmp_path / "empty")
    with pytest.raises(FastsketchError, match="no sketches in"):
        find_sketches(tmp_path / "empty")
    for index in range(8):
        write_image(tree / f"a/train/photos/lonely{index}.jpg", index)
    message = "8 of 13 photos have no sketch of the same name: a/lonely0, .*a/lonely4 and 3 more .*--unpaired"
    with pytest.raises(FastsketchError, match=message):
        find_pairs(tree)
    unpaired = find_pairs(tree, unpaired=True)
    assert sum(p.sketch is None for p in unpaired) == 8
    with pytest.raises(FastsketchError, match="8 photos have no sketch"):
        SketchDataset(unpaired, masks=NONE)
    write_image(tree / "a/train/photos/000.jpg", 0)
    with pytest.raises(FastsketchError, match=r"two images share the id '000': 000\.jpg, 000\.png"):
        find_pairs(tree)


def test_no_subset_is_called_all(tree):
    (tree / "a").rename(tree / "all")
    (tree / "b/train").rename(tree / "b/all")
    for folder in (tree, tree / "b/all"):
        with pytest.raises(FastsketchError, match=r"/all: the name 'all' is kept .*: rename the folder"):
            find_pairs(folder, "test")


def test_an_accent_may_be_one_character_or_two(tree):
    one, two = (unicodedata.normalize(form, "Ren\u00e9") for form in ("NFC", "NFD"))
    for kind, name in (("photos", two), ("sketches", one), ("masks", two)):
        (tree / f"b/train/{kind}/000.png").rename(tree / f"b/train/{kind}/{name}.png")
    for rows in ((), (f"b,train,{one}",), (f"b,train,{two}",)):
        if rows:
            write_manifest(tree, *rows)
        (pair,) = [pair for pair in find_pairs(tree) if pair.name == two]
        assert pair.sketch.name == f"{one}.png" and pair.mask.name == f"{two}.png"
        assert pair.sketch in find_sketches(tree)


def test_names_that_are_not_utf8_are_refused_at_once(tree):
    """No checkpoint, no table could hold them; the message can be printed."""
    old, odd = os.fsencode(tree / "a/train"), b"/photos/Ren\xe9.png"
    try:
        os.rename(old + b"/photos/000.png", old + odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    for unpaired in (False, True):
        with pytest.raises(FastsketchError, match=r"rename what is not UTF-8: a/train/photos/Ren\\xe9\.png$"):
            find_pairs(tree, unpaired=unpaired)
    write_manifest(tree, "a,train,001")
    assert len(find_pairs(tree)) == 1  # it is not listed
    (tree / "manifest.csv").unlink()
    os.rename(old + odd, old + b"/sketches/Ren\xe9.png")
    with pytest.raises(FastsketchError, match=r"not UTF-8: a/train/sketches/Ren\\xe9\.png$"):
        find_sketches(tree)
    os.rename(os.fsencode(tree / "b/train"), os.fsencode(tree / "b") + b"/\xe9")
    with pytest.raises(FastsketchError, match=r"rename the folder .*/b/\\xe9: it is not UTF-8"):
        find_pairs(os.fsdecode(os.fsencode(tree / "b") + b"/\xe9"))


def test_other_files_are_passed_over(tree):
    (tree / "a/train/photos/notes.txt").write_text("x")
    (tree / "a/train/photos/._000.png").write_bytes(b"x")
    assert len(find_pairs(tree)) == 5
    (tree / "a/train/photos/notes.txt").unlink()
    assert left_out(tree) == left_out(tree, "test") == []


def test_what_is_left_out_is_said(tree):
    photos, sketches = tree / "a/train/photos", tree / "b/train/sketches"
    for path in (photos / "c.HEIC", sketches / "g.gif", photos / "notes.txt"):
        path.write_bytes(b"x")
    (photos / "more").mkdir()
    write_image(sketches / "alone.png", 0)
    formats, alone = left_out(tree)
    assert formats == (
        "left out, not in a format that is read (.jpg, .jpeg, .png, .bmp, .tif, .tiff, .webp): a/train/photos/c.HEIC, "
        "a/train/photos/more/, a/train/photos/notes.txt, b/train/sketches/g.gif; convert HEIC to JPEG or PNG first"
    )
    assert alone == "left out, having no photo of the same name: b/train/sketches/alone.png"
    assert left_out(tree, unpaired=True) == [formats]  # any sketch is drawn from
    assert left_out(tree, "test") == []
    write_manifest(tree, "a,train,000", "a,train,c")
    assert left_out(tree) == []
    with pytest.raises(FastsketchError, match=r"photos/c, which is missing; left out, not in a format .*c\.HEIC"):
        find_pairs(tree)
    (tree / "manifest.csv").unlink()
    (photos / "000.png").rename(photos / "000.heic")
    (sketches / "000.png").rename(sketches / "000.heic")
    with pytest.raises(FastsketchError, match=r"no sketch of the same name: b/000 .*sketches/000\.heic.*; convert"):
        find_pairs(tree)
    for path in (*photos.glob("*.png"), *sketches.glob("*.png")):
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(FastsketchError, match=r"no photos in .*/photos; left out, .* photos/000\.heic, .*convert HEIC"):
        find_pairs(tree / "a/train")
    with pytest.raises(FastsketchError, match=r"no sketches in .*/sketches; left out, .* sketches/000\.heic"):
        find_sketches(tree / "b/train")


def test_items_are_padded_not_squeezed(tree):
    data = SketchDataset(find_pairs(tree), image_size=32, masks=MaskSource("auto"), flip=False)
    item = data[2]
    assert {k: (tuple(v.shape), v.dtype) for k, v in item.items()} == {
        "photo": ((3, 32, 32), torch.float32),
        "sketch": ((1, 32, 32), torch.float32),
        "mask": ((1, 32, 32), torch.float32),
        "index": ((), torch.int64),
    }
    assert item["index"] == 2
    photo = to_signed_tensor(Image.open(data.pairs[2].photo))
    assert torch.equal(item["photo"][:, 3:28, 6:26], photo)
    assert torch.equal(item["photo"][:, 0, 6:26], photo[:, 0])
    assert torch.equal(item["sketch"][:, 3:28, 6:26], to_signed_tensor(Image.open(data.pairs[2].sketch)))
    assert torch.equal(item["mask"][:, 3:28, 6:26] * 2 - 1, to_signed_tensor(Image.open(data.pairs[2].mask)))
    assert SketchDataset(find_pairs(tree), image_size=32, sketch_channels=3, masks=NONE)[0]["sketch"].shape[0] == 3


def test_larger_photos_are_scaled_to_fit(tmp_path):
    write_image(tmp_path / "photos/a.png", 0, size=(64, 128))
    write_image(tmp_path / "sketches/a.png", 1, size=(64, 128), mode="L")
    item = SketchDataset(find_pairs(tmp_path), image_size=32, masks=NONE, flip=False)[0]
    expected = Image.open(tmp_path / "photos/a.png").resize((16, 32), Image.Resampling.BICUBIC)
    assert torch.equal(item["photo"][:, :, 8:24], to_signed_tensor(expected))


def test_crop_and_flip_go_together(tmp_path):
    """Photo, sketch and mask hold the same numbers, so that any difference in place shows."""
    for index in range(12):
        for kind in ("photos", "sketches", "masks"):
            write_image(tmp_path / kind / f"{index}.png", index, mode="L")
    data = SketchDataset(find_pairs(tmp_path), image_size=32, crop_size=16, masks=MaskSource("folder"))
    whole = SketchDataset(find_pairs(tmp_path), image_size=32, masks=NONE, flip=False)
    places = set()
    for index in range(12):
        item, canvas = data[index], whole[index]["sketch"]
        assert item["photo"].shape == (3, 16, 16)
        assert torch.equal(item["photo"][:1], item["sketch"])
        torch.testing.assert_close(item["mask"] * 2 - 1, item["sketch"], rtol=0, atol=1e-6)
        found = [
            (top, left, mirrored)
            for top in range(17)
            for left in range(17)
            for mirrored in (False, True)
            if torch.equal(
                item["sketch"].flip(-1) if mirrored else item["sketch"],
                canvas[:, top : top + 16, left : left + 16],
            )
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 6
    assert {mirrored for *_, mirrored in places} == {False, True}


def test_randomness_depends_on_seed_epoch_and_index_only(tree):
    pairs = find_pairs(tree)

    def items(seed: int, epoch: int, order=range(5), cache: bool = True) -> torch.Tensor:
        data = SketchDataset(pairs, image_size=32, crop_size=8, masks=NONE, seed=seed, cache=cache)
        data.set_epoch(epoch)
        assert data.epoch == epoch
        found = {index: data[index]["photo"] for index in order}
        return torch.stack([found[index] for index in range(5)])

    first = items(0, 3)
    assert torch.equal(first, items(0, 3, order=[4, 2, 0, 1, 3], cache=False))
    assert not torch.equal(first, items(0, 4))
    assert not torch.equal(first, items(1, 3))


@pytest.mark.parametrize("unpaired", [False, True])
def test_persistent_workers_see_the_epoch_and_change_nothing(tree, unpaired):
    data = SketchDataset(find_pairs(tree), image_size=32, crop_size=8, masks=NONE, unpaired=unpaired)
    loader = DataLoader(data, batch_size=2, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        here = [data[index] for index in range(5)]
        there = list(loader)
        for key in here[0]:
            assert torch.equal(torch.cat([batch[key] for batch in there]), torch.stack([item[key] for item in here]))


def test_unpaired_sketches(tree, tmp_path):
    pairs = find_pairs(tree)
    data = SketchDataset(pairs, image_size=32, masks=MaskSource("auto"), unpaired=True, flip=False)
    canvas = {i: SketchDataset(pairs, image_size=32, masks=MaskSource("auto"), flip=False)[i] for i in range(5)}
    drawn = []
    for epoch in range(8):
        data.set_epoch(epoch)
        item = data[0]
        (owner,) = [i for i in range(5) if torch.equal(canvas[i]["sketch"], item["sketch"])]
        assert owner != 0
        assert torch.equal(item["sketch_mask"], canvas[owner]["mask"])
        assert torch.equal(item["photo"], canvas[0]["photo"])
        drawn.append(owner)
    assert len(set(drawn)) > 1
    write_image(tmp_path / "other.png", 99)
    item = SketchDataset(pairs, image_size=32, masks=NONE, unpaired=True, sketches=[tmp_path / "other.png"])[0]
    assert item["sketch_mask"].min() == 1


def test_bad_settings(tree):
    pairs = find_pairs(tree)
    for options, message in (
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"image_size": 32, "crop_size": 33}, r"crop_size must lie in 1\.\.image_size \(32\), got 33"),
        ({"sketch_channels": 2}, "sketch_channels must be 1 or 3, got 2"),
        ({"sketches": []}, "only for unpaired"),
        ({"unpaired": True, "sketches": []}, "no sketches"),
        ({"seed": -1}, "seed must not be negative"),
        ({"augment_epochs": -1}, "augment_epochs must not be negative, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            SketchDataset(pairs, masks=NONE, **options)
    with pytest.raises(ValueError, match="pairs must not be empty"):
        SketchDataset([])
    data = SketchDataset(pairs, image_size=32, masks=NONE)
    with pytest.raises(IndexError):
        data[5]
    with pytest.raises(ValueError, match="epoch must not be negative"):
        data.set_epoch(-1)


def test_bad_images_are_named(tree):
    pairs = find_pairs(tree)
    data = SketchDataset(pairs, image_size=32, masks=NONE)
    write_image(pairs[0].sketch, 0, size=(20, 24), mode="L")  # in the middle of a run
    pairs[1].photo.write_bytes(pairs[1].photo.read_bytes()[:200])
    with pytest.raises(FastsketchError, match=r"sketches/000\.png: the sketch is 20x24 but its photo .* is 20x25"):
        data[0]
    with pytest.raises(FastsketchError, match=r"photos/001\.png: unreadable"):
        data[1]


def test_sizes_that_differ_are_all_named_at_once(tree):
    pairs = find_pairs(tree)
    write_image(pairs[0].sketch, 0, size=(20, 24), mode="L")
    write_image(pairs[3].mask, 0, size=(25, 20), mode="L")
    for masks, count in ((NONE, "1 picture is"), (MaskSource("auto"), "2 pictures are")):
        message = rf"^{count} not of the photo's size: .*a/train/sketches/000\.png is 20x24 but its photo 20x25"
        with pytest.raises(FastsketchError, match=message) as caught:
            SketchDataset(pairs, masks=masks)
        assert ("b/train/masks/001.png is 25x20 but" in str(caught.value)) == (count != "1 picture is")
    SketchDataset(pairs, masks=NONE, unpaired=True)  # no sketch has a size to keep to
    with pytest.raises(FastsketchError, match=r"^1 picture is not .*masks/001\.png"):
        SketchDataset(pairs, masks=MaskSource("folder"), unpaired=True)
    pairs[1].photo.write_text("no picture")
    with pytest.raises(FastsketchError, match=r"photos/001\.png: unreadable image .*; 1 picture is not"):
        SketchDataset(pairs, masks=NONE)


def test_a_photo_that_is_to_be_turned_is_of_the_size_it_will_have(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name, suffix in (("a", "jpg"), ("b", "png"), ("c", "tif"), ("d", "webp")):
        write_image(tmp_path / f"sketches/{name}.png", 0, size=(20, 25))
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (25, 20)).save(tmp_path / f"photos/{name}.{suffix}", exif=exif)
    data = SketchDataset(find_pairs(tmp_path), image_size=32, masks=NONE)
    assert len([data[index] for index in range(4)]) == 4
    whole = (tmp_path / "photos/b.png").read_bytes()  # as written by others: its orientation comes last
    start = whole.index(b"eXIf") - 4
    length = 12 + int.from_bytes(whole[start : start + 4], "big")
    late = whole[:start] + whole[start + length : -12] + whole[start : start + length] + whole[-12:]
    (tmp_path / "photos/b.png").write_bytes(late)
    assert len([SketchDataset(find_pairs(tmp_path), image_size=32, masks=NONE)[index] for index in range(4)]) == 4


def test_cache_serves_without_the_files(tree):
    data = SketchDataset(find_pairs(tree), image_size=32, masks=NONE)
    before = data[0]
    data.pairs[0].photo.unlink()
    data.pairs[0].sketch.unlink()
    after = data[0]
    assert all(torch.equal(before[key], after[key]) for key in before)
    before["photo"].zero_()
    assert torch.equal(data[0]["photo"], after["photo"])


def test_sampler_permutes_and_resumes():
    sampler = EpochSampler(50, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(second) == list(range(50))
    assert second != first
    again = EpochSampler(50, seed=3)
    again.set_epoch(1, start=20)
    assert len(again) == 30
    assert list(again) == second[20:]
    again.set_epoch(1, start=50)
    assert list(again) == []
    assert list(EpochSampler(50, seed=4)) != first
    for options, message in (({"length": 0}, "length"), ({"length": 1, "seed": -1}, "seed")):
        with pytest.raises(ValueError, match=message):
            EpochSampler(**options)
    with pytest.raises(ValueError, match=r"start must lie in 0\.\.50, got 51"):
        sampler.set_epoch(0, start=51)


def test_real_pairs():
    root = os.environ.get("FASTSKETCH_CUFS")
    if not root:
        pytest.skip("FASTSKETCH_CUFS names no folder with the CUFS pairs")
    with (Path(root) / "manifest.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    for split, count in (("train", 268), ("test", 338)):
        pairs = find_pairs(root, split)
        assert len(pairs) == count == sum(row["split"] == split for row in listed)
    item = SketchDataset(pairs[:1])[0]
    assert 0.3 < item["mask"].mean() < 0.9
