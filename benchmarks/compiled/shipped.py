"""Every kernel with every tile that the package can choose, for compiling all of them (see `resources`)."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from unittest import mock

import torch
import triton
from torch import Tensor

from benchmarks.compiled.resources import Launch, Usage, recorded, usage
from fastsketch.triton import attention, configs, features, gather, norm, patch_nce, placing, stencils

CHIPS = (80, 90, 100, 120)
"""Compute capabilities, times ten, that everything is compiled for."""

INPUTS = {
    "float32": (torch.float32, "tf32x3"),
    "float32-tf32": (torch.float32, "tf32"),
    "float32-ieee": (torch.float32, "ieee"),
    "bfloat16": (torch.bfloat16, ""),
    "float16": (torch.float16, ""),
}
"""What tiles depend on: the dtype, and for float32 the precision of dots."""

_LAYOUTS = (torch.contiguous_format, torch.channels_last)
SAMPLES = (256, 2 * configs.NORMS_APART)
WIDTHS = {"patch_nce": (64, 128, 256, 320), "attention": (32, 64, 128)}
"""A width of each class that tiles are chosen by."""


def shipped(capability: int, inputs: str) -> list[Launch]:
    """Every kernel with every tile that the package can choose on a chip of this compute capability (times ten), for
    each class of widths.

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
        for width in WIDTHS["attention"]:
            _attention(_rows(1, 4096, width, dtype))
        _gather(dtype)
        if dtype != torch.float16:  # whose kernels are bfloat16's but for the conversions
            _maps(dtype)
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
    for layout in _LAYOUTS:
        layers = [
            _meta(2, channels, *size, dtype=dtype).to(memory_format=layout)
            for channels, size in zip((3, 128, 256, 256, 256), sizes, strict=True)
        ]
        patches = gather.gather_layers(layers, [index] * len(layers))
        gather.gather_patches_forward(layers[0], index)
        for x, patch in zip(layers[:2], patches, strict=False):
            gather.tap_patches_add_(x, patch, index)
    if dtype == torch.float32:
        placing.place_positions(index, (64, 64), sizes, (3, 0, 0, 0, 0), _meta(5, 2, *index.shape))


def _maps(dtype: torch.dtype) -> None:
    """Maps of many channels and of few, in both layouts; gradients of norms from the other one too; the stencil of most
    taps; distances of features.
    """
    contiguous, last = (_meta(2, 256, 64, 64, dtype=dtype).to(memory_format=f) for f in _LAYOUTS)
    few = _meta(2, 16, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)
    for maps in (contiguous, last, few):
        per_map = _meta(*maps.shape[:2])
        norm.instance_norm(maps, 0.0, 1e-5)
        norm.instance_norm_gradient(maps, maps, per_map, per_map, 0.0)
        other = maps.to(memory_format=torch.contiguous_format if maps is not contiguous else torch.channels_last)
        norm.instance_norm_gradient(other, maps, per_map, per_map, 0.0)
        stencils.blur_upsample_gradient(maps)
        features.feature_distance(maps, maps, 1e-3)
        features.feature_distance_gradient(_meta(2), maps, maps, 1e-3)


COLUMNS = (
    "triton",
    "chip",
    "inputs",
    "kernel",
    "layers",
    "tile",
    "warps",
    "stages",
    "registers",
    "stack",
    "shared",
    "instructions",
    "dots",
)


def row(capability: int, inputs: str, launch: Launch, used: Usage) -> dict[str, str]:
    """What a launch is and uses, by `COLUMNS`, for a table."""
    tile = launch.tile
    size = f"{tile.rows}×{tile.columns}×{tile.depth}×{tile.out}{' R' if tile.resident else ''}"
    values = {
        "triton": triton.__version__,
        "chip": f"sm_{capability}",
        "inputs": inputs,
        "kernel": launch.name,
        "layers": _layers(launch),
        "tile": size,
        "warps": tile.warps,
        "stages": tile.stages,
        **asdict(used),
    }
    return {column: str(values[column]) for column in COLUMNS}


def _layers(launch: Launch) -> str:
    first = launch.arguments[0]
    if isinstance(first, tuple):
        layers = f"{len(first)} layer{'s' * (len(first) > 1)}"
        return layers + (", channels last" if isinstance(first[0], gather.Layer) and first[-1].stride_c == 1 else "")
    if first.dim() == 4:
        return f"{first.shape[1]} channels" + (", channels last" if first.stride(1) == 1 else "")
    return ""


@cache
def _shipped(capability: int, inputs: str) -> list[Launch]:
    return shipped(capability, inputs)


def _usage(capability: int, inputs: str, position: int) -> Usage:
    return usage(_shipped(capability, inputs)[position], capability)


@contextmanager
def measure(processes: int | None = None) -> Iterator[Callable[[int, str], list[tuple[Launch, Usage]]]]:
    """A function of chip and inputs that compiles all of `shipped`, in that many processes (by default one a core)."""
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=get_context("spawn")) as pool:

        def ask(capability: int, inputs: str) -> list[tuple[Launch, Usage]]:
            launches = shipped(capability, inputs)
            count = len(launches)
            return list(
                zip(launches, pool.map(_usage, [capability] * count, [inputs] * count, range(count)), strict=True)
            )

        yield ask
