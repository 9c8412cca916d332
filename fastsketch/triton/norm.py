"""Instance norm with the ReLU behind it, and its gradient: two launches each, on contiguous and on channels-last maps.

The first launch sums up shares of every map, the second begins by adding the shares and writes one map; nothing is
transposed, and nothing but the input is kept for the gradient. The framework's way with channels-last bfloat16 maps
under autocast (read in its sources): copies to float32 and to contiguous, moments, the norm, a ReLU, and copies back.

A program takes BLOCK_M positions by BLOCK_OUT channels at a time: many channels where they lie side by side, one where
positions do. Means and squares are merged as Chan, Golub and LeVeque do (The American Statistician 37, 1983), so that a
mean far from zero costs no digits. Sums are in float32 and in a fixed order: results repeat bit for bit.

float64 and empty inputs go to the reference.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsketch.reference import norm as reference
from fastsketch.triton import configs, launch

MOST_SHARES = 128
"""Shares of a map; all of them are added in one step."""

ENOUGH_PROGRAMS = 512
"""Shares are made until there are so many, about four for each multiprocessor of an H100 or H200."""


@triton.jit
def _program(channels, shares, BLOCK_OUT: tl.constexpr):
    """This program's image, the number of its share, its channels [BLOCK_OUT], and which of them are there."""
    parts = tl.cdiv(channels, BLOCK_OUT)
    columns = ((tl.program_id(0) % parts) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)).to(tl.int64)
    number = tl.program_id(0) // parts % shares
    image = (tl.program_id(0) // parts // shares).to(tl.int64)
    return image, number, columns, columns < channels


@triton.jit
def _shares_of(sums, image, number, shares, channels, columns, mask, MOST_SHARES: tl.constexpr):
    """Sum `number` (0 or 1) of all shares [MOST_SHARES, BLOCK_OUT], 0 behind the last."""
    share = tl.arange(0, MOST_SHARES)
    rows = ((image * 2 + number) * shares + share) * channels
    return tl.load(sums + rows[:, None] + columns[None, :], mask=(share < shares)[:, None] & mask[None, :], other=0.0)


@triton.jit
def _normalised(x, rows, columns, mask, mean, scale, stride_n, stride_c):
    """z [BLOCK_M, BLOCK_OUT] of these rows, 0 outside of them."""
    value = tl.load(x + rows[:, None] * stride_n + columns[None, :] * stride_c, mask=mask, other=0.0)
    return tl.where(mask, (value.to(tl.float32) - mean[None, :]) * scale[None, :], 0.0)


@triton.jit
def moments_kernel(
    x,  # [B, C, N]
    sums,  # [B, 2, shares, C]: mean, and squares of the distance from it
    positions,
    channels,
    stride_b,
    stride_c,
    stride_n,
    shares,
    share,  # positions of one
    BLOCK_M: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """Mean and squares of a share of some maps."""
    image, number, columns, inside = _program(channels, shares, BLOCK_OUT)
    x += image * stride_b
    last = tl.minimum((number + 1) * share, positions)
    mean = tl.zeros([BLOCK_OUT], tl.float32)
    squares = tl.zeros([BLOCK_OUT], tl.float32)
    for start in range(number * share, last, BLOCK_M):
        rows = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        mask = (rows < last)[:, None] & inside[None, :]
        value = tl.load(x + rows[:, None] * stride_n + columns[None, :] * stride_c, mask=mask, other=0.0)
        value = value.to(tl.float32)
        before = (start - number * share).to(tl.float32)
        count = tl.minimum(last - start, BLOCK_M).to(tl.float32)
        mean_here = tl.sum(value, 0) / count
        off = tl.where(mask, value - mean_here[None, :], 0.0)
        distance = mean_here - mean
        mean += distance * (count / (before + count))
        squares += tl.sum(off * off, 0) + distance * distance * (before * count / (before + count))
    target = sums + (image * 2 * shares + number) * channels + columns
    tl.store(target, mean, mask=inside)
    tl.store(target + shares * channels, squares, mask=inside)


@triton.jit
def normalise_kernel(
    x,  # [B, C, N]
    out,  # the same, in the same layout
    sums,  # [B, 2, shares, C]
    means,  # [B, C] out
    scales,  # [B, C] out
    positions,
    channels,
    stride_b,
    stride_c,
    stride_n,
    shares,
    share,
    slope,
    eps,
    BLOCK_M: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    MOST_SHARES: tl.constexpr,
):
    """A share of some normalised maps, through the ReLU."""
    image, number, columns, inside = _program(channels, shares, BLOCK_OUT)
    first = tl.arange(0, MOST_SHARES) * share
    count = tl.maximum(tl.minimum(positions - first, share), 0).to(tl.float32)[:, None]
    mean_of = _shares_of(sums, image, 0, shares, channels, columns, inside, MOST_SHARES)
    squares = _shares_of(sums, image, 1, shares, channels, columns, inside, MOST_SHARES)
    mean = tl.sum(mean_of * count, 0) / positions
    off = mean_of - mean[None, :]
    variance = tl.sum(squares + off * off * count, 0) / positions
    scale = 1.0 / tl.sqrt(variance + eps)
    if number == 0:
        tl.store(means + image * channels + columns, mean, mask=inside)
        tl.store(scales + image * channels + columns, scale, mask=inside)
    x += image * stride_b
    out += image * stride_b
    last = tl.minimum((number + 1) * share, positions)
    for start in range(number * share, last, BLOCK_M):
        rows = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        mask = (rows < last)[:, None] & inside[None, :]
        z = _normalised(x, rows, columns, mask, mean, scale, stride_n, stride_c)
        z = tl.where(z > 0, z, slope * z).to(out.dtype.element_ty)
        tl.store(out + rows[:, None] * stride_n + columns[None, :] * stride_c, z, mask=mask)


@triton.jit
def _through_relu(grad, rows, columns, mask, z, slope, stride_n, stride_c):
    """The gradient [BLOCK_M, BLOCK_OUT] that arrives at z."""
    value = tl.load(grad + rows[:, None] * stride_n + columns[None, :] * stride_c, mask=mask, other=0.0)
    value = value.to(tl.float32)
    return tl.where(z > 0, value, slope * value)


@triton.jit
def products_kernel(
    grad,  # [B, C, N]
    x,  # [B, C, N]
    sums,  # [B, 2, shares, C]: of g, and of g · z
    means,  # [B, C]
    scales,  # [B, C]
    positions,
    channels,
    grad_stride_b,
    grad_stride_c,
    grad_stride_n,
    stride_b,
    stride_c,
    stride_n,
    shares,
    share,
    slope,
    BLOCK_M: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """The two sums that the gradient needs, of a share of some maps."""
    image, number, columns, inside = _program(channels, shares, BLOCK_OUT)
    mean = tl.load(means + image * channels + columns, mask=inside, other=0.0)
    scale = tl.load(scales + image * channels + columns, mask=inside, other=0.0)
    grad += image * grad_stride_b
    x += image * stride_b
    last = tl.minimum((number + 1) * share, positions)
    total = tl.zeros([BLOCK_OUT], tl.float32)
    product = tl.zeros([BLOCK_OUT], tl.float32)
    for start in range(number * share, last, BLOCK_M):
        rows = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        mask = (rows < last)[:, None] & inside[None, :]
        z = _normalised(x, rows, columns, mask, mean, scale, stride_n, stride_c)
        g = _through_relu(grad, rows, columns, mask, z, slope, grad_stride_n, grad_stride_c)
        total += tl.sum(g, 0)
        product += tl.sum(g * z, 0)
    target = sums + (image * 2 * shares + number) * channels + columns
    tl.store(target, total, mask=inside)
    tl.store(target + shares * channels, product, mask=inside)


@triton.jit
def gradient_kernel(
    grad,  # [B, C, N]
    x,  # [B, C, N]
    out,  # as x
    sums,  # [B, 2, shares, C]
    means,  # [B, C]
    scales,  # [B, C]
    positions,
    channels,
    grad_stride_b,
    grad_stride_c,
    grad_stride_n,
    stride_b,
    stride_c,
    stride_n,
    shares,
    share,
    slope,
    BLOCK_M: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    MOST_SHARES: tl.constexpr,
):
    """scale · (g − mean(g) − z · mean(g · z)) of a share of some maps."""
    image, number, columns, inside = _program(channels, shares, BLOCK_OUT)
    mean = tl.load(means + image * channels + columns, mask=inside, other=0.0)
    scale = tl.load(scales + image * channels + columns, mask=inside, other=0.0)
    total = tl.sum(_shares_of(sums, image, 0, shares, channels, columns, inside, MOST_SHARES), 0) / positions
    product = tl.sum(_shares_of(sums, image, 1, shares, channels, columns, inside, MOST_SHARES), 0) / positions
    grad += image * grad_stride_b
    x += image * stride_b
    out += image * stride_b
    last = tl.minimum((number + 1) * share, positions)
    for start in range(number * share, last, BLOCK_M):
        rows = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        mask = (rows < last)[:, None] & inside[None, :]
        z = _normalised(x, rows, columns, mask, mean, scale, stride_n, stride_c)
        g = _through_relu(grad, rows, columns, mask, z, slope, grad_stride_n, grad_stride_c)
        value = (g - total[None, :] - z * product[None, :]) * scale[None, :]
        tl.store(
            out + rows[:, None] * stride_n + columns[None, :] * stride_c, value.to(out.dtype.element_ty), mask=mask
        )


class Plan(NamedTuple):
    """How a launch over maps is divided."""

    tiles: configs.Tiles
    programs: int
    shares: int
    share: int


@lru_cache(maxsize=256)
def plan(batch: int, channels: int, positions: int, channels_last: bool) -> Plan:
    """For maps of this shape and layout; no share is empty."""
    tiles = configs.norm_tiles(channels, channels_last)
    parts, blocks = launch.blocks(channels, tiles[0].out), launch.blocks(positions, tiles[0].rows)
    wanted = min(MOST_SHARES, blocks, launch.blocks(ENOUGH_PROGRAMS, batch * parts))
    each = launch.blocks(blocks, wanted)
    shares = launch.blocks(blocks, each)
    return Plan(tiles, batch * parts * shares, shares, each * tiles[0].rows)


def _run(kernel: Any, how: Plan, *arguments: Any, adds_shares: bool) -> None:
    constants = {"MOST_SHARES": MOST_SHARES} if adds_shares else {}
    launch.run(kernel, how.tiles, lambda tile: how.programs, arguments, constants)


def instance_norm(
    x: Tensor,  # [B, C, H, W]
    slope: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # the same shape, dtype and layout; mean and 1 / standard deviation [B, C]
    """See `fastsketch.reference.norm`."""
    if not launch.takes(x):
        return reference.instance_norm(x, slope, eps)
    x = launch.dense(x, channels_last=False)
    (batch, channels), positions, strides = x.shape[:2], x.shape[2:].numel(), launch.flat_strides(x)
    how = plan(batch, channels, positions, strides[1] == 1)
    sums = x.new_empty(batch, 2, how.shares, channels, dtype=torch.float32)
    mean, scale = x.new_empty(2, batch, channels, dtype=torch.float32)
    out = torch.empty_like(x)
    sizes = positions, channels, *strides, how.shares, how.share
    _run(moments_kernel, how, x, sums, *sizes, adds_shares=False)
    _run(normalise_kernel, how, x, out, sums, mean, scale, *sizes, slope, eps, adds_shares=True)
    return out, mean, scale


def instance_norm_gradient(
    grad_output: Tensor,  # [B, C, H, W]
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    slope: float,
) -> Tensor:  # [B, C, H, W] in the layout of x
    """See `fastsketch.reference.norm`."""
    if not launch.takes(x):
        return reference.instance_norm_gradient(grad_output, x, mean, scale, slope)
    x = launch.dense(x, channels_last=False)
    (batch, channels), positions, strides = x.shape[:2], x.shape[2:].numel(), launch.flat_strides(x)
    how = plan(batch, channels, positions, strides[1] == 1)
    grad = launch.dense(grad_output, strides[1] == 1)
    sums = x.new_empty(batch, 2, how.shares, channels, dtype=torch.float32)
    out = torch.empty_like(x)
    sizes = positions, channels, *launch.flat_strides(grad), *strides, how.shares, how.share
    _run(products_kernel, how, grad, x, sums, mean, scale, *sizes, slope, adds_shares=False)
    _run(gradient_kernel, how, grad, x, out, sums, mean, scale, *sizes, slope, adds_shares=True)
    return out
