"""Initial weights of the networks."""

from torch import nn


def init_weights(module: nn.Module, gain: float = 0.02) -> None:
    """Xavier-normal weights and zero biases in every convolution and linear layer [L: CUT's default].

    Args:
        module: initialised in place, submodules included.
        gain: scale of the weights.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
