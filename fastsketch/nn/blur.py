"""Binomial blurs that halve or double a map: kernels of their own, where there are any, else the framework's.

[L: Zhang, Making convolutional networks shift-invariant again, ICML 2019], as in CUT. The kernels (`csrc/cpu/blur.h`,
`fastsketch/triton/stencils.py`) pad by themselves, take channels-last maps as they are, and keep nothing for the
gradient, where a convolution keeps its padded input.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsketch.nn.own_kernels import kernel, usable
from fastsketch.ops import formula
from fastsketch.ops.eager import nothing_looks_on, wants_formula
from fastsketch.reference.layout import layout_of


class _Downsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, filt: Tensor) -> Tensor:
        ctx.shape, ctx.filt, ctx.layout = x.shape, filt, layout_of(x)
        return kernel("blur_downsample", x.device)(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        if wants_formula(grad):
            return formula.transposed(lambda x: _downsample(x, ctx.filt.to(x.dtype)), ctx.shape, grad), None
        grad = grad.contiguous(memory_format=ctx.layout)
        return kernel("blur_downsample_gradient", grad.device)(grad, *ctx.shape[2:]), None


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, filt: Tensor) -> Tensor:
        ctx.shape, ctx.filt, ctx.layout = x.shape, filt, layout_of(x)
        return kernel("blur_upsample", x.device)(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        if wants_formula(grad):
            return formula.transposed(lambda x: _upsample(x, ctx.filt.to(x.dtype)), ctx.shape, grad), None
        grad = grad.contiguous(memory_format=ctx.layout)
        return kernel("blur_upsample_gradient", grad.device)(grad), None


def _downsample(x: Tensor, filt: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), filt, stride=2, groups=x.shape[1])


def _upsample(x: Tensor, filt: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    wide = F.conv_transpose2d(padded, filt, stride=2, padding=2, groups=x.shape[1])
    return wide[:, :, 1:-1, 1:-1]


class _Blur(nn.Module):
    """What both have: the kernel `filt` [C, 1, K, K], a buffer under CUT's name, of fixed values."""

    filt: Tensor

    def __init__(self, channels: int, values: Sequence[float], gain: float) -> None:
        super().__init__()
        row = torch.tensor(values, device="cpu")  # also where another device is the default
        square = row[:, None] * row[None, :]
        self._values = gain * square / square.sum()
        self.register_buffer("filt", self._values.repeat(channels, 1, 1, 1))
        self.own_kernel = True

    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors) -> None:
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
        if nothing_looks_on(self.filt) and not torch.equal(self.filt.cpu().float(), self._values.expand_as(self.filt)):
            errors.append(f"{prefix}filt must be the binomial kernel {self._values.tolist()}")

    def _check(self, x: Tensor, least: int) -> None:
        channels = self.filt.shape[0]
        if isinstance(x, Tensor) and (  # a tracer's stand-in has no numbers
            x.dim() != 4 or x.shape[1] != channels or x.shape[2] < least or x.shape[3] < least
        ):
            raise ValueError(f"x must be [B, {channels}, H, W], sides at least {least}, got {list(x.shape)}")

    def _takes_kernel(self, name: str, x: Tensor) -> bool:
        return usable(name, x, on=self.own_kernel) and min(x.shape[2:]) >= 2

    def _filter(self, x: Tensor) -> Tensor:
        """In the map's dtype; as it is where a tracer looks on, or for integers."""
        return self.filt.to(x.dtype) if nothing_looks_on(x) and x.is_floating_point() else self.filt


class BlurDownsample(_Blur):
    """Halve a map behind a 3×3 binomial blur, with reflected borders [L: CUT].

    By its own kernel (`fastsketch.nn.own_kernels` switches) it keeps the map's dtype, under autocast too.

    Args:
        channels: C of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, [1, 2, 1], 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], sides at least 2, to [B, C, ⌈H/2⌉, ⌈W/2⌉].

        Raises:
            ValueError: another shape.
        """
        self._check(x, 2)
        if self._takes_kernel("blur_downsample", x):
            return _Downsample.apply(x, self.filt)
        return _downsample(x, self._filter(x))


class BlurUpsample(_Blur):
    """Double a map with a 4×4 binomial interpolation, borders repeated [L: CUT]; else as `BlurDownsample`.

    Args:
        channels: C of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, [1, 3, 3, 1], 4.0)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 2H, 2W].

        Raises:
            ValueError: another shape.
        """
        self._check(x, 1)
        if self._takes_kernel("blur_upsample", x):
            return _Upsample.apply(x, self.filt)
        return _upsample(x, self._filter(x))
