"""The ONNX file draws what PyTorch draws, at any size and batch, and says what it wants."""

import json

import numpy as np
import pytest
import torch

from fastsketch import export
from fastsketch.cli import main
from fastsketch.errors import FastsketchError
from fastsketch.training.checkpoint import load_generator, save_generator

SIZES = [(1, 8, 8), (1, 32, 40), (2, 132, 36), (5, 16, 60)]


@pytest.fixture
def runtime():
    for name in export.PACKAGES:
        pytest.importorskip(name, reason="the extra `export` is not installed")
    return pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("parts", "inputs"),
    [({}, ["photo", "mask"]), ({"mask_channel": False, "attention": False, "out_channels": 3}, ["photo"])],
    ids=["mask and attention", "neither, in colour"],
)
def test_draws_what_pytorch_draws(runtime, lively, tmp_path, parts, inputs):
    path = lively(**parts)
    done = export.export_onnx(path.parent, tmp_path / "deep" / "sketch.onnx")
    assert done.inputs == tuple(inputs) and done.difference < 1e-3
    generator = load_generator(path)
    session = runtime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == inputs
    for batch, height, width in SIZES:
        photo, mask = torch.rand(batch, 3, height, width) * 2 - 1, torch.rand(batch, 1, height, width)
        with torch.no_grad():
            expected = generator(photo, mask if len(inputs) == 2 else None).numpy()
        (drawn,) = session.run(None, dict(zip(inputs, (photo.numpy(), mask.numpy()), strict=False)))
        assert drawn.shape == expected.shape
        assert expected.std() > 0.1  # otherwise there is nothing to compare
        assert np.abs(drawn - expected).max() < 1e-3
        if len(inputs) == 2:
            (other,) = session.run(None, {"photo": photo.numpy(), "mask": 1 - mask.numpy()})
            assert np.abs(other - drawn).max() > 0.05  # the mask is read
    facts = session.get_modelmeta().custom_metadata_map
    assert list(json.loads(facts["inputs"])) == inputs and "[-1, 1]" in facts["output"]
    assert facts["torch"] == torch.__version__ and "multiples of 4" in facts["sizes"]
    assert json.loads(facts["frame"]) == [1, 1] and "to a square by" in facts["sizes"]


def test_says_how_photos_are_padded(runtime, lively, tmp_path):
    generator = load_generator(path := lively())
    generator.frame = (250, 200)
    save_generator(path, generator)
    export.export_onnx(path, tmp_path / "sketch.onnx")
    session = runtime.InferenceSession(str(tmp_path / "sketch.onnx"), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["frame"]) == [250, 200] and "padded to H:W = 250:200 by" in facts["sizes"]


def test_a_file_that_draws_otherwise_is_not_written(runtime, lively, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_to_onnx", lambda generator: b"")
    monkeypatch.setattr(export, "compare", lambda content, generator: float("nan"))
    with pytest.raises(FastsketchError, match="nothing was written"):
        export.export_onnx(lively(), tmp_path / "sketch.onnx")
    assert not (tmp_path / "sketch.onnx").exists()


def test_without_the_extra(lively, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "PACKAGES", ("onnx_that_is_not_there",))
    with pytest.raises(SystemExit) as caught:
        main(["export", str(lively()), "--onnx", str(tmp_path / "sketch.onnx")])
    assert caught.value.code == 1
    assert "pip install 'fastsketch[export]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [("nothing", "a.onnx", "no such file or run"), (".", "a.onnx", "no generator.safetensors"), (None, ".", "folder")],
)
def test_refuses(runtime, lively, tmp_path, source, target, message):
    with pytest.raises(FastsketchError, match=message):
        export.export_onnx(lively() if source is None else tmp_path / source, tmp_path / target)
