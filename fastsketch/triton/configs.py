"""Tile sizes, fixed by chip, dtype and width, and the precision of float32 dots.

The choices were made by what compiles without spills within a chip's shared memory (docs/gpu.md has the table); no
timing on a GPU stands behind them yet.
"""

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

ACCUMULATION = torch.float32

LEAST_CAPABILITY = 80
"""Compute capability, times ten, from which on the kernels are used (bfloat16 and tf32 tensor cores)."""

SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Bytes of shared memory that one program may use, by compute capability."""

NORMS_APART = 1024
"""Samples of an image above which patch_nce computes the norms once, in a launch of its own."""

FP32_CHOICES = ("tf32x3", "tf32", "ieee")


@dataclass(frozen=True)
class Tile:
    """Block sizes of a launch.

    Attributes:
        rows: rows of a program.
        columns: rows of the other side that it takes at a time.
        depth: elements of a row that a dot takes at a time; the whole row where that is not wider.
        out: columns of a gradient that a program computes.
        warps: warps of a program.
        stages: depth of the software pipeline.
    """

    rows: int
    columns: int
    depth: int
    out: int
    warps: int
    stages: int

    def constants(self, width: int) -> dict[str, Any]:
        """The kernels' constants for rows of `width` elements."""
        return {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "BLOCK_K": self.depth,
            "RESIDENT": width <= self.depth,
        }


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1), on the CPU."""
    return triton.knobs.runtime.interpret


@cache
def capability(device: torch.device) -> int:
    """Compute capability times ten; 90 stands for the interpreter."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def accumulates_apart(device: torch.device) -> bool:
    """Whether dots are asynchronous (wgmma of sm_90, tcgen05 of sm_100), which leaves registers for larger blocks."""
    return capability(device) in (90, 100, 103)


def fp32_precision() -> str:
    """How float32 inputs are multiplied: FASTSKETCH_FP32 if it is set, otherwise as torch multiplies matrices.

    ``tf32x3`` (three tf32 products: nearly float32's precision, on tensor cores) stands for torch's "highest"; ``tf32``
    is used where torch may use it too (`torch.backends.cuda.matmul.fp32_precision`, `allow_tf32` or
    `torch.set_float32_matmul_precision`); ``ieee``, without tensor cores, only on request.

    Raises:
        ValueError: FASTSKETCH_FP32 is something else.
    """
    asked = os.environ.get("FASTSKETCH_FP32")
    if asked:
        if asked not in FP32_CHOICES:
            raise ValueError(f"FASTSKETCH_FP32 must be one of {', '.join(FP32_CHOICES)}, got {asked!r}")
        return asked
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def first_dot(dtype: torch.dtype) -> dict[str, Any]:
    """Constants of the products of inputs: in their own dtype (the interpreter's bfloat16 dot is wrong, so float32)."""
    precision = fp32_precision() if dtype == torch.float32 else "tf32"
    return {"PRECISION": precision, "WIDE": dtype == torch.bfloat16 and interpreting()}


def second_dot(dtype: torch.dtype) -> dict[str, Any]:
    """Constants of the products of weights and inputs. Weights may be far outside float16's range, so float16 is
    multiplied as tf32, which holds each of its values exactly and has float32's range.
    """
    first = first_dot(dtype)
    return {"OUT_PRECISION": first["PRECISION"], "OUT_WIDE": first["WIDE"] or dtype == torch.float16}


def _power(width: int) -> int:
    """The least power of two that holds a row, and at least 16, the least depth of a tensor-core dot."""
    return max(16, triton.next_power_of_2(width))


def _ragged(width: int) -> bool:
    """Whether rows cannot be read 16 bytes at a time, so that every element takes registers for its address."""
    return width % 8 != 0


def norms_tile() -> Tile:
    """Of patch_nce's norms."""
    return Tile(rows=16, columns=1, depth=1, out=1, warps=4, stages=1)


def patch_nce_forward_tile(query: Tensor, samples: int, width: int) -> Tile:
    """Of patch_nce's forward. Few samples: small blocks, so that one image gives several programs."""
    power = _power(width)
    if query.dtype == torch.float32:
        if fp32_precision() == "ieee":
            return Tile(rows=32, columns=32, depth=32, out=1, warps=8, stages=2)
        columns = 64 if accumulates_apart(query.device) else 32
        return Tile(rows=64, columns=columns, depth=32, out=1, warps=8, stages=3)
    if power > 256:
        return Tile(rows=64, columns=64, depth=64, out=1, warps=8, stages=2)
    chip = capability(query.device)
    if samples > 1024 and chip in (80, 90, 100, 103):
        return Tile(rows=128, columns=128 if chip <= 90 else 64, depth=power, out=1, warps=8, stages=2)
    return Tile(rows=64, columns=64, depth=power, out=1, warps=4, stages=2)


def patch_nce_backward_tile(query: Tensor, width: int) -> Tile:
    """Of patch_nce's backward: rows wider than `out` are computed in parts, each with the logits anew."""
    power = _power(width)
    if query.dtype == torch.float32:
        if fp32_precision() == "ieee":
            return Tile(rows=32, columns=32, depth=32, out=min(power, 32), warps=8, stages=1)
        columns = 32 if capability(query.device) == 90 else 16
        return Tile(rows=64, columns=columns, depth=16, out=min(power, 128), warps=4 if power <= 32 else 8, stages=2)
    depth = power if power <= 256 else 64
    if _ragged(width):
        return Tile(rows=64, columns=32, depth=depth, out=32, warps=8, stages=2)
    if power > 256:
        return Tile(rows=64, columns=32, depth=depth, out=64, warps=8, stages=2)
    out = 64 if query.dtype == torch.float16 else 128
    return Tile(rows=64, columns=64, depth=depth, out=min(power, out), warps=8, stages=2)


def attention_forward_tile(query: Tensor, width: int) -> Tile:
    """Of both forward passes of attention_statistics, whose rows are short (an eighth of the channels)."""
    power = _power(width)
    if query.dtype == torch.float32:
        if fp32_precision() == "ieee":
            return Tile(rows=32, columns=32, depth=32, out=1, warps=8, stages=2)
        return Tile(rows=64, columns=32, depth=32, out=1, warps=8, stages=2)
    if power > 256:
        return Tile(rows=64, columns=64, depth=64, out=1, warps=8, stages=2)
    return Tile(rows=64, columns=64, depth=power, out=1, warps=4, stages=2)


def attention_backward_tile(query: Tensor, width: int) -> Tile:
    """Of attention_statistics' backward."""
    if query.dtype != torch.float32 or fp32_precision() == "ieee":
        return patch_nce_backward_tile(query, width)
    if _ragged(width):
        depth = 16 if accumulates_apart(query.device) else 32
        return Tile(rows=64, columns=16, depth=depth, out=32, warps=8, stages=2)
    return Tile(rows=64, columns=32, depth=32, out=min(_power(width), 128), warps=8, stages=2)


def gather_tile(channels: int) -> Tile:
    """Of gather and tap: `rows` positions by `out` channels; `columns` positions are compared at a time."""
    return Tile(rows=16, columns=64, depth=1, out=min(triton.next_power_of_2(channels), 64), warps=4, stages=1)
