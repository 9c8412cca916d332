"""Distance of normalised features, and its gradient: one launch each (and a sum of programs' shares), in any layout.

A program takes BLOCK_M positions, and reads their channels two times (for the gradient three), the later times from the
cache. Nothing is kept between the two launches, half precision is read as it is, and sums are in float32 and in a fixed
order: results repeat bit for bit.

float64 and empty inputs go to the reference.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsketch.reference import features as reference
from fastsketch.triton import configs, launch


@triton.jit
def _program(positions, BLOCK_M: tl.constexpr):
    """This program's image, its positions [BLOCK_M], and which of them are there."""
    blocks = tl.cdiv(positions, BLOCK_M)
    rows = ((tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    return (tl.program_id(0) // blocks).to(tl.int64), rows, rows < positions


@triton.jit
def _part(x, rows, inside, start, channels, stride_c, stride_n, BLOCK_OUT: tl.constexpr):
    """[BLOCK_M, BLOCK_OUT] channels from `start` on of these positions, 0 where there are none."""
    columns = (start + tl.arange(0, BLOCK_OUT)).to(tl.int64)
    mask = inside[:, None] & (columns < channels)[None, :]
    value = tl.load(x + rows[:, None] * stride_n + columns[None, :] * stride_c, mask=mask, other=0.0)
    return value.to(tl.float32)


@triton.jit
def _length(x, rows, inside, channels, stride_c, stride_n, BLOCK_M: tl.constexpr, BLOCK_OUT: tl.constexpr):
    """Of the channels at each position, [BLOCK_M]."""
    squares = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, channels, BLOCK_OUT):
        value = _part(x, rows, inside, start, channels, stride_c, stride_n, BLOCK_OUT)
        squares += tl.sum(value * value, 1)
    return tl.sqrt(squares)


@triton.jit
def distance_kernel(
    features,  # [B, C, N]
    target,  # [B, C, N]
    sums,  # [B, blocks] out: of the squared distances, over N
    positions,
    channels,
    stride_b,
    stride_c,
    stride_n,
    target_stride_b,
    target_stride_c,
    target_stride_n,
    epsilon,
    BLOCK_M: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """The share of some positions in the distance."""
    image, rows, inside = _program(positions, BLOCK_M)
    features += image * stride_b
    target += image * target_stride_b
    length = _length(features, rows, inside, channels, stride_c, stride_n, BLOCK_M, BLOCK_OUT)
    other = _length(target, rows, inside, channels, target_stride_c, target_stride_n, BLOCK_M, BLOCK_OUT)
    scale = 1.0 / (length + epsilon)
    other = 1.0 / (other + epsilon)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, channels, BLOCK_OUT):
        one = _part(features, rows, inside, start, channels, stride_c, stride_n, BLOCK_OUT)
        two = _part(target, rows, inside, start, channels, target_stride_c, target_stride_n, BLOCK_OUT)
        difference = one * scale[:, None] - two * other[:, None]
        total += tl.sum(difference * difference, 1)
    tl.store(sums + tl.program_id(0), tl.sum(total, 0) / positions)


@triton.jit
def distance_gradient_kernel(
    features,  # [B, C, N]
    target,  # [B, C, N]
    grad,  # [B]
    out,  # as features
    positions,
    channels,
    stride_b,
    stride_c,
    stride_n,
    target_stride_b,
    target_stride_c,
    target_stride_n,
    epsilon,
    BLOCK_M: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """The gradient at some positions."""
    image, rows, inside = _program(positions, BLOCK_M)
    factor = 2.0 * tl.load(grad + image).to(tl.float32) / positions
    features += image * stride_b
    target += image * target_stride_b
    out += image * stride_b
    length = _length(features, rows, inside, channels, stride_c, stride_n, BLOCK_M, BLOCK_OUT)
    other = _length(target, rows, inside, channels, target_stride_c, target_stride_n, BLOCK_M, BLOCK_OUT)
    scale = 1.0 / (length + epsilon)
    other = 1.0 / (other + epsilon)
    along = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, channels, BLOCK_OUT):
        unit = _part(features, rows, inside, start, channels, stride_c, stride_n, BLOCK_OUT) * scale[:, None]
        two = _part(target, rows, inside, start, channels, target_stride_c, target_stride_n, BLOCK_OUT)
        along += tl.sum(unit * (unit - two * other[:, None]), 1)
    along = tl.where(length == 0, 0.0, along / tl.where(length == 0, 1.0, length))
    for start in range(0, channels, BLOCK_OUT):
        unit = _part(features, rows, inside, start, channels, stride_c, stride_n, BLOCK_OUT) * scale[:, None]
        two = _part(target, rows, inside, start, channels, target_stride_c, target_stride_n, BLOCK_OUT)
        value = factor * ((unit - two * other[:, None]) * scale[:, None] - unit * along[:, None])
        columns = (start + tl.arange(0, BLOCK_OUT)).to(tl.int64)
        mask = inside[:, None] & (columns < channels)[None, :]
        to = out + rows[:, None] * stride_n + columns[None, :] * stride_c
        tl.store(to, value.to(out.dtype.element_ty), mask=mask)


@lru_cache(maxsize=256)
def _plan(batch: int, channels: int, positions: int, channels_last: bool) -> tuple[configs.Tiles, int]:
    """Tiles, and programs."""
    tiles = configs.feature_tiles(channels, channels_last)
    return tiles, batch * launch.blocks(positions, tiles[0].rows)


def _prepared(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor, configs.Tiles, int, tuple[int, ...]]:
    """Both in a layout that a kernel reads, tiles, programs, and the sizes and strides that it takes."""
    features = launch.dense(features, channels_last=False)
    (batch, channels), positions, strides = (
        features.shape[:2],
        features.shape[2:].numel(),
        launch.flat_strides(features),
    )
    target = launch.dense(target, strides[1] == 1)
    sizes = positions, channels, *strides, *launch.flat_strides(target)
    return features, target, *_plan(batch, channels, positions, strides[1] == 1), sizes


def feature_distance(
    features: Tensor,  # [B, C, H, W]
    target: Tensor,
    epsilon: float,
) -> Tensor:  # [B] float32
    """See `fastsketch.reference.features`."""
    if not launch.takes(features):
        return reference.feature_distance(features, target, epsilon)
    features, target, tiles, programs, sizes = _prepared(features, target)
    sums = features.new_empty(features.shape[0], programs // features.shape[0], dtype=torch.float32)
    arguments = features, target, sums, *sizes, epsilon
    launch.run(distance_kernel, tiles, lambda tile: programs, arguments, {})
    return sums.sum(1)


def feature_distance_gradient(
    grad_loss: Tensor,  # [B]
    features: Tensor,  # [B, C, H, W]
    target: Tensor,
    epsilon: float,
) -> Tensor:  # [B, C, H, W] in the features' dtype and layout
    """See `fastsketch.reference.features`."""
    if not launch.takes(features):
        return reference.feature_distance_gradient(grad_loss, features, target, epsilon)
    features, target, tiles, programs, sizes = _prepared(features, target)
    out = torch.empty_like(features)
    arguments = features, target, grad_loss.contiguous(), out, *sizes, epsilon
    launch.run(distance_gradient_kernel, tiles, lambda tile: programs, arguments, {})
    return out
