"""Initial weights of the networks."""

import math

from torch import nn


def init_weights(module: nn.Module, gain: float = 0.02) -> None:
    """Xavier-normal weights and zero biases in every convolution and linear layer [L: CUT, whose default gain it is].

    Args:
        module: initialised in place, submodules included.
        gain: scale of the weights, finite and above 0.

    Raises:
        ValueError: another gain.
    """
    if not 0 < gain < math.inf:
        raise ValueError(f"gain must be finite and above 0, got {gain}")
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
