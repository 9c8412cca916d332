"""Maps halved by the largest of each 2×2 square: a kernel, where there is one, else the framework's.

The kernel (`csrc/cpu/max_pool.h`) runs along rows, where the framework's wants channels last (and is used with them),
and finds the largest again on the way back, where the framework keeps its place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsketch.nn.own_kernels import kernel, usable
from fastsketch.ops import formula
from fastsketch.ops.eager import wants_formula


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return kernel("max_pool", x.device)(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        if wants_formula(grad):
            return formula.gradients(lambda x: F.max_pool2d(x, 2), ctx.saved_tensors, (True,), grad)[0]
        return kernel("max_pool_gradient", grad.device)(grad, *ctx.saved_tensors)


class HalvingMaxPool(nn.MaxPool2d):
    """`nn.MaxPool2d(2)`, by its own kernel unless `fastsketch.nn.own_kernels` switches it off."""

    def __init__(self) -> None:
        super().__init__(2)
        self.own_kernel = True

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], sides at least 2, to [B, C, ⌊H/2⌋, ⌊W/2⌋]."""
        ours = usable("max_pool", x, on=self.own_kernel) and x.dim() == 4 and min(x.shape[2:]) >= 2
        if ours and x.is_contiguous():  # the framework's is fast with channels last
            return _MaxPool.apply(x)
        return super().forward(x)


def with_halving_pools(network: nn.Sequential) -> nn.Sequential:
    """The same layers in a new sequence, with `HalvingMaxPool` in place of each plain pool that halves."""

    def halves(layer: nn.Module) -> bool:
        plain = type(layer) is nn.MaxPool2d and not layer.ceil_mode and not layer.return_indices
        kind = (layer.kernel_size, layer.stride, layer.padding, layer.dilation) if plain else None
        return kind == (2, 2, 0, 1)

    return nn.Sequential(*(HalvingMaxPool() if halves(layer) else layer for layer in network))
