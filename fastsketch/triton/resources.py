"""What a kernel needs of a chip that is not there: compiled by Triton, read from the machine code."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from fastsketch.triton import attention, configs, gather, launch, patch_nce, placement
from fastsketch.triton.configs import Tile

CHIPS = (80, 90, 100, 120)
"""Compute capabilities, times ten, that everything is compiled for."""


@dataclass(frozen=True)
class Launch:
    """A launch that was recorded instead of made.

    Attributes:
        kernel: the kernel.
        tile: one of the tiles that it may be launched with.
        arguments: on the meta device.
        constants: those that are not the tile's.
        key: what tells it from other machine code: two launches of the same kernel and key share theirs.
    """

    kernel: Any
    tile: Tile
    arguments: tuple
    constants: dict[str, Any]
    key: str = ""

    @property
    def name(self) -> str:
        """Module and kernel, as patch_nce.forward, and which of its forms."""
        stem = self.kernel.__module__.rsplit(".", 1)[-1].removesuffix("_kernels")
        form = {True: " of query", False: " of key"}.get(self.constants.get("OF_QUERY"), "")
        form += {True: " (norms apart)"}.get(self.constants.get("NORMS_APART"), "")
        return f"{stem}.{self.kernel.__name__.removesuffix('_kernel')}{form}"

    @property
    def dots(self) -> str | None:
        """How it multiplies float32 blocks (tf32 stands for half precision too); None if it multiplies none."""
        return self.constants.get("PRECISION")


@dataclass(frozen=True)
class Usage:
    """What the machine code of one program uses.

    Attributes:
        registers: 32-bit registers a thread.
        stack: bytes of stack and local memory a thread: spills.
        shared: bytes of shared memory.
        instructions: of the machine code (static count).
        dots: the tensor-core instructions in the PTX: wgmma, tcgen05, mma or none.
    """

    registers: int
    stack: int
    shared: int
    instructions: int
    dots: str


@contextmanager
def _chip(capability: int, purpose: str) -> Iterator[None]:
    """Inside the block Triton believes in a device of this compute capability (times ten), and compiles for it."""
    believed = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: (capability, purpose),  # Triton keeps what it compiled by device
        get_current_stream=lambda device: 0,
    )
    with mock.patch.object(triton.runtime.driver, "_active", believed):
        yield


def _warm(launch: Launch) -> Any:
    named = {**launch.tile.constants(launch.kernel.arg_names), **launch.constants}
    tile = launch.tile
    return launch.kernel.warmup(*launch.arguments, grid=(1,), **named, num_warps=tile.warps, num_stages=tile.stages)


@contextmanager
def recorded(capability: int) -> Iterator[list[Launch]]:
    """Inside the block the package's functions launch nothing and choose tiles as on a chip of this compute capability
    (times ten); every launch they might make (with each of the tiles they may choose) is in the list. Give them
    tensors on the meta device.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, so there is nothing to compile.
    """
    if configs.interpreting():
        raise RuntimeError("kernels cannot be compiled in a process with TRITON_INTERPRET=1")
    launches: list[Launch] = []
    keys: list[str] = []

    def look(key: str, **_: Any) -> bool:
        keys.append(str(key))
        return True  # do not compile

    def record(kernel: Any, tiles: configs.Tiles, programs: Any, arguments: tuple, constants: dict) -> None:
        for tile in tiles:
            made = Launch(kernel, tile, arguments, dict(constants))
            _warm(made)
            launches.append(Launch(kernel, tile, arguments, dict(constants), keys.pop()))

    with (
        _chip(capability, "recording"),
        mock.patch.object(launch, "run", record),
        mock.patch.object(configs, "capability", lambda device: capability),
        mock.patch.object(triton.knobs.runtime, "jit_cache_hook", look),
    ):
        yield launches


def usage(launch: Launch, capability: int) -> Usage:
    """Compile a recorded launch for a chip of this compute capability (times ten), specialised as Triton's launcher
    does it, and read what the machine code uses.
    """
    with _chip(capability, "compiling"):
        compiled = _warm(launch)
    registers, stack, instructions = _machine_code(compiled.asm["cubin"])
    kinds = [kind for kind in ("wgmma.mma_async", "tcgen05.mma", "mma.sync") if f"{kind}." in compiled.asm["ptx"]]
    return Usage(registers, stack, compiled.metadata.shared, instructions, "+".join(kinds) or "none")


_REGISTERS, _FRAME = 0x2F, 0x11
"""Attributes of a kernel in the section .nv.info (EIATTR_REGCOUNT, EIATTR_FRAME_SIZE of the CUDA binary utilities)."""


def _machine_code(cubin: bytes) -> tuple[int, int, int]:
    """(registers, bytes of stack, instructions) of an ELF file with one kernel. The tests compare this to cuobjdump."""
    table, entry, count, names = (
        *struct.unpack_from("<Q", cubin, 40),
        *struct.unpack_from("<HHH", cubin, 58),
    )
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + entry * n) for n in range(count)]
    name_table = sections[names][4]
    found: dict[int, int] = {}
    instructions = 0
    for name, _, _, _, offset, size in sections:
        name = cubin[name_table + name : cubin.index(b"\0", name_table + name)]
        if name.startswith(b".text."):
            instructions += size // 16  # bytes of an instruction, from Volta on
        elif name == b".nv.info":
            at = offset
            while at < offset + size:
                form, attribute, length = struct.unpack_from("<BBH", cubin, at)
                at += 4
                if form == 4:  # with a value of `length` bytes: the kernel's symbol and a number
                    if attribute in (_REGISTERS, _FRAME):
                        found[attribute] = max(found.get(attribute, 0), struct.unpack_from("<II", cubin, at)[1])
                    at += length
    return found[_REGISTERS], found[_FRAME], instructions


INPUTS = {
    "float32": (torch.float32, "tf32x3"),
    "float32-tf32": (torch.float32, "tf32"),
    "float32-ieee": (torch.float32, "ieee"),
    "bfloat16": (torch.bfloat16, ""),
    "float16": (torch.float16, ""),
}
"""What tiles depend on: the dtype, and for float32 the precision of dots."""

SAMPLES = (256, 2 * configs.NORMS_APART)
WIDTHS = {"patch_nce": (64, 128, 256, 320), "attention": (32, 64, 128)}
"""A width of each class that tiles are chosen by."""


def shipped(capability: int, inputs: str) -> list[Launch]:
    """Every kernel with every tile that the package can choose on a chip of this compute capability (times ten): rows
    that can be read 16 bytes at a time (contiguous, of each class of widths) and rows that cannot (in any stride).

    With the options that need most registers (normalised, norms inside, regions, gradients of query and key); further
    options and index types change masks, not tiles.

    Args:
        capability: one of `CHIPS`.
        inputs: one of `INPUTS`.
    """
    dtype, precision = INPUTS[inputs]
    with mock.patch.dict(os.environ, FASTSKETCH_FP32=precision), recorded(capability) as launches:
        for samples in SAMPLES:
            for width in WIDTHS["patch_nce"]:
                _patch_nce(_rows(5, samples, width, dtype))
            _patch_nce(_rows(5, samples, 90, dtype)[..., ::2])
        for width in WIDTHS["attention"]:
            _attention(_rows(1, 4096, width, dtype))
        _attention(_rows(1, 4096, 90, dtype)[..., ::2])
        _gather(dtype)
    distinct: dict[tuple, Launch] = {}
    tiles: set[tuple] = set()
    for made in launches:
        if made.constants.get("NORMS_APART") and (made.kernel, made.tile) in tiles:
            continue  # the form with norms inside needs more
        if made.dots is None and precision in ("tf32", "ieee"):
            continue  # as for tf32x3
        tiles.add((made.kernel, made.tile))
        distinct.setdefault((made.name, made.key), made)
    return list(distinct.values())


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _rows(batch: int, samples: int, width: int, dtype: torch.dtype) -> Tensor:
    return _meta(batch, samples, width, dtype=dtype)


def _patch_nce(rows: Tensor) -> None:
    options = 0.07, "same_region", True
    per_row, region = _meta(*rows.shape[:2]), _meta(*rows.shape[:2], dtype=torch.int64)
    patch_nce.patch_nce_forward(rows, rows, region, *options)
    if rows.shape[1] <= configs.NORMS_APART:  # the backward's tiles do not depend on the number of samples
        saved = per_row, per_row, per_row
        patch_nce.patch_nce_backward(per_row, rows, rows, region, *saved, *options, need_query=True, need_key=True)


def _attention(rows: Tensor) -> None:
    per_row = _meta(*rows.shape[:2])
    attention.attention_statistics_forward(rows, rows, 0.2)
    attention.attention_statistics_backward(per_row, per_row, rows, rows, per_row, per_row, 0.2)


def _gather(dtype: torch.dtype) -> None:
    """The method's five layers in one launch, in both layouts, and their places; taps of few and of many channels."""
    index = _meta(2, 256, dtype=torch.int64)
    sizes = ((262, 262), (256, 256), (128, 128), (64, 64), (64, 64))
    for layout in (torch.contiguous_format, torch.channels_last):
        layers = [
            _meta(2, channels, *size, dtype=dtype).to(memory_format=layout)
            for channels, size in zip((3, 128, 256, 256, 256), sizes, strict=True)
        ]
        patches = gather.gather_layers(layers, [index] * len(layers))
        gather.gather_patches_forward(layers[0], index)
        for x, patch in zip(layers[:2], patches, strict=False):
            gather.tap_patches_add_(x, patch, index)
    if dtype == torch.float32:
        placement.place_positions(index, (64, 64), sizes, (3, 0, 0, 0, 0), _meta(5, 2, *index.shape))
