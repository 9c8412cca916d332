"""Convolutions for processors: Winograd's for kernels of 3×3 and 4×4; of 7×7 those with few channels on one side.

Winograd's F(4×4, 3×3) and F(3×3, 4×4) [L: Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR
2016]: a tile of outputs, 4×4 of a 3×3 kernel or 3×3 of a 4×4 kernel, which a direct convolution makes with 144
multiplications a channel pair, takes 36. Tiles of 6×6 inputs and the kernels are carried into a space where the
convolution is a product at each of 36 points. What is a sum over channels becomes 36 matrix products, forward as well
as in both gradients. The kernels are in `csrc/cpu/winograd.h`; nothing of the transformed space is kept between the
passes. Rounding is larger than the framework's in float32: at 256 channels 3e-6 of the root mean square of a result,
against 0.9e-6 of the framework's output and 0.2e-6 of its gradient to the input. It also differs from place to place:
where a picture is the same over and over, values that are equal by the framework's convolution differ in the last bits,
and a max pool behind it sends its gradient to another of them.

Those of 7×7 (`csrc/cpu/direct.h`) follow the definition, along rows, where the framework's vectors run over channels.
"""

import torch
from torch import Tensor, nn

from fastsketch._checks import check_int
from fastsketch.nn.own_kernels import kernel, usable
from fastsketch.nn.padding import reflection_pad
from fastsketch.ops import formula
from fastsketch.ops.eager import nothing_looks_on, wants_formula

MIN_CHANNELS = 32
"""Channels, in and out, below which the transforms cost more than the products save."""

MIN_TILES = 16
"""Tiles of outputs, in all images, below which the kernels' transform costs more than the products save."""

LARGEST_PADDING = {3: 2, 4: 2, 7: 3}
"""By the kernel's side."""


def winograd_is_available() -> bool:
    """Whether the C++ kernels are there, and in use; without them these convolutions are the framework's."""
    return kernel("convolve", torch.device("cpu")) is not None


class _Convolve(torch.autograd.Function):
    """Forward and both gradients by the kernels, which transform anew what each of them needs."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, reflect: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = (padding, reflect)
        return kernel("convolve", x.device)(x, weight, bias, padding, reflect)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        if wants_formula(grad):

            def plain(x: Tensor, weight: Tensor) -> Tensor:
                return _plain(x, weight, None, *ctx.padding)

            made = formula.gradients(plain, (x, weight), ctx.needs_input_grad[:2], grad)
            return *made, grad_bias, None, None
        grad = grad.contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = kernel("convolve_input_gradient", grad.device)(grad, weight, *x.shape[2:], *ctx.padding)
        if ctx.needs_input_grad[1]:
            grad_weight = kernel("convolve_kernel_gradient", grad.device)(x, grad, weight.shape[2], *ctx.padding)
        return grad_x, grad_weight, grad_bias, None, None


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, reflect: bool) -> Tensor:
    x = reflection_pad(x, padding) if reflect else x
    return nn.functional.conv2d(x, weight, bias, padding=0 if reflect else padding)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0, padding_mode: str = "zeros"
) -> Tensor:
    """`conv2d(x, weight, bias, padding=padding)` of stride 1, for three sizes of kernels.

    Where the C++ kernels are not there, or something other than autograd looks on, or in half precision, it is the
    framework's convolution.

    Args:
        x: [B, Cin, H, W], sides at least K with the padding; floating, float32 or float64 for the kernels.
        weight: [Cout, Cin, K, K], K 3, 4 or 7, of x's dtype.
        bias: [Cout], or None.
        padding: on each side, 0 to 2, of a 7×7 kernel to 3.
        padding_mode: zeros, or reflect, as `nn.Conv2d`'s.

    Returns:
        [B, Cout, H + 2 padding + 1 − K, W + 2 padding + 1 − K], and not a view.

    Raises:
        TypeError: a padding that is no int; several dtypes, but under autocast.
        ValueError: a wrong shape or padding.
    """
    size = weight.shape[-1]
    if weight.dim() != 4 or size not in LARGEST_PADDING:
        raise ValueError(f"weight must be [Cout, Cin, K, K], K 3, 4 or 7, got {list(weight.shape)}")
    check_int("padding", padding)
    if not 0 <= padding <= LARGEST_PADDING[size] or padding_mode not in ("zeros", "reflect"):
        most = LARGEST_PADDING[size]
        raise ValueError(f"padding must be 0 to {most}, with zeros or reflect, got {padding} with {padding_mode}")
    reflect = padding_mode == "reflect" and padding > 0
    least = max(size - 2 * padding, padding + 1 if reflect else 1)
    if x.dim() != 4 or min(x.shape[2:]) < least:
        raise ValueError(f"x must be [B, Cin, H, W] with sides of at least {least}, got {list(x.shape)}")
    if tuple(weight.shape[1:]) != (x.shape[1], size, size):
        raise ValueError(f"weight must be [Cout, {x.shape[1]}, {size}, {size}], got {list(weight.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias must be [{weight.shape[0]}], got {list(bias.shape)}")
    if not torch.is_autocast_enabled(x.device.type):
        for name, other in (("weight", weight), ("bias", bias)):
            if other is not None and other.dtype != x.dtype:
                raise TypeError(f"{name} must have x's dtype {x.dtype}, got {other.dtype}")
    by_kernel = x.dtype in (torch.float32, torch.float64) and weight.numel() > 0
    if by_kernel and usable("convolve", x, weight, bias):
        return _Convolve.apply(x.contiguous(), weight, bias, padding, reflect)
    return _plain(x, weight, bias, padding, reflect)


class _PaddedConv2d(nn.Conv2d):
    """The framework's convolution of stride 1, behind padding that may be a kernel of its own."""

    own_kernel = True

    def forward(self, x: Tensor) -> Tensor:
        """[B, Cin, H, W] to [B, Cout, H + 2 padding + 1 − K, W + 2 padding + 1 − K]."""
        return self.convolve(x, self.weight)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """With this weight in place of the layer's own."""
        if self.padding_mode != "reflect":
            return self._conv_forward(x, weight, self.bias)
        return nn.functional.conv2d(reflection_pad(x, self.padding[0], self.own_kernel), weight, self.bias)


class WinogradConv2d(_PaddedConv2d):
    """A convolution of stride 1 that can be computed by Winograd's way; parameters and names are `nn.Conv2d`'s.

    Under autocast on a CPU the tiles are float32 all the same, and the result is of autocast's dtype.

    Args:
        in_channels, out_channels: as `nn.Conv2d`.
        kernel_size: 3 or 4.
        padding: on each side, 0 to 2.
        padding_mode: zeros or reflect.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, padding: int = 0, padding_mode: str = "zeros"
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, padding_mode=padding_mode)
        self.winograd = False

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """With this weight in place of the layer's own."""
        if not self.winograd or not nothing_looks_on(x, weight, self.bias):
            return super().convolve(x, weight)
        tile = 7 - self.kernel_size[0]
        tiles = x.shape[0] * (x.shape[2] // tile) * (x.shape[3] // tile)
        cast = torch.is_autocast_enabled("cpu") and weight.dtype == torch.float32  # float64 is left alone by it
        if tiles < MIN_TILES or (x.dtype != weight.dtype and not cast):
            return super().convolve(x, weight)
        with torch.autocast("cpu", enabled=False):
            x = x.float() if cast else x
            out = convolve(x, weight, self.bias, self.padding[0], self.padding_mode)
        return out.to(torch.get_autocast_dtype("cpu")) if cast else out


class DemodulatedConv2d(WinogradConv2d):
    """`WinogradConv2d` whose weights have norm `gain` an output channel [L: StyleGAN2's demodulation, without a style].

    A map comes out as strong as `gain` times the maps that go in, were those uncorrelated: what an instance norm is
    for, without looking at the picture. So nothing is won by one place so large that a norm divides all others by it.

    Args:
        in_channels, out_channels, kernel_size, padding, padding_mode: as `WinogradConv2d`.
        gain: above 0; √2 makes up for a ReLU.
    """

    EPSILON = 1e-8

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding: int = 0,
        padding_mode: str = "zeros",
        gain: float = 1.0,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding, padding_mode)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """As `WinogradConv2d`'s, with gain · w / ‖w‖ for each output channel's weights w; the bias as it is."""
        scale = self.gain * torch.rsqrt(self.weight.square().sum((1, 2, 3), keepdim=True) + self.EPSILON)
        return self.convolve(x, self.weight * scale)


class DirectConv2d(_PaddedConv2d):
    """A 7×7 convolution of stride 1 with few channels in or out; parameters and names are `nn.Conv2d`'s.

    Under autocast it is the framework's.

    Args:
        in_channels, out_channels: as `nn.Conv2d`.
        padding: on each side, 0 to 3.
        padding_mode: zeros or reflect.
    """

    def __init__(self, in_channels: int, out_channels: int, padding: int = 0, padding_mode: str = "zeros") -> None:
        super().__init__(in_channels, out_channels, 7, padding=padding, padding_mode=padding_mode)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """With this weight in place of the layer's own."""
        plain = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
        plain = plain and not torch.is_autocast_enabled("cpu") and nothing_looks_on(x, weight, self.bias)
        if not self.own_kernel or not plain:
            return super().convolve(x, weight)
        return convolve(x, weight, self.bias, self.padding[0], self.padding_mode)


def as_winograd(network: nn.Module) -> nn.Module:
    """Put `WinogradConv2d` in place of a foreign network's plain 3×3 convolutions, with their weights; the network."""
    for name, layer in network.named_children():
        plain = type(layer) is nn.Conv2d and layer.bias is not None and layer.padding_mode == "zeros"
        shape = (layer.kernel_size, layer.stride, layer.dilation, layer.groups) if plain else None
        if shape == ((3, 3), (1, 1), (1, 1), 1) and layer.padding in ((0, 0), (1, 1)):
            with torch.device("meta"):
                ours = WinogradConv2d(layer.in_channels, layer.out_channels, padding=layer.padding[0])
            ours.weight, ours.bias = layer.weight, layer.bias
            setattr(network, name, ours)
    return network


def use_winograd(module: nn.Module, on: bool = True) -> None:
    """Switch the convolutions of a network that are wide enough to gain from it."""
    for layer in module.modules():
        if isinstance(layer, WinogradConv2d):
            layer.winograd = on and min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS
