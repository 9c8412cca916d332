"""Reflection padding and blurs of maps, and their gradients, in one kernel: in the layout of the map, without atomics.

Each is a matrix along rows and one along columns (`fastsketch.reference.stencils`) with few entries a row, which are
kept in tables; a gradient has the transposed tables. So a program gathers what it adds up, in a fixed order, and
results repeat bit for bit. The framework's padding makes contiguous maps of channels-last ones, and its gradient adds
by atomics.

float64 and empty inputs go to the reference.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsketch.reference import stencils as reference
from fastsketch.triton import configs, launch


class Table(NamedTuple):
    """The entries of a matrix, row by row; where a row has fewer, its first with weight 0."""

    index: Tensor  # int32 [entries, rows]
    weight: Tensor  # float32 [entries, rows]


@triton.jit
def stencil_kernel(
    x,  # [B, C, *, *]
    out,  # [B, C, height, width]
    row_index,  # [TAPS_H, height]
    row_weight,
    column_index,  # [TAPS_W, width]
    column_weight,
    channels,
    height,
    width,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    out_stride_b,
    out_stride_c,
    out_stride_h,
    out_stride_w,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """BLOCK_M cells of an image's maps, BLOCK_OUT of them."""
    parts = tl.cdiv(channels, BLOCK_OUT)
    blocks = tl.cdiv(height * width, BLOCK_M)
    columns = ((tl.program_id(0) % parts) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)).to(tl.int64)
    cell = (tl.program_id(0) // parts % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    image = (tl.program_id(0) // parts // blocks).to(tl.int64)
    there = cell < height * width
    mask = there[:, None] & (columns < channels)[None, :]
    row, column = cell // width, cell % width
    x += image * stride_b
    total = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    for i in tl.static_range(TAPS_H):
        from_row = tl.load(row_index + i * height + row, mask=there, other=0).to(tl.int64)
        weight_row = tl.load(row_weight + i * height + row, mask=there, other=0.0)
        for j in tl.static_range(TAPS_W):
            from_column = tl.load(column_index + j * width + column, mask=there, other=0).to(tl.int64)
            weight = weight_row * tl.load(column_weight + j * width + column, mask=there, other=0.0)
            offset = from_row * stride_h + from_column * stride_w
            value = tl.load(x + offset[:, None] + columns[None, :] * stride_c, mask=mask, other=0.0)
            total += value.to(tl.float32) * weight[:, None]
    target = row.to(tl.int64) * out_stride_h + column.to(tl.int64) * out_stride_w
    out += image * out_stride_b + target[:, None] + columns[None, :] * out_stride_c
    tl.store(out, total.to(out.dtype.element_ty), mask=mask)


@lru_cache(maxsize=512)
def table(kind: str, size: int, transposed: bool, device: torch.device) -> Table:
    """The entries of a kind's matrix for rows of this size, or of the transposed one, on a device."""
    matrix = reference.matrix(kind, size)
    matrix = matrix.T if transposed else matrix
    entries = int((matrix != 0).sum(1).max())
    index = (matrix != 0).to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :entries]
    weight = matrix.gather(1, index)
    index = torch.where(weight != 0, index, index[:, :1])
    return Table(
        index.T.to(torch.int32).contiguous().to(device),
        weight.T.to(torch.float32).contiguous().to(device),
    )


def _run(x: Tensor, rows: Table, columns: Table) -> Tensor:
    """The matrices of both tables applied to x [B, C, *, *], in x's layout."""
    batch, channels = x.shape[:2]
    height, width = rows.index.shape[1], columns.index.shape[1]
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    out = torch.empty(batch, channels, height, width, dtype=x.dtype, device=x.device, memory_format=layout)
    launch.run(
        stencil_kernel,
        configs.stencil_tiles(channels, x.stride(1) == 1 and channels > 1),
        lambda tile: batch * launch.blocks(channels, tile.out) * launch.blocks(height * width, tile.rows),
        (x, out, *rows, *columns, channels, height, width, *x.stride(), *out.stride()),
        {"TAPS_H": rows.index.shape[0], "TAPS_W": columns.index.shape[0]},
    )
    return out


def _apply(kind: str, x: Tensor) -> Tensor:
    if not launch.takes(x):
        return reference.apply(kind, x)
    return _run(x, *(table(kind, size, False, x.device) for size in x.shape[2:]))


def _gradient(kind: str, grad_output: Tensor, height: int, width: int) -> Tensor:
    if not launch.takes(grad_output):
        return reference.gradient(kind, grad_output, height, width)
    return _run(grad_output, *(table(kind, size, True, grad_output.device) for size in (height, width)))


def reflection_pad(x: Tensor, border: int) -> Tensor:  # [B, C, H, W] -> [B, C, H + 2 border, W + 2 border]
    """See `fastsketch.nn.padding`."""
    return _apply(f"reflect {border}", x)


def reflection_pad_gradient(grad_output: Tensor, border: int) -> Tensor:
    """Gradient of `reflection_pad`'s input."""
    height, width = (size - 2 * border for size in grad_output.shape[2:])
    return _gradient(f"reflect {border}", grad_output, height, width)


def blur_downsample(x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, ⌈H/2⌉, ⌈W/2⌉]
    """See `fastsketch.nn.blur`."""
    return _apply("blur_downsample", x)


def blur_downsample_gradient(grad_output: Tensor, height: int, width: int) -> Tensor:  # -> [B, C, H, W]
    """Gradient of `blur_downsample`'s input."""
    return _gradient("blur_downsample", grad_output, height, width)


def blur_upsample(x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, 2H, 2W]
    """See `fastsketch.nn.blur`."""
    return _apply("blur_upsample", x)


def blur_upsample_gradient(grad_output: Tensor) -> Tensor:  # [B, C, 2H, 2W] -> [B, C, H, W]
    """Gradient of `blur_upsample`'s input."""
    height, width = (size // 2 for size in grad_output.shape[2:])
    return _gradient("blur_upsample", grad_output, height, width)
