"""Autotuning, off unless FASTSKETCH_AUTOTUNE=1: the fastest of a case's tiles, found at its first launch.

A case is a kernel with its constants, the tiles there are for it (which stand for dtype, width and alignment), a shape
rounded up to powers of two, and a device. The tiles are those of `configs`, all compiled for every chip by the tests.
Winners are kept for the life of the process. Two tiles add in different order, so with autotuning the last bits of a
result may differ from one process to the next; within a process a case keeps its tile, and repeats bit for bit.

Timing synchronises, so none is done while a CUDA graph is captured: a case that was not seen before then runs its
first tile. Run every shape once before capturing it.
"""

import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

ROUNDS = 7
"""Times that each tile is timed, in turns with the others; medians are compared."""

T = TypeVar("T")
Case = tuple

_winners: dict[Case, Any] = {}


def wanted(device: torch.device) -> bool:
    """Whether tiles are chosen by time on this device: it is a GPU, and FASTSKETCH_AUTOTUNE=1.

    Raises:
        ValueError: FASTSKETCH_AUTOTUNE is neither 0 nor 1.
    """
    asked = os.environ.get("FASTSKETCH_AUTOTUNE", "0")
    if asked not in ("0", "1"):
        raise ValueError(f"FASTSKETCH_AUTOTUNE must be 0 or 1, got {asked!r}")
    return asked == "1" and device.type == "cuda"


def case(kernel: Any, tiles: Sequence[Any], first: Tensor, constants: dict[str, Any]) -> Case:
    """What a choice is remembered for; `first` is the first tensor that the kernel takes."""
    shape = tuple(triton.next_power_of_2(n) for n in first.shape)
    return kernel.__module__, kernel.__name__, tuple(tiles), shape, first.dtype, first.device, tuple(constants.items())


def fastest(
    case: Case,
    tiles: Sequence[T],
    start: Callable[[T], None],
    *,
    seconds: Callable[[Callable[[], None]], float] | None = None,
    capturing: Callable[[], bool] | None = None,
) -> T:
    """The tile that runs fastest in this case, timed the first time it is asked for.

    Args:
        case: from `case`.
        tiles: what to choose from; of equals the first.
        start: launches the kernel with a tile; launching it again must change nothing.
        seconds: how long a call takes; by default by CUDA events.
        capturing: whether a CUDA graph is being captured; by default on the current stream.
    """
    if case not in _winners:
        if (capturing or torch.cuda.is_current_stream_capturing)():
            return tiles[0]
        seconds = seconds or _device_seconds
        for tile in tiles:
            start(tile)  # compiles it
        times = {tile: [] for tile in tiles}
        for _ in range(ROUNDS):
            for tile in tiles:
                times[tile].append(seconds(lambda tile=tile: start(tile)))
        _winners[case] = min(tiles, key=lambda tile: statistics.median(times[tile]))
    return _winners[case]


def forget() -> None:
    """Time every case anew."""
    _winners.clear()


def _device_seconds(run: Callable[[], None]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
