"""What a kernel needs of a chip that is not there: compiled by Triton, read from the machine code."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget

from fastsketch.triton import configs, launch
from fastsketch.triton.configs import Tile


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


def _warm(made: Launch, **options: Any) -> Any:
    named = {**made.tile.constants(made.kernel.arg_names), **made.constants}
    return made.kernel.warmup(*made.arguments, grid=(1,), **named, **launch.compiler_options(made.tile), **options)


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


def cubin(launch: Launch, capability: int, most_registers: int | None = None) -> tuple[bytes, Usage]:
    """Compile a recorded launch for a chip of this compute capability (times ten), specialised as Triton's launcher
    does it: the machine code, and what it uses.

    Args:
        launch: from `recorded` or `shipped`.
        capability: of the chip.
        most_registers: what a thread is held to; None: what a thread can have.
    """
    with _chip(capability, "compiling"):
        compiled = _warm(launch, maxnreg=most_registers)
    registers, stack, instructions = _machine_code(compiled.asm["cubin"])
    kinds = [kind for kind in ("wgmma.mma_async", "tcgen05.mma", "mma.sync") if f"{kind}." in compiled.asm["ptx"]]
    used = Usage(registers, stack, compiled.metadata.shared, instructions, "+".join(kinds) or "none")
    return compiled.asm["cubin"], used


def usage(launch: Launch, capability: int) -> Usage:
    """What the machine code of `cubin` uses."""
    return cubin(launch, capability)[1]


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
