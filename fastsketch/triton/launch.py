"""Which tensors the kernels take, and how one is launched."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from fastsketch.triton import configs

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(x: Tensor) -> bool:
    """Whether the kernels compute with tensors like this one. What they do not take, every function of this package
    hands to the reference: float64 (which is for checking), empty tensors, and GPUs older than compute capability 8.0.
    """
    return x.dtype in _DTYPES and x.numel() > 0 and configs.capability(x.device) >= configs.LEAST_CAPABILITY


def run(kernel: Any, programs: int, tile: configs.Tile, arguments: tuple, constants: dict[str, Any]) -> None:
    """Run `kernel` with `programs` programs on the device of the first argument, on its current stream."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](*arguments, **constants, num_warps=tile.warps, num_stages=tile.stages)
