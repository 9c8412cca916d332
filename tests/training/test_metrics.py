"""Evaluation: the numbers against independent formulas, the table, the files, what is not available."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from scipy import linalg, ndimage

from fastsketch.errors import FastsketchError
from fastsketch.metrics import Evaluation, Item, evaluate, grey_photo_yardstick
from fastsketch.metrics.fid import SubsetDistances, find_inception
from fastsketch.metrics.perceptual import Perceptual
from fastsketch.metrics.similarity import fsim, ssim
from fastsketch.training.images import save_image
from fastsketch.training.pairs import Pair, find_pairs
from fastsketch.weights import WeightsNotFound, load_alexnet_features

REAL = os.environ.get("FASTSKETCH_WEIGHTS")
QUIET = {"quiet": True, "download": False}


@pytest.fixture(autouse=True)
def _no_other_weights(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTSKETCH_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))


def smooth_image(seed: int, size: tuple[int, int] = (48, 40), mode: str = "L") -> Image.Image:
    """Blurred noise, which has structure at the scales that FSIM looks at."""
    noise = np.random.default_rng(seed).normal(size=(size[1], size[0], 3))
    values = ndimage.gaussian_filter(noise, (2, 2, 0))
    values = (values - values.min()) / np.ptp(values)
    return Image.fromarray((values * 255).astype(np.uint8)).convert(mode)


def make_items(folder: Path, sizes=((48, 40), (48, 40), (40, 48))) -> list[Item]:
    items = []
    for index, size in enumerate(sizes):
        generated, reference = folder / f"g{index}.png", folder / f"r{index}.png"
        save_image(smooth_image(index, size), generated)
        save_image(Image.blend(smooth_image(index, size), smooth_image(index + 50, size), 0.5), reference)
        items.append(Item("ab"[index % 2], f"{index}", generated, reference))
    return items


@pytest.fixture
def weights(tmp_path) -> Path:
    """A folder with random AlexNet features: LPIPS runs on them, its numbers mean nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.device("meta"):
        shapes = torchvision.models.alexnet(weights=None).features.state_dict()
    state = {f"features.{k}": torch.randn(v.shape, generator=generator) * 0.05 for k, v in shapes.items()}
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(state, folder / "alexnet_features.safetensors")
    return folder


def batch(*seeds: int, mode: str = "L") -> torch.Tensor:
    images = [np.array(smooth_image(seed, mode=mode)) for seed in seeds]
    stacked = torch.from_numpy(np.stack(images)).float() / 255
    return stacked[:, None] if mode == "L" else stacked.permute(0, 3, 1, 2)


@pytest.mark.parametrize("metric", [fsim, ssim])
def test_similarity_of_equal_and_of_worse_images(metric):
    first, other = batch(0, 1), batch(2, 3)
    # Equal images reach 1 to the rounding of float32 sums.
    torch.testing.assert_close(metric(first, first), torch.ones(2), rtol=0, atol=1e-5)
    halfway = metric((first + other) / 2, first)
    assert (metric(other, first) < halfway).all()
    assert (halfway < 1).all()
    # Each image of a batch is judged alone.
    torch.testing.assert_close(metric(first, other)[1:], metric(first[1:], other[1:]), rtol=0, atol=1e-5)


def test_ssim_against_the_formula_in_float64():
    x, y = batch(0), batch(1)
    one, two = x[0, 0].double().numpy(), y[0, 0].double().numpy()
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def mean(values: np.ndarray) -> np.ndarray:
        return ndimage.correlate(values, window)[5:-5, 5:-5]

    mu1, mu2 = mean(one), mean(two)
    var1, var2, covariance = mean(one**2) - mu1**2, mean(two**2) - mu2**2, mean(one * two) - mu1 * mu2
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mu1 * mu2 + c1) * (2 * covariance + c2) / ((mu1**2 + mu2**2 + c1) * (var1 + var2 + c2))
    # float32 variances from a difference of squares: absolute errors of 1e-7 against c2 = 9e-4.
    assert ssim(x, y).item() == pytest.approx(expected.mean(), abs=2e-4)


def test_lpips_against_the_formula(weights):
    """LPIPS from its paper: unit-normalised features, squared differences, linear heads, means."""
    state = torch.get_rng_state()
    net = Perceptual("alex", weights, download=False)
    assert torch.equal(torch.get_rng_state(), state)
    x, y = batch(0, 1, mode="RGB"), batch(2, 3, mode="RGB")
    features = load_alexnet_features(weights, download=False).double()
    shift = torch.tensor([-0.030, -0.088, -0.188]).double()[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450]).double()[:, None, None]
    a, b = (((image.double() * 2 - 1) - shift) / scale for image in (x, y))
    total = torch.zeros(2, dtype=torch.float64)
    heads = iter(net.lpips.lins)
    for index, layer in enumerate(features[:12]):
        # Not in place: the heads read what the activations give.
        a, b = (torch.relu(v) if isinstance(layer, torch.nn.ReLU) else layer(v) for v in (a, b))
        if index in (1, 4, 7, 9, 11):
            unit = [v / v.square().sum(1, keepdim=True).sqrt() for v in (a, b)]
            head = next(heads).model[-1].weight.double()
            total += ((unit[0] - unit[1]).square() * head).sum(1).mean((1, 2))
    # float32 convolutions over up to 3456 terms.
    torch.testing.assert_close(net(x, y).double(), total, rtol=1e-4, atol=0)
    assert net(x, x).abs().max() == 0


class Colours(torch.nn.Module):
    """Stands in for the Inception network: mean and spread of each colour."""

    num_features = 6

    def forward(self, images):
        assert images.dtype == torch.uint8
        values = images.double() / 255
        return torch.cat([values.mean((2, 3)), values.std((2, 3))], 1)


def test_fid_against_the_formula_in_float64():
    subsets = ["a"] * 9 + ["b"] * 8 + ["c"]
    generated, reference = batch(*range(18), mode="RGB"), batch(*range(30, 48), mode="RGB")
    distances = SubsetDistances(None, feature=Colours())
    for part in (slice(0, 5), slice(5, 18)):
        distances.update(subsets[part], generated[part], reference[part])
    results = distances.compute()
    assert set(results) == {"a", "b", None}
    features = [Colours()((v * 255).round().to(torch.uint8)).numpy() for v in (generated, reference)]
    for key, chosen in (("a", slice(0, 9)), ("b", slice(9, 17)), (None, slice(0, 18))):
        (mu1, mu2), (s1, s2) = zip(*((f[chosen].mean(0), np.cov(f[chosen].T)) for f in features), strict=True)
        root = linalg.sqrtm(s1 @ s2).real
        expected = ((mu1 - mu2) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
        # Sums and second moments in float64, then roots of tiny eigenvalues.
        assert results[key] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    same = SubsetDistances(None, feature=Colours())
    same.update(subsets, reference, reference)
    assert 0 <= same.compute()[None] < 1e-9


def test_inception_is_never_replaced(tmp_path):
    with pytest.raises(WeightsNotFound, match=r"no Inception weights: looked for .*weights-inception-2015-12-05"):
        find_inception()
    with pytest.raises(FastsketchError, match="no such Inception weights file"):
        find_inception(tmp_path / "none.pth")


def test_other_weights_are_no_inception(tmp_path):
    pytest.importorskip("torch_fidelity")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(FastsketchError, match=r"w\.pth: not torch-fidelity's Inception weights"):
        evaluate(make_items(tmp_path), metrics=["fid"], inception=tmp_path / "w.pth", **QUIET)


def test_evaluate(tmp_path, weights):
    items = make_items(tmp_path)
    found = evaluate(items, metrics=("ssim", "lpips-alex", "fsim"), weights_dir=weights, **QUIET)
    assert [(row["subset"], row["name"]) for row in found.rows] == [("a", "0"), ("b", "1"), ("a", "2")]
    assert list(found.summary) == ["a", "b", "all"]
    assert found.summary["all"]["images"] == 3
    for name in found.metrics:
        values = [row[name] for row in found.rows]
        assert found.summary["all"][name] == pytest.approx(np.mean(values))
        assert found.summary["a"][name] == pytest.approx((values[0] + values[2]) / 2)
    # One by one: the same numbers to the rounding of batched sums.
    single = evaluate(items, metrics=("ssim", "lpips-alex", "fsim"), weights_dir=weights, batch_size=1, **QUIET)
    for one, many in zip(single.rows, found.rows, strict=True):
        assert [one[key] for key in found.metrics] == pytest.approx([many[key] for key in found.metrics], rel=1e-4)
    equal = evaluate([Item("s", "x", items[0].reference, items[0].reference)], metrics=["fsim", "ssim"], **QUIET)
    assert equal.rows[0]["fsim"] == pytest.approx(1, abs=1e-5)


def test_evaluate_with_fid(tmp_path, monkeypatch):
    """Its features come from another network here: which pictures it sees, and where the numbers go."""
    items = make_items(tmp_path, sizes=[(48, 40)] * 5)
    module = sys.modules[evaluate.__module__]
    monkeypatch.setattr(module, "find_inception", Path)
    monkeypatch.setattr(module, "SubsetDistances", lambda *_: SubsetDistances(None, feature=Colours()))
    found = evaluate(items, metrics=["ssim", "fid"], batch_size=2, inception=tmp_path, **QUIET)
    assert [(row["subset"], set(row)) for row in found.rows] == [
        (s, {"subset", "name", "ssim"}) for s in ("a", "b", "a", "b", "a")
    ]
    expected = SubsetDistances(None, feature=Colours())
    for item in items:
        images = [torch.from_numpy(np.array(Image.open(p).convert("RGB"))) for p in (item.generated, item.reference)]
        expected.update([item.subset], *(image.permute(2, 0, 1)[None] / 255.0 for image in images))
    for subset, value in expected.compute().items():
        assert found.summary[subset or "all"]["fid"] == pytest.approx(value, rel=1e-6)
    assert found.notes == ["FID from fewer than 2048 images depends on their number: compare equal sets only."]
    monkeypatch.setattr(module, "_FEW_FOR_FID", 5)
    assert evaluate(items, metrics=["fid"], inception=tmp_path, **QUIET).notes == []


def test_a_score_that_is_not_finite_stops(tmp_path, monkeypatch):
    def second_is_broken(generated, reference):
        return torch.tensor([0.5, float("nan")])[: len(generated)]

    monkeypatch.setattr(sys.modules[evaluate.__module__], "ssim", second_is_broken)
    with pytest.raises(FastsketchError, match=r"ssim of .*g1\.png against .*r1\.png is not finite"):
        evaluate(make_items(tmp_path), metrics=["ssim"], **QUIET)


def test_unavailable_metrics_do_not_vanish(tmp_path):
    found = evaluate(make_items(tmp_path), **QUIET)
    assert set(found.unavailable) == {"lpips-alex", "lpips-vgg", "fid"}
    table = found.table().splitlines()
    assert table[0].split() == [
        "subset",
        "images",
        "FSIM",
        "↑",
        "SSIM",
        "↑",
        "LPIPS-alex",
        "↓",
        "LPIPS-vgg",
        "↓",
        "FID",
        "↓",
    ]
    assert len({len(line) for line in table[1:5]}) == 1
    assert table[4].split()[4:] == ["n/a", "[1]", "n/a", "[2]", "n/a", "[3]"]
    assert table[5].startswith("[1] lpips-alex: not available: no weights for AlexNet_Weights")
    assert table[7].startswith("[3] fid: not available: no Inception weights")
    assert "lpips-alex" not in found.rows[0]
    found.save(tmp_path / "out")
    assert set(json.loads((tmp_path / "out/metrics.json").read_text())["unavailable"]) == set(found.unavailable)
    with (tmp_path / "out/summary.csv").open() as file:
        assert {row["fid"] for row in csv.DictReader(file)} == {""}


def test_save(tmp_path):
    found = evaluate(make_items(tmp_path), metrics=["fsim", "ssim"], **QUIET)
    written = found.save(tmp_path / "new" / "out")
    assert sorted(p.name for p in (tmp_path / "new/out").iterdir()) == sorted(p.name for p in written)
    with written[0].open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["subset"], row["name"], float(row["fsim"])) for row in rows] == [
        (row["subset"], row["name"], row["fsim"]) for row in found.rows
    ]
    with written[1].open() as file:
        assert [row["subset"] for row in csv.DictReader(file)] == ["a", "b", "all"]
    data = json.loads(written[2].read_text())
    assert data["images"] == found.rows
    assert data["summary"] == found.summary
    (tmp_path / "file").write_text("")
    with pytest.raises(FastsketchError, match="cannot write"):
        found.save(tmp_path / "file")


def test_fid_in_the_table():
    summary = {"a": {"images": 1, "fsim": 0.5}, "all": {"images": 2, "fsim": 0.5, "fid": 28.7}}
    table = Evaluation(("fsim", "fid"), [], summary, notes=["a note"]).table().splitlines()
    assert table[2].split() == ["a", "1", "0.5000", "n/a"]
    assert table[3].split() == ["all", "2", "0.5000", "28.70"]
    assert table[4] == "a note"


def test_bad_input(tmp_path, monkeypatch):
    items = make_items(tmp_path)
    for arguments, options, message in (
        ([], {}, "items must not be empty"),
        (items, {"metrics": ["psnr"]}, "metrics must be some of fsim, .*got psnr"),
        (items, {"metrics": []}, "got none"),
        (items, {"batch_size": 0}, "batch_size must be at least 1"),
        (items, {"image_size": 0}, "image_size must be at least 1"),
        (items + items[:1], {}, "items has a/0 twice"),
        ([Item("all", "x", items[0].generated, items[0].reference)], {}, "'all' is kept"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(arguments, **QUIET, **options)
    with pytest.raises(FastsketchError, match="'all' is kept"):  # the command line's one line
        evaluate([Item("all", "x", items[0].generated, items[0].reference)], **QUIET)
    with pytest.raises(FastsketchError, match=r"g0\.png is 48x40 but its reference .*r2\.png is 40x48"):
        evaluate([Item("a", "x", items[0].generated, items[2].reference)], metrics=["ssim"], **QUIET)
    module = sys.modules[evaluate.__module__]
    monkeypatch.setattr(module, "Perceptual", lambda *_, **__: pytest.fail("weights were looked for"))
    with pytest.raises(FastsketchError, match=r"is 48x40, scaled down to 40x33; .*--image-size"):
        evaluate(items, metrics=["lpips-alex"], image_size=40, **QUIET)
    small = tmp_path / "small.png"
    Image.new("L", (24, 20)).save(small)
    with pytest.raises(FastsketchError, match=r"is 48x40; .*: image_size=24 \(--image-size 24\) scales"):
        evaluate([Item("a", "x", small, items[0].reference)], metrics=["ssim"], **QUIET)
    with pytest.raises(FastsketchError, match=r"missing\.png: no such"):
        evaluate([Item("a", "x", tmp_path / "missing.png", items[2].reference)], metrics=["ssim"], **QUIET)
    with pytest.raises(FastsketchError, match="weights_dir: no such folder"):
        evaluate(items, metrics=["ssim"], weights_dir=tmp_path / "none", **QUIET)
    save_image(smooth_image(0, (20, 20)), tmp_path / "small.png")
    with pytest.raises(FastsketchError, match=r"small\.png: 20x20, need 32"):
        evaluate([Item("a", "x", *[tmp_path / "small.png"] * 2)], metrics=["ssim"], **QUIET)


def test_grey_photo_yardstick(tmp_path):
    photo, sketch = tmp_path / "p.png", tmp_path / "s.png"
    save_image(smooth_image(0, mode="RGB"), photo)
    save_image(smooth_image(0, mode="RGB").convert("L"), sketch)
    found = grey_photo_yardstick([Pair(photo, sketch, None, "a", "x")], metrics=["ssim"], **QUIET)
    assert found.summary["all"]["ssim"] == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="without a sketch"):
        grey_photo_yardstick([Pair(photo, None, None, "a", "x")])


CUFS = os.environ.get("FASTSKETCH_CUFS")


@pytest.mark.slow
@pytest.mark.skipif(not (CUFS and REAL), reason="needs FASTSKETCH_CUFS and FASTSKETCH_WEIGHTS")
def test_yardstick_of_the_method():
    """METHOD's section 8: FSIM 0.69, SSIM 0.50, LPIPS-alex 0.30, -vgg 0.39 over 60 pairs; here over every 28th."""
    pairs = find_pairs(CUFS, "test")[::28]
    metrics = ("fsim", "ssim", "lpips-alex", "lpips-vgg")
    found = grey_photo_yardstick(pairs, metrics=metrics, weights_dir=REAL, **QUIET).summary["all"]
    expected = {"fsim": 0.69, "ssim": 0.50, "lpips-alex": 0.30, "lpips-vgg": 0.39}
    # Another and a smaller choice of pairs: within a few hundredths.
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=0.05)
