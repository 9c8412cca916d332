"""What the tests of the networks share."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import vgg16


@pytest.fixture
def vgg16_features() -> Callable[[], nn.Sequential]:
    """vgg16_features(): VGG16's layers with weights as torchvision draws them; the classifier would take seconds."""

    def make() -> nn.Sequential:
        with torch.device("meta"):
            features = vgg16(weights=None).features
        for layer in features.to_empty(device="cpu"):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        return features

    return make
