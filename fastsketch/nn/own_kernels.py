"""Kernels for what networks compute beside the contrastive loss: found here, and switched here.

On a CPU all of them are C++, on a GPU norms, blurs, reflection padding and distances of features are Triton's.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastsketch import _backend
from fastsketch.ops.eager import nothing_looks_on


def kernel(name: str, device: torch.device) -> Callable | None:
    """The kernel of this name, where there is one in use on `device`; else None."""
    forced = _backend.forced_backend()
    if forced is not None and forced not in (*_backend.PREFERENCE.get(device.type, ()), "reference"):
        return None  # asked for on another kind of device
    return _backend.optional_kernel(name, device)


def usable(name: str, *tensors: Tensor | None, on: bool = True) -> bool:
    """Whether the kernel of this name may compute a call with these tensors, the first of them floating: it is switched
    on, in use on their device, and only autograd looks on. To ask before anything of a tracer's stand-in.
    """
    first = tensors[0]
    return on and nothing_looks_on(*tensors) and first.is_floating_point() and kernel(name, first.device) is not None


def use_own_kernels(module: nn.Module, on: bool = True) -> None:
    """Switch a network's blurs, norms, padding, attention, halving pools, distances of features and 7×7 convolutions:
    these kernels, or the framework's operators.

    They are on from the start, where there are any. Where a graph of a gradient is wanted (`create_graph`, for a
    gradient penalty) the gradient is the framework's, at its pace. Convolutions by Winograd's way have a switch of
    their own, `fastsketch.nn.convolution.use_winograd`: their rounding is larger than the framework's.
    """
    for layer in module.modules():
        if hasattr(layer, "own_kernel"):
            layer.own_kernel = on
