"""Patches out of a feature map, and their gradients back into it, at S positions and nowhere else.

Reads and writes S·C elements of features in any strides (channels-last, sliced, expanded; 1-D to 3-D). One program
stores to a position, so there are no atomics and results repeat bit for bit: where a position stands more than once in
an image's index (each program looks), the first entry's program adds up all of them in order, which is slower.

A position outside the features, which only FASTSKETCH_CHECK=1 looks for on a GPU, reads NaN and is not written.
float64 and empty inputs go to the reference.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsketch import reference
from fastsketch.reference.layout import empty_features
from fastsketch.triton import configs, launch

MOST_LAYERS = 8
"""Layers of one launch; more take more launches."""


@triton.jit
def _offsets(position, height, width, stride_0, stride_1, stride_2):
    """Offset [S] of flat positions in features of up to three spatial dimensions, the last two of these sizes."""
    column = position % width
    row = position // width % height
    return position // width // height * stride_0 + row * stride_1 + column * stride_2


class Layer(NamedTuple):
    """One layer of a gather: tensors, and what the kernel needs to know of them."""

    features: Tensor  # [B, C, *spatial]
    index: Tensor  # [B, S]
    patches: Tensor  # [B, S, C] out, contiguous
    channels: int
    positions: int
    height: int
    width: int
    stride_b: int
    stride_c: int
    stride_0: int
    stride_1: int
    stride_2: int
    index_stride_b: int
    index_stride_s: int


@triton.jit
def _gather_block(block, layer, samples, BLOCK_M: tl.constexpr, BLOCK_OUT: tl.constexpr):
    """BLOCK_M patches of a layer, BLOCK_OUT channels of them."""
    parts = tl.cdiv(layer.channels, BLOCK_OUT)
    blocks = tl.cdiv(samples, BLOCK_M)
    image = (block // parts // blocks).to(tl.int64)
    rows = ((block // parts % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = ((block % parts) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)).to(tl.int64)
    index = layer.index + image * layer.index_stride_b
    position = tl.load(index + rows * layer.index_stride_s, mask=rows < samples, other=-1)
    there = (position >= 0) & (position < layer.positions)
    offset = _offsets(
        tl.where(there, position, 0), layer.height, layer.width, layer.stride_0, layer.stride_1, layer.stride_2
    )
    source = layer.features + image * layer.stride_b + offset[:, None] + columns[None, :] * layer.stride_c
    inside = (columns < layer.channels)[None, :]
    values = tl.load(source, mask=there[:, None] & inside, other=float("nan"))
    target = layer.patches + (image * samples + rows)[:, None] * layer.channels + columns[None, :]
    tl.store(target, values, mask=(rows < samples)[:, None] & inside)


@triton.jit
def gather_kernel(
    layers,  # a tuple of `Layer`
    batch,
    samples,
    BLOCK_M: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """The layers' blocks one after the other; a program finds its own, and runs code made for its layer's strides."""
    first = 0
    for number in tl.static_range(len(layers)):
        layer = layers[number]
        count = batch * tl.cdiv(samples, BLOCK_M) * tl.cdiv(layer.channels, BLOCK_OUT)
        block = tl.program_id(0) - first
        if (block >= 0) & (block < count):
            _gather_block(block, layer, samples, BLOCK_M, BLOCK_OUT)
        first += count


@triton.jit
def add_kernel(
    features,  # [B, C, *spatial] in and out
    patches,  # [B, S, C]
    index,  # [B, S]
    samples,
    channels,
    positions,
    height,
    width,
    stride_b,
    stride_c,
    stride_0,
    stride_1,
    stride_2,
    patches_stride_b,
    patches_stride_s,
    patches_stride_c,
    index_stride_b,
    index_stride_s,
    BLOCK_M: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """features[position_s] += patches[s], summed in float32 and rounded once."""
    parts = tl.cdiv(channels, BLOCK_OUT)
    blocks = tl.cdiv(samples, BLOCK_M)
    image = (tl.program_id(0) // parts // blocks).to(tl.int64)
    rows = ((tl.program_id(0) // parts % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = ((tl.program_id(0) % parts) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)).to(tl.int64)
    inside = columns < channels
    index += image * index_stride_b
    patches += image * patches_stride_b + columns * patches_stride_c
    position = tl.load(index + rows * index_stride_s, mask=rows < samples, other=-1)

    # The same position further up: that entry's program adds this one. Further down: this program adds that one.
    above = tl.zeros([BLOCK_M], tl.int32)
    below = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, samples, BLOCK_N):
        others = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
        other = tl.load(index + others * index_stride_s, mask=others < samples, other=-2)
        same = position[:, None] == other[None, :]
        above += tl.sum((same & (others[None, :] < rows[:, None])).to(tl.int32), 1)
        below += tl.sum((same & (others[None, :] > rows[:, None])).to(tl.int32), 1)

    mask = (rows < samples)[:, None] & inside[None, :]
    total = tl.load(patches[None, :] + rows[:, None] * patches_stride_s, mask=mask, other=0.0).to(tl.float32)
    if tl.max(below, 0) > 0:
        other_pointer = index  # moved on by one stride at a time: no offset that could overflow
        value_pointers = patches
        for one in range(0, samples):
            again = (position == tl.load(other_pointer)) & (rows < one)
            value = tl.load(value_pointers, mask=inside, other=0.0).to(tl.float32)
            total += tl.where(again[:, None], value[None, :], 0.0)
            other_pointer += index_stride_s
            value_pointers += patches_stride_s

    owner = (position >= 0) & (position < positions) & (above == 0)
    offset = _offsets(tl.where(owner, position, 0), height, width, stride_0, stride_1, stride_2)
    target = features + image * stride_b + offset[:, None] + columns[None, :] * stride_c
    mask = owner[:, None] & inside[None, :]
    base = tl.load(target, mask=mask, other=0.0).to(tl.float32)
    tl.store(target, (base + total).to(features.dtype.element_ty), mask=mask)


def _spatial(features: Tensor) -> tuple[int, ...]:
    """The kernels' view of [B, C, *spatial]: positions, the last two sizes, all strides (missing ones 0)."""
    sizes = (1, 1, *features.shape[2:])
    strides = (0, 0, *features.stride()[2:])
    return features.shape[2:].numel(), *sizes[-2:], *features.stride()[:2], *strides[-3:]


def gather_patches_forward(
    features: Tensor,  # [B, C, *spatial]
    index: Tensor,  # [B, S] int64
) -> Tensor:  # [B, S, C]
    """See `fastsketch.reference.gather`."""
    return gather_layers([features], [index])[0]


def gather_layers(
    features: Sequence[Tensor],  # each [B, C_l, *spatial_l]
    index: Sequence[Tensor],  # each [B, S] int64
) -> list[Tensor]:  # each [B, S, C_l]
    """`gather_patches_forward` of several layers, `MOST_LAYERS` of them a launch."""
    if not all(map(launch.takes, features)) or not index[0].numel():
        return [reference.gather_patches_forward(x, i) for x, i in zip(features, index, strict=True)]
    batch, samples = index[0].shape
    layers = [
        Layer(x, i, x.new_empty(batch, samples, x.shape[1]), x.shape[1], *_spatial(x), *i.stride())
        for x, i in zip(features, index, strict=True)
    ]
    for start in range(0, len(layers), MOST_LAYERS):
        some = tuple(layers[start : start + MOST_LAYERS])
        channels = [layer.channels for layer in some]
        launch.run(
            gather_kernel,
            configs.gather_tiles(max(channels)),
            lambda tile, channels=channels: sum(
                batch * launch.blocks(samples, tile.rows) * launch.blocks(c, tile.out) for c in channels
            ),
            (some, batch, samples),
            {},
        )
    return [layer.patches for layer in layers]


def gather_patches_backward(
    grad_patches: Tensor,  # [B, S, C]
    index: Tensor,  # [B, S] int64
    spatial: Sequence[int],
    channels_last: bool,
) -> Tensor:  # [B, C, *spatial]
    """See `fastsketch.reference.gather`."""
    shape = (grad_patches.shape[0], grad_patches.shape[2], *spatial)
    return tap_patches_add_(empty_features(grad_patches, shape, channels_last).zero_(), grad_patches, index)


def tap_patches_backward(
    grad_features: Tensor,  # [B, C, *spatial]
    grad_patches: Tensor,  # [B, S, C]
    index: Tensor,  # [B, S] int64
) -> Tensor:  # [B, C, *spatial]
    """See `fastsketch.reference.gather`."""
    return tap_patches_add_(torch.empty_like(grad_features).copy_(grad_features), grad_patches, index)


def tap_patches_add_(
    grad_features: Tensor,  # [B, C, *spatial]
    grad_patches: Tensor,  # [B, S, C]
    index: Tensor,  # [B, S] int64
) -> Tensor:  # [B, C, *spatial]
    """`tap_patches_backward` in place; `grad_features` must hold a value of its own at every position."""
    if not launch.takes(grad_features) or not index.numel():
        return grad_features.copy_(reference.tap_patches_backward(grad_features, grad_patches, index))
    samples, channels = index.shape[1], grad_features.shape[1]
    launch.run(
        add_kernel,
        configs.gather_tiles(channels),
        lambda tile: index.shape[0] * launch.blocks(samples, tile.rows) * launch.blocks(channels, tile.out),
        (
            grad_features,
            grad_patches,
            index,
            samples,
            channels,
            *_spatial(grad_features),
            *grad_patches.stride(),
            *index.stride(),
        ),
        {},
    )
    return grad_features
