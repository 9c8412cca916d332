"""Which tensors the kernels take, and how one is launched.

With few images the host's time may be more than a kernel's: little is done for each launch (docs/gpu.md has its time).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsketch.triton import autotune, configs

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(x: Tensor) -> bool:
    """Whether the kernels compute with tensors like this one. What they do not take, every function of this package
    hands to the reference: float64 (which is for checking), empty tensors, and GPUs older than compute capability 8.0.
    """
    return x.dtype in _DTYPES and x.numel() > 0 and configs.capability(x.device) >= configs.LEAST_CAPABILITY


def blocks(count: int, size: int) -> int:
    """How many blocks of `size` hold so many (Triton's own function of this kind takes 2 µs)."""
    return -(-count // size)


def rows(x: Tensor) -> Tensor:
    """Rows [..., D] that can be read 16 bytes at a time: as they are, or a copy, made wider by zeros, which change
    neither products nor norms.
    """
    if configs.aligned(x):
        return x
    width = x.shape[-1]
    copy = x.new_zeros(*x.shape[:-1], blocks(width, 16) * 16)
    copy[..., :width] = x
    return copy


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def dense(x: Tensor, channels_last: bool) -> Tensor:
    """x as it is where its positions lie evenly, which a flat position asks for; else a copy in this layout."""
    if x.is_contiguous() or _is_channels_last(x):
        return x
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def flat_strides(x: Tensor) -> tuple[int, int, int]:
    """Of [B, C, N] of a dense [B, C, H, W]."""
    if _is_channels_last(x):
        channels = x.shape[1]
        return x.shape[2:].numel() * channels, 1, channels
    positions = x.shape[2:].numel()
    return x.shape[1] * positions, positions, 1


def compiler_options(tile: configs.Tile) -> dict[str, Any]:
    """What a kernel is compiled with. Products are fused with sums by name: Triton 3.9 warns that soon they are not."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def run(
    kernel: Any,
    tiles: configs.Tiles,
    programs: Callable[[configs.Tile], int],
    arguments: tuple,
    constants: dict[str, Any],
) -> None:
    """Run `kernel` on the device of the first tensor it takes, on that device's current stream, with the first of
    `tiles`; with FASTSKETCH_AUTOTUNE=1 the fastest.

    Args:
        kernel: the kernel; where there is a choice of tiles it must only write what it does not read.
        tiles: from `configs`.
        programs: how many programs a tile needs.
        arguments: the kernel's, without its constants.
        constants: the kernel's constants that are not the tile's.
    """
    first = arguments[0]
    while isinstance(first, tuple):
        first = first[0]
    device = first.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            run(kernel, tiles, programs, arguments, constants)
        return

    def start(tile: configs.Tile) -> None:
        named = tile.constants(kernel.arg_names) | constants
        kernel[(programs(tile),)](*arguments, **named, **compiler_options(tile))

    tile = tiles[0]
    if len(tiles) > 1 and autotune.wanted(device):
        tile = autotune.fastest(autotune.case(kernel, tiles, first, constants), tiles, start)
    start(tile)
