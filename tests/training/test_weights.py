"""Finding and checking pretrained weights, with small files made here."""

import os

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from fastsketch.errors import FastsketchError
from fastsketch.weights import (
    WeightsNotFound,
    load_alexnet_features,
    load_person_segmenter,
    load_vgg16_features,
    read_weights,
)


@pytest.fixture(autouse=True)
def _no_other_weights(tmp_path, monkeypatch):
    """Neither the user's cache nor the user's folder is looked at."""
    monkeypatch.delenv("FASTSKETCH_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))


@pytest.fixture
def alexnet() -> dict[str, torch.Tensor]:
    """Random AlexNet features under their names in the whole network."""
    generator = torch.Generator().manual_seed(1)
    with torch.device("meta"):
        shapes = torchvision.models.alexnet(weights=None).features.state_dict()
    return {f"features.{k}": torch.randn(v.shape, generator=generator) for k, v in shapes.items()}


@pytest.fixture
def vgg16() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = torchvision.models.vgg16(weights=None).features.state_dict()
    return {f"features.{k}": torch.full(v.shape, 0.1) for k, v in shapes.items()}


def test_from_the_folder(tmp_path, monkeypatch, alexnet):
    save_file(alexnet, tmp_path / "alexnet_features.safetensors")
    state = torch.get_rng_state()
    network = load_alexnet_features(tmp_path, download=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, alexnet[f"features.{name}"])
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 256, 1, 1)
    monkeypatch.setenv("FASTSKETCH_WEIGHTS", str(tmp_path))
    assert torch.equal(load_alexnet_features(download=False)[0].weight, network[0].weight)


def test_half_precision_is_widened(tmp_path, vgg16):
    save_file({k: v.half() for k, v in vgg16.items()}, tmp_path / "vgg16_features.safetensors")
    network = load_vgg16_features(tmp_path, download=False)
    assert len(network) == 31
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(network[0].weight, vgg16["features.0.weight"].half().float())


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_from_torchvisions_own_file(tmp_path, alexnet, place):
    folder = tmp_path if place == "folder" else tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    state = {**alexnet, "classifier.1.weight": torch.zeros(2, 2)}
    torch.save(state, folder / "alexnet-owt-7be5be79.pth")
    network = load_alexnet_features(tmp_path if place == "folder" else None, download=False)
    assert torch.equal(network[0].weight, alexnet["features.0.weight"])


@pytest.mark.parametrize(
    ("load", "stem", "original"),
    [
        (load_vgg16_features, "vgg16_features", "vgg16-397923af.pth"),
        (load_alexnet_features, "alexnet_features", "alexnet-owt-7be5be79.pth"),
        (load_person_segmenter, "lraspp_mobilenet_v3_large", "lraspp_mobilenet_v3_large-d234d4ea.pth"),
    ],
)
def test_not_found_says_what_and_where(tmp_path, load, stem, original):
    with pytest.raises(WeightsNotFound) as caught:
        load(tmp_path, download=False)
    message = str(caught.value)
    assert "\n" not in message
    places = (tmp_path / f"{stem}.safetensors", tmp_path / original, tmp_path / "hub" / "checkpoints" / original)
    for part in (*map(str, places), "turned off", "--weights-dir", "FASTSKETCH_WEIGHTS"):
        assert part in message


def test_a_failed_download_is_reported(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(WeightsNotFound, match="the download failed: no route to host"):
        load_alexnet_features(tmp_path)


def test_download_is_torchvisions(monkeypatch, alexnet):
    asked = []

    def give(url, **options):
        asked.append((url, options["check_hash"], options["weights_only"]))
        return alexnet

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", give)
    load_alexnet_features()
    assert asked == [(torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url, True, True)]


def test_no_such_folder(tmp_path, monkeypatch):
    with pytest.raises(FastsketchError, match="weights_dir: no such folder"):
        load_alexnet_features(tmp_path / "none", download=False)
    monkeypatch.setenv("FASTSKETCH_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(FastsketchError, match="FASTSKETCH_WEIGHTS: no such folder"):
        load_alexnet_features(download=False)


def test_wrong_contents_are_named(tmp_path, alexnet):
    path = tmp_path / "alexnet_features.safetensors"
    first = "features.0.weight"
    for state, message in (
        ({k: v for k, v in alexnet.items() if k != first}, "1 of 10 weights missing, first '0.weight'"),
        ({"weight": torch.zeros(1)}, "10 of 10 weights missing"),
        ({**alexnet, first: torch.zeros(64, 1, 11, 11)}, r"'0\.weight' has shape \(64, 1, 11, 11\), expected \(64, 3,"),
        ({**alexnet, first: torch.full((64, 3, 11, 11), float("nan"))}, r"'0\.weight' has non-finite values"),
    ):
        save_file(state, path)
        with pytest.raises(FastsketchError, match=rf"alexnet_features\.safetensors: {message}"):
            load_alexnet_features(tmp_path, download=False)


class Evil:
    """Would run code when unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_unreadable_files_are_named_and_run_no_code(tmp_path, capsys):
    (tmp_path / "a.safetensors").write_bytes(b"\x10broken")
    (tmp_path / "b.pth").write_bytes(b"broken")
    torch.save({"x": Evil()}, tmp_path / "c.pth")
    for name in ("a.safetensors", "b.pth", "c.pth"):
        with pytest.raises(FastsketchError, match=f"{name}: unreadable weights"):
            read_weights(tmp_path / name)
    assert "unpickled" not in capsys.readouterr().out
    torch.save([torch.zeros(1)], tmp_path / "d.pth")
    with pytest.raises(FastsketchError, match="expected a dict of tensors"):
        read_weights(tmp_path / "d.pth")
    with pytest.raises(FastsketchError, match="no such weights file"):
        read_weights(tmp_path / "e.pth")


REAL = os.environ.get("FASTSKETCH_WEIGHTS")


@pytest.mark.skipif(not REAL, reason="FASTSKETCH_WEIGHTS names no folder with the real weights")
@pytest.mark.parametrize(("load", "count"), [(load_vgg16_features, 14_714_688), (load_alexnet_features, 2_469_696)])
def test_real_weights(load, count):
    network = load(REAL, download=False)
    assert sum(p.numel() for p in network.parameters()) == count
