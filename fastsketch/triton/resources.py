"""What a kernel needs of a chip that is not there: compiled by Triton, read by the cuobjdump that Triton brings."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastsketch.triton import attention, configs, gather, launch, patch_nce
from fastsketch.triton.configs import Tile

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint8: "*u8",
}
_ALIGNED = 16


@dataclass(frozen=True)
class Launch:
    """A launch that was recorded instead of made."""

    kernel: Any
    programs: int
    tile: Tile
    arguments: tuple
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        """Module and kernel, as patch_nce.forward."""
        stem = self.kernel.__module__.rsplit(".", 1)[-1].removesuffix("_kernels")
        return f"{stem}.{self.kernel.__name__.removesuffix('_kernel')}"


@dataclass(frozen=True)
class Usage:
    """What the machine code of one program uses.

    Attributes:
        registers: 32-bit registers a thread.
        stack: bytes of stack and local memory a thread: spills.
        shared: bytes of shared memory.
        instructions: of the machine code (static count).
        tensor_core: the tensor-core instructions in the PTX: wgmma, tcgen05, mma or none.
    """

    registers: int
    stack: int
    shared: int
    instructions: int
    dots: str


@contextmanager
def recorded(capability: int) -> Iterator[list[Launch]]:
    """Inside the block the package's functions launch nothing and choose tiles as on a chip of this compute capability
    (times ten); the launches they would have made are in the list. Give them tensors on the meta device.
    """
    launches: list[Launch] = []

    def record(*arguments: Any) -> None:
        launches.append(Launch(arguments[0], *arguments[1:]))

    with (
        mock.patch.object(launch, "run", lambda *made: launches.append(Launch(*made))),
        mock.patch.object(configs, "capability", lambda device: capability),
    ):
        yield launches


def _typed(value: Any) -> tuple[str, bool]:
    """Triton's type of a launch's argument, and whether it is known to be a multiple of 16 (as Triton's launcher sees
    it; tensors are taken to begin at one).
    """
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype], True
    if isinstance(value, float):
        return "fp32", False
    return ("i32" if -(2**31) <= value < 2**31 else "i64"), value % _ALIGNED == 0


def compile_launch(launch: Launch, capability: int) -> triton.compiler.CompiledKernel:
    """Compile a recorded launch for a chip of this compute capability (times ten), specialised as the launcher does:
    1 is a constant, multiples of 16 are known to be such.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, so there is nothing to compile.
    """
    if configs.interpreting():
        raise RuntimeError("kernels cannot be compiled in a process with TRITON_INTERPRET=1")
    names = launch.kernel.arg_names
    signature: dict[str, str] = {}
    constants = dict(launch.constants)
    attributes = {}
    for position, value in enumerate(launch.arguments):
        if not isinstance(value, Tensor | float) and value == 1:
            constants[names[position]] = 1
            signature[names[position]] = "constexpr"
            continue
        signature[names[position]], aligned = _typed(value)
        if aligned:
            attributes[(position,)] = [["tt.divisibility", _ALIGNED]]
    signature |= dict.fromkeys(launch.constants, "constexpr")
    signature = {name: signature[name] for name in names}
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.tile.warps, "num_stages": launch.tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def usage(compiled: triton.compiler.CompiledKernel) -> Usage:
    """Read what the compiled kernel uses.

    Raises:
        RuntimeError: Triton's cuobjdump did not report it.
    """
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        code = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", report)
    if found is None:
        raise RuntimeError(f"{tool} -res-usage reported nothing of kernel {compiled.name}: {report!r}")
    registers, stack, _, local = map(int, found.groups())
    # "/*0010*/  LDC R1, c[0x0][0x37c] ;" is one instruction.
    instructions = len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+\S", code, flags=re.MULTILINE))
    found_in = [kind for kind in ("wgmma.mma_async", "tcgen05.mma", "mma.sync") if f"{kind}." in compiled.asm["ptx"]]
    return Usage(registers, stack + local, compiled.metadata.shared, instructions, "+".join(found_in) or "none")


INPUTS = {
    "float32": (torch.float32, "tf32x3"),
    "float32-tf32": (torch.float32, "tf32"),
    "float32-ieee": (torch.float32, "ieee"),
    "bfloat16": (torch.bfloat16, ""),
    "float16": (torch.float16, ""),
}
"""What tiles depend on: the dtype, and for float32 the precision of dots."""

WIDTHS = (32, 45, 64, 128, 256, 320)


def shipped(capability: int, inputs: str, widths: Sequence[int] = WIDTHS) -> list[tuple[int, Launch]]:
    """Every launch that the package can make on a chip of this compute capability (times ten), as (width, launch).

    With the options that need most registers (normalised, regions, gradients of query and key); index types, strides
    and further options change addresses and masks, not tiles.

    Args:
        capability: 80, 90, 100 or 120.
        inputs: one of `INPUTS`.
        widths: D of patch_nce, d of attention_statistics, C of gather.
    """
    dtype, precision = INPUTS[inputs]
    made: list[tuple[int, Launch]] = []
    with mock.patch.dict(os.environ, FASTSKETCH_FP32=precision):
        for width in widths:
            with recorded(capability) as launches:
                _launch_all(dtype, width)
            made += [(width, launch) for launch in launches]
    return made


def _launch_all(dtype: torch.dtype, width: int) -> None:
    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    for samples in (256, 2 * configs.NORMS_APART):
        rows, per_row = meta(5, samples, width, dtype=dtype), meta(5, samples)
        region = meta(5, samples, dtype=torch.int64)
        patch_nce.patch_nce_forward(rows, rows, region, 0.07, "same_region", True)
        few = samples <= configs.NORMS_APART
        if few:  # the backward's tile does not depend on the number of samples
            saved = (per_row, per_row, per_row)
            patch_nce.patch_nce_backward(
                per_row, rows, rows, region, *saved, 0.07, "same_region", True, need_query=True, need_key=True
            )
    rows, per_row = meta(1, 4096, width, dtype=dtype), meta(1, 4096)
    attention.attention_statistics_forward(rows, rows, 0.2)
    attention.attention_statistics_backward(per_row, per_row, rows, rows, per_row, per_row, 0.2)
    features, index = meta(1, width, 64, 64, dtype=dtype), meta(1, 256, dtype=torch.int64)
    gather.tap_patches_add_(features, gather.gather_patches_forward(features, index), index)
