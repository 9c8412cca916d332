"""Reflection padding: on a GPU a kernel of its own, which keeps channels-last maps as they are; else the framework's.

The framework's makes contiguous maps of them, so that convolutions before and behind it each cost a copy, and its
gradient adds up by atomics.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsketch.nn.own_kernels import kernel, usable
from fastsketch.ops import formula
from fastsketch.ops.eager import nothing_looks_on, wants_formula


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, border: int) -> Tensor:
        ctx.border, ctx.shape = border, x.shape
        return kernel("reflection_pad", x.device)(x, border)

    @staticmethod
    def backward(ctx, grad: Tensor):
        if wants_formula(grad):
            return formula.transposed(lambda x: _plain(x, ctx.border), ctx.shape, grad), None
        return kernel("reflection_pad_gradient", grad.device)(grad, ctx.border), None


def _plain(x: Tensor, border: int) -> Tensor:
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and nothing_looks_on(x):
        with torch.autocast("cpu", enabled=False):  # it would widen what is only moved
            return F.pad(x, (border,) * 4, mode="reflect")
    return F.pad(x, (border,) * 4, mode="reflect")


def reflection_pad(x: Tensor, border: int, own_kernel: bool = True) -> Tensor:
    """More cells on each side, mirrored at the outermost ones [L: `nn.ReflectionPad2d`].

    Args:
        x: [B, C, H, W], sides larger than `border`.
        border: 0 or more.
        own_kernel: False: the framework's operator in any case.

    Returns:
        [B, C, H + 2 border, W + 2 border] of the same dtype.
    """
    if border == 0:
        return x
    if usable("reflection_pad", x, on=own_kernel) and x.dim() == 4 and min(x.shape[2:]) > border:
        return _Pad.apply(x, border)
    return _plain(x, border)


class ReflectionPad(nn.ReflectionPad2d):
    """`reflection_pad` as a layer.

    Args:
        border: on each side.
    """

    def __init__(self, border: int) -> None:
        super().__init__(border)
        self.own_kernel = True

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H + 2 border, W + 2 border]."""
        return reflection_pad(x, self.padding[0], self.own_kernel)
