"""What networks and losses refuse: a clear error that names the argument."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastsketch.nn import (
    DualAttention,
    LeastSquaresGANLoss,
    PatchProjection,
    PerceptualLoss,
    PixelLoss,
    ResnetGenerator,
)
from fastsketch.nn.attend import attend
from fastsketch.nn.feature_distance import normalized_distance
from fastsketch.weights import random_vgg16_features

PICTURE = torch.zeros(2, 1, 16, 16)
MAP = torch.zeros(2, 4, 5, 6)


def generator(image: object, mask: object = None) -> object:
    return ResnetGenerator(3, 1, 4, 5)(image, mask)


def projection(patches: object) -> object:
    return PatchProjection([4, 4], 8)(patches)


CALLS: dict[str, tuple[Callable, tuple[object, ...], str, type[Exception], str]] = {
    "image is an array": (generator, (np.zeros((1, 3, 16, 16)),), "image", TypeError, "torch.Tensor, got ndarray"),
    "image in bytes": (generator, (PICTURE.byte(), PICTURE), "image", TypeError, "got torch.uint8"),
    "mask is an array": (
        generator,
        (PICTURE, np.zeros((2, 1, 16, 16))),
        "mask",
        TypeError,
        "torch.Tensor, got ndarray",
    ),
    "mask is missing": (generator, (PICTURE,), "mask", ValueError, "for a generator with a mask channel, got None"),
    "mask of another size": (generator, (PICTURE, MAP), "mask", ValueError, r"shape \[2, 1, 16, 16\], got \[2, 4,"),
    "mask elsewhere": (generator, (PICTURE, PICTURE.to("meta")), "mask", ValueError, "on cpu, got meta"),
    "features of integers": (DualAttention(4), (MAP.int(),), "features", TypeError, "got torch.int32"),
    "features of one row": (DualAttention(4), (MAP[0],), "features", ValueError, r"\[B, 4, H, W\].*got \[4, 5, 6\]"),
    "features of other channels": (DualAttention(5), (MAP,), "features", ValueError, r"\[B, 5, H, W\]"),
    "features without positions": (DualAttention(4), (MAP[:, :, :0],), "features", ValueError, "at least 1"),
    "patches in one tensor": (projection, (torch.zeros(2, 2, 3, 4),), "patches", TypeError, "a list of tensors"),
    "patches of lists": (projection, ([[0.0], [1.0]],), r"patches\[0\]", TypeError, "torch.Tensor, got list"),
    "patches of integers": (projection, ([MAP[0], MAP[0].long()],), r"patches\[1\]", TypeError, "got torch.int64"),
    "score is a number": (LeastSquaresGANLoss(), (0.5, True), "score", TypeError, "torch.Tensor, got float"),
    "target is missing": (PixelLoss(), (PICTURE, None), "target", TypeError, "torch.Tensor, got NoneType"),
    "target of fewer": (PixelLoss(), (PICTURE, PICTURE[:1]), "target", ValueError, r"shape \[2, 1, 16, 16\]"),
    "no key": (attend, (MAP[0], None, MAP[0]), "key", TypeError, "torch.Tensor, got NoneType"),
    "features no tensor": (normalized_distance, (1.0, MAP), "features", TypeError, "torch.Tensor, got float"),
    "target of integers": (normalized_distance, (MAP, MAP.int()), "target", TypeError, "got torch.int32"),
}


@pytest.mark.parametrize("case", CALLS)
def test_the_error_names_the_argument(case):
    call, arguments, name, error, message = CALLS[case]
    with pytest.raises(error, match=f"^{name} must (be|have) .*{message}"):
        call(*arguments)


def test_perceptual_loss_names_the_argument():
    loss = PerceptualLoss(random_vgg16_features())
    with pytest.raises(TypeError, match=r"^generated must be a torch\.Tensor, got ndarray"):
        loss(PICTURE.numpy(), PICTURE)
    with pytest.raises(ValueError, match=r"^target must have shape \[2, 1, 16, 16\], got \[2, 3, 16, 16\]"):
        loss(PICTURE, PICTURE.expand(-1, 3, -1, -1))
    for wrong in (PICTURE[0], PICTURE[:, :, :15], PICTURE.expand(-1, 2, -1, -1)):
        with pytest.raises(ValueError, match=r"^generated must be \[B, 1 or 3, H, W\], sides at least 16, got"):
            loss(wrong, wrong)


def test_a_mask_of_any_dtype_is_taken():
    torch.manual_seed(0)
    network, mask = ResnetGenerator(3, 1, 4, 5).eval(), torch.rand(2, 1, 16, 16) > 0.5
    wanted = network(PICTURE, mask.float())
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float64):
        assert torch.equal(network(PICTURE, mask.to(dtype)), wanted)
