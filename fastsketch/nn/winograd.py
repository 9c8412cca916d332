"""3×3 convolutions with a quarter of the multiplications, for processors: Winograd's F(4×4, 3×3).

[L: Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016; the matrices are theirs.] A tile of
4×4 outputs, which a direct convolution makes with 144 multiplications a channel pair, takes 36: tiles of 6×6 inputs and
the kernels are carried into a space where the convolution is a product at each of 36 points. What is a sum over
channels becomes 36 matrix products, forward as well as in both gradients; the three transforms around them are small.

The same function as `nn.functional.conv2d`; rounding differs, and is two to three times as large in float32 (7e-6 of
the largest output against 3e-6, at 256 channels).
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TILE, REACH = 4, 6
"""Outputs and inputs of a tile, each way."""

SMALLEST = 64
"""Channels, in and out, below which the transforms cost more than the products save."""

_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def _both_sides(matrix: Tensor, tiles: Tensor) -> Tensor:  # [m, n], [n, n, X, Y] -> [m, m, X, Y]
    """matrix · tile · matrixᵀ for every tile."""
    rows, side = matrix.shape
    left = torch.mm(matrix, tiles.reshape(side, -1)).view(rows, side, -1)
    return torch.matmul(matrix, left).view(rows, rows, *tiles.shape[2:])


class _Winograd(torch.autograd.Function):
    """Forward and both gradients as products in the transformed space, whose input tiles are kept."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        batch, channels, height, width = x.shape
        down, across = -(-(height - 2) // TILE), -(-(width - 2) // TILE)
        spare = (down * TILE + 2 - height, across * TILE + 2 - width)
        padded = nn.functional.pad(x, (0, spare[1], 0, spare[0])) if any(spare) else x
        tiles = padded.unfold(2, REACH, TILE).unfold(3, REACH, TILE).permute(4, 5, 1, 0, 2, 3)
        points = _both_sides(x.new_tensor(_INPUT), tiles.reshape(REACH, REACH, channels, -1)).flatten(0, 1)
        kernel = _both_sides(x.new_tensor(_KERNEL), weight.permute(2, 3, 0, 1)).flatten(0, 1)  # [36, Cout, Cin]
        product = torch.bmm(kernel, points).unflatten(0, (REACH, REACH))
        out = _both_sides(x.new_tensor(_OUTPUT), product)  # [4, 4, Cout, tiles]
        out = out.view(TILE, TILE, -1, batch, down, across).permute(3, 2, 4, 0, 5, 1)
        y = x.new_empty(batch, weight.shape[0], down * TILE, across * TILE)
        tiled = y.view(out.shape)
        if bias is None:
            tiled.copy_(out)
        else:
            torch.add(out, bias.view(-1, 1, 1, 1, 1), out=tiled)
        ctx.save_for_backward(points, kernel)
        ctx.sizes, ctx.grid = (height, width), (batch, down, across)
        if not any(spare):
            return y  # no view: a ReLU may go on in place
        return y[:, :, : height - 2, : width - 2].clone(memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        points, kernel = ctx.saved_tensors
        (height, width), (batch, down, across) = ctx.sizes, ctx.grid
        spare = (down * TILE + 2 - height, across * TILE + 2 - width)
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        padded = nn.functional.pad(grad, (0, spare[1], 0, spare[0])) if any(spare) else grad
        tiles = padded.unfold(2, TILE, TILE).unfold(3, TILE, TILE).permute(4, 5, 1, 0, 2, 3)
        tiles = tiles.reshape(TILE, TILE, grad.shape[1], -1)
        product = _both_sides(grad.new_tensor(_OUTPUT).T, tiles).flatten(0, 1)  # [36, Cout, tiles]
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_kernel = torch.bmm(product, points.mT).unflatten(0, (REACH, REACH))
            grad_weight = _both_sides(grad.new_tensor(_KERNEL).T, grad_kernel).permute(2, 3, 0, 1).contiguous()
        if ctx.needs_input_grad[0]:
            spread = torch.bmm(kernel.mT, product).unflatten(0, (REACH, REACH))
            spread = _both_sides(grad.new_tensor(_INPUT).T, spread)
            grad_x = _overlap(spread.view(REACH, REACH, -1, batch, down, across).permute(3, 2, 4, 0, 5, 1))
            grad_x = grad_x[:, :, :height, :width]
        return grad_x, grad_weight, grad_bias


def _overlap(tiles: Tensor) -> Tensor:  # [B, C, down, 6, across, 6] -> [B, C, 4·down + 4, 4·across + 4]
    """Tiles laid out four apart, their overlap of two added."""
    batch, channels, down, _, across, _ = tiles.shape
    whole = tiles.new_zeros(batch, channels, down + 1, TILE, across + 1, TILE)
    over = REACH - TILE
    whole[:, :, :down, :, :across] = tiles[:, :, :, :TILE, :, :TILE]
    whole[:, :, 1:, :over, :across] += tiles[:, :, :, TILE:, :, :TILE]
    whole[:, :, :down, :, 1:, :over] += tiles[:, :, :, :TILE, :, TILE:]
    whole[:, :, 1:, :over, 1:, :over] += tiles[:, :, :, TILE:, :, TILE:]
    return whole.view(batch, channels, (down + 1) * TILE, (across + 1) * TILE)


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`conv2d(x, weight, bias)` for a 3×3 kernel, stride 1, no padding. Differentiable once.

    Args:
        x: [B, Cin, H, W], sides at least 3; float32 or float64.
        weight: [Cout, Cin, 3, 3].
        bias: [Cout], or None.

    Returns:
        [B, Cout, H − 2, W − 2], contiguous, and not a view.

    Raises:
        ValueError: a wrong shape.
    """
    if x.dim() != 4 or min(x.shape[2:]) < 3:
        raise ValueError(f"x must be [B, Cin, H, W] with sides of at least 3, got {list(x.shape)}")
    if tuple(weight.shape[1:]) != (x.shape[1], 3, 3):
        raise ValueError(f"weight must be [Cout, {x.shape[1]}, 3, 3], got {list(weight.shape)}")
    return _Winograd.apply(x, weight, bias)


class Conv3x3(nn.Conv2d):
    """A 3×3 convolution that can be computed by `winograd_conv2d`; parameters and names are `nn.Conv2d`'s.

    Args:
        in_channels, out_channels: as `nn.Conv2d`.
        padding: zeros on each side, 0 or 1.
    """

    def __init__(self, in_channels: int, out_channels: int, padding: int = 0) -> None:
        super().__init__(in_channels, out_channels, 3, padding=padding)
        self.winograd = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, Cin, H, W] to [B, Cout, H, W], less two each way without padding."""
        if not self.winograd or x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if self.padding[0]:
            x = nn.functional.pad(x, (1, 1, 1, 1))
        return winograd_conv2d(x, self.weight, self.bias)


def as_conv3x3(network: nn.Module) -> nn.Module:
    """Put `Conv3x3` in place of a foreign network's own plain 3×3 convolutions, with their weights; the network."""
    for name, layer in network.named_children():
        plain = type(layer) is nn.Conv2d and layer.bias is not None and layer.padding_mode == "zeros"
        shape = (layer.kernel_size, layer.stride, layer.dilation, layer.groups) if plain else None
        if shape == ((3, 3), (1, 1), (1, 1), 1) and layer.padding in ((0, 0), (1, 1)):
            with torch.device("meta"):
                ours = Conv3x3(layer.in_channels, layer.out_channels, layer.padding[0])
            ours.weight, ours.bias = layer.weight, layer.bias
            setattr(network, name, ours)
    return network


def use_winograd(module: nn.Module, on: bool = True) -> None:
    """Switch the 3×3 convolutions of a network that are wide enough to gain from it."""
    for layer in module.modules():
        if isinstance(layer, Conv3x3):
            layer.winograd = on and min(layer.in_channels, layer.out_channels) >= SMALLEST
