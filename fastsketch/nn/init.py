"""What the networks have in common: their normalisation and initial weights."""

from torch import nn


def instance_norm(channels: int) -> nn.Module:
    """Instance norm without parameters, as group norm with a group a channel.

    The same function as `nn.InstanceNorm2d(channels)`, but 1.3 to 1.8 times as fast on a CPU, and right there: on torch
    2.14 the CPU gradient of instance norm is wrong for one image and a channels-last incoming gradient.
    """
    return nn.GroupNorm(channels, channels, affine=False)


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
