"""Batches cut on the device against the items of the data set they stand for: equal to the last bit."""

import pytest
import torch
from torch.utils.data import default_collate

from fastsketch.errors import FastsketchError
from fastsketch.training.data import SketchDataset
from fastsketch.training.device_data import DeviceDataset
from fastsketch.training.pairs import find_pairs, find_sketches

CPU = torch.device("cpu")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
@pytest.mark.parametrize("canvas", ["square", "tight"])
@pytest.mark.parametrize("crop_size", [None, 36, 24])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("unpaired", [False, True])
@pytest.mark.parametrize(
    "augmentation",
    [
        {},
        {"random_affine": 0.1},
        {"random_affine": 0.1, "color_jitter": 0.3},
        {"random_affine": 0.1, "color_jitter": 0.3, "augment_epochs": 3},
    ],
)
def test_same_batches_as_the_data_set(data, device, canvas, crop_size, channels, unpaired, augmentation):
    sketches = find_sketches(data, "train")
    if unpaired:  # one whose photo is not known
        sketches = [*sketches, data / "blobs/test/sketches/100.png"]
    dataset = SketchDataset(
        find_pairs(data, "train", unpaired=unpaired),
        image_size=40,
        canvas=canvas,
        crop_size=crop_size,
        sketch_channels=channels,
        unpaired=unpaired,
        sketches=sketches if unpaired else None,
        seed=3,
        **augmentation,
    )
    resident = DeviceDataset(dataset, torch.device(device))
    strangers = 0
    for epoch in range(6):
        dataset.set_epoch(epoch)
        for indices in ([0], [4, 1, 2]):
            want, got = default_collate([dataset[i] for i in indices]), resident.batch(indices)
            assert want.keys() == got.keys()
            for name in want:
                assert got[name].device.type == device
                got[name] = got[name].cpu()
                assert torch.equal(want[name], got[name]) and want[name].dtype == got[name].dtype, name
                assert want[name].stride() == got[name].stride(), name  # convolutions go by them
            strangers += sum(dataset.drawings[dataset.draw(i).sketch].stem == "100" for i in indices)
    assert (strangers > 0) == unpaired


@pytest.mark.parametrize(("canvas", "pixels"), [("square", 40 * 40), ("tight", 40 * 32)])
def test_size_is_what_the_canvases_take(data, canvas, pixels):
    dataset = SketchDataset(find_pairs(data, "train"), image_size=40, canvas=canvas)
    assert DeviceDataset.size(dataset) == sum(x.numel() for x in dataset.canvases()) == 5 * (3 + 1 + 1) * pixels
    assert DeviceDataset.fits(dataset, CPU)


def test_a_broken_file_is_named_before_the_first_step(data):
    path = data / "blobs/train/photos/003.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FastsketchError, match=r"photos/003\.png"):
        DeviceDataset(SketchDataset(find_pairs(data, "train")), CPU)
