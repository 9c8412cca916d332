"""Tile sizes, fixed by chip, dtype and width, and the precision of float32 dots.

The choices were made by what compiles without spills within a chip's shared memory (docs/gpu-resources.md has the
table); no timing on a GPU stands behind them yet. Every function gives the tile of the case first, and after it what
else may be tried there (`fastsketch.triton.autotune`); all of them are compiled for every chip by the tests.
"""

import os
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

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


class Tile(NamedTuple):
    """Block sizes of a launch.

    Attributes:
        rows: rows of a program.
        columns: rows of the other side that it takes at a time.
        depth: elements of a row that a dot takes at a time.
        out: columns of a gradient that a program computes.
        warps: warps of a program.
        stages: depth of the software pipeline.
        resident: `depth` holds a whole row, and a program keeps its own rows.
    """

    rows: int
    columns: int
    depth: int
    out: int
    warps: int
    stages: int
    resident: bool = False

    def constants(self, names: Sequence[str]) -> dict[str, int | bool]:
        """Those of the tile's constants that a kernel with these argument names has."""
        values = {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "BLOCK_K": self.depth,
            "BLOCK_OUT": self.out,
            "RESIDENT": self.resident,
        }
        return {name: value for name, value in values.items() if name in names}


Tiles = tuple[Tile, ...]
"""The tile of a case, and after it the others that autotuning may try there."""


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


def aligned(rows: Tensor) -> bool:
    """Whether Triton knows that these rows can be read 16 bytes at a time: it looks whether sizes, strides and
    addresses are multiples of 16. Elsewhere every element takes registers for its address.
    """
    return rows.stride(-1) == 1 and all(n % 16 == 0 for n in (rows.shape[-1], *rows.stride()[:-1], rows.data_ptr()))


def norms_tiles() -> Tiles:
    """Of patch_nce's norms."""
    return (Tile(rows=16, columns=1, depth=1, out=1, warps=4, stages=1),)


def patch_nce_forward_tiles(query: Tensor) -> Tiles:
    """Of patch_nce's forward. Few samples: small blocks, so that one image gives several programs."""
    samples, width = query.shape[1:]
    if query.dtype == torch.float32:
        if fp32_precision() == "ieee":
            return (Tile(rows=32, columns=32, depth=32, out=1, warps=8, stages=2),)
        columns = 64 if accumulates_apart(query.device) else 32
        return (Tile(rows=64, columns=columns, depth=32, out=1, warps=8, stages=3),)
    parts = Tile(rows=64, columns=64, depth=64, out=1, warps=8, stages=2)
    if not 64 < width <= 256:
        return (parts,)
    depth = 128 if width <= 128 else 256
    small = Tile(rows=64, columns=64, depth=depth, out=1, warps=4, stages=2, resident=True)
    if samples <= NORMS_APART:
        return small, parts
    chip = capability(query.device)
    if chip not in (80, 90, 100, 103):
        return (small,)
    return Tile(128, 128 if chip <= 90 else 64, depth, out=1, warps=8, stages=2, resident=True), small


def patch_nce_backward_tiles(query: Tensor) -> Tiles:
    """Of patch_nce's backward: rows wider than `out` are computed in parts, each with the logits anew."""
    width = query.shape[-1]
    if query.dtype == torch.float32:
        if fp32_precision() == "ieee":
            return (Tile(rows=32, columns=32, depth=16, out=32, warps=8, stages=1),)
        columns = 32 if capability(query.device) == 90 else 16
        return (Tile(rows=64, columns=columns, depth=16, out=128, warps=8, stages=2),)
    parts = Tile(rows=64, columns=32, depth=64, out=64, warps=8, stages=2)
    if not 64 < width <= 256:
        return (parts,)
    depth, out = 128 if width <= 128 else 256, 64 if query.dtype == torch.float16 else 128
    return Tile(rows=64, columns=64, depth=depth, out=out, warps=8, stages=2, resident=True), parts


def attention_forward_tiles(query: Tensor) -> Tiles:
    """Of both forward passes of attention_statistics, whose rows are short (an eighth of the channels)."""
    width = query.shape[-1]
    if query.dtype == torch.float32:
        if fp32_precision() == "ieee":
            return (Tile(rows=32, columns=32, depth=32, out=1, warps=8, stages=2),)
        resident = width <= 32
        # Elsewhere the smaller block takes 8 bytes of stack.
        wide = not resident and fp32_precision() == "tf32" and capability(query.device) not in (80, 90, 100, 103)
        return (Tile(64, 64 if wide else 32, depth=32, out=1, warps=8, stages=2, resident=resident),)
    if width <= 64:
        return (Tile(rows=64, columns=64, depth=64, out=1, warps=4, stages=2, resident=True),)
    return (Tile(rows=64, columns=64, depth=64, out=1, warps=8, stages=2),)


def attention_backward_tiles(query: Tensor) -> Tiles:
    """Of attention_statistics' backward."""
    width = query.shape[-1]
    if query.dtype == torch.float32:
        if fp32_precision() == "ieee":
            return (Tile(rows=32, columns=32, depth=16, out=32, warps=8, stages=1),)
        out, resident = (32, True) if width <= 32 else (128, False)
        return (Tile(rows=64, columns=32, depth=32, out=out, warps=8, stages=2, resident=resident),)
    parts = Tile(rows=64, columns=32, depth=64, out=64, warps=8, stages=2)
    if width > 64:
        return (parts,)
    return Tile(rows=64, columns=64, depth=64, out=64, warps=8, stages=2, resident=True), parts


def gather_tiles(channels: int) -> Tiles:
    """Of gather and tap: `rows` positions by `out` channels; `columns` positions are compared at a time."""
    return (Tile(rows=16, columns=32, depth=1, out=16 if channels <= 16 else 64, warps=4, stages=1),)


def stencil_tiles(channels: int, channels_last: bool) -> Tiles:
    """Of padding and blurs: as `norm_tiles`, but small, for each of up to 16 taps has addresses of its own."""
    if not channels_last:
        return (Tile(rows=512, columns=1, depth=1, out=1, warps=4, stages=1),)
    out = 16 if channels <= 16 else 64
    return (Tile(rows=1024 // out, columns=1, depth=1, out=out, warps=4, stages=1),)


def norm_tiles(channels: int, channels_last: bool) -> Tiles:
    """Of instance_norm: `rows` positions by `out` channels at a time, as they lie side by side."""
    if not channels_last:
        return (Tile(rows=1024, columns=1, depth=1, out=1, warps=4, stages=1),)
    out = 16 if channels <= 16 else 64
    return (Tile(rows=4096 // out, columns=1, depth=1, out=out, warps=8, stages=1),)


def feature_tiles(channels: int, channels_last: bool) -> Tiles:
    """Of feature_distance: `rows` positions by `out` channels at a time, of both sides."""
    if not channels_last:
        return (Tile(rows=128, columns=1, depth=1, out=8, warps=4, stages=1),)
    out = 16 if channels <= 16 else 64
    return (Tile(rows=1024 // out, columns=1, depth=1, out=out, warps=4, stages=1),)


def placing_tiles() -> Tiles:
    """Of place_positions: `rows` positions."""
    return (Tile(rows=128, columns=1, depth=1, out=1, warps=4, stages=1),)
