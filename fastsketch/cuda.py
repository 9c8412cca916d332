"""The kernel in CUDA C++ (csrc/cuda), for tensors on a GPU: same name and signature as `fastsketch.reference`.

Importing this module loads `_C_cuda.so`, which adds an implementation to what `fastsketch.cpp` registered; where it was
not built or does not load, the ImportError says why, and nothing else is affected.
"""

from pathlib import Path

import torch
from torch import Tensor

from fastsketch import _backend, cpp, reference  # noqa: F401 (cpp registers what the library adds to)

MAX_POSITIONS = 2**20
"""Positions of an image that the kernel holds."""

_FOLDER = Path(__file__).parent


def _is_cut_short(library: Path) -> bool:
    """Whether an ELF file ends before its last table: the loader would end the process on it, with SIGBUS."""
    with library.open("rb") as file:
        header = file.read(64)
    offset, entry, count = (int.from_bytes(header[a:b], "little") for a, b in ((40, 48), (58, 60), (60, 62)))
    return header[:4] == b"\x7fELF" and library.stat().st_size < max(64, offset + entry * count)


def _load() -> None:
    library = _FOLDER / "_C_cuda.so"
    if not library.exists():
        report = _FOLDER / "_cuda_report.txt"
        reason = report.read_text().strip() if report.exists() else "not built (pip install -e . builds it, with nvcc)"
        raise ImportError(f"CUDA kernels {reason}")
    if _is_cut_short(library):
        raise ImportError(f"{library} is cut short: build it again")
    try:
        torch.ops.load_library(library)
    except OSError as error:  # torch names only the file; the loader's own words are in the cause
        raise ImportError(f"{library} does not load: {error.__cause__ or error}") from error


_load()
_ops = torch.ops.fastsketch_C


def sample_patches(
    density: Tensor,  # [B, N] floating
    region: Tensor | None,  # [B, N] integer
    uniform: Tensor,  # [B, N] in [0, 1]
    num_patches: int,
    threshold: float,
    boost: float,
) -> Tensor:  # [B, S] int64
    """See `fastsketch.reference.sampling`. Any strides; capturable in a CUDA graph; the same result in every run.

    Images of more than `MAX_POSITIONS` positions run the reference, which synchronises.

    Raises:
        ValueError: as many positions, and this implementation was asked for by name.
    """
    if density.shape[1] > MAX_POSITIONS:
        if _backend.forced_backend() == "cuda":
            raise ValueError(f"density must have at most {MAX_POSITIONS} positions an image, got {density.shape[1]}")
        return reference.sample_patches(density, region, uniform, num_patches, threshold, boost)
    return _ops.sample_patches(density, region, uniform, num_patches, threshold, boost)
