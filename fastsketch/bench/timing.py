"""Timing in turns, on inputs that no cache holds."""

import gc
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from fastsketch.bench.case import Case, Contender, size_of

ROTATION = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""Bytes of inputs that a round of calls goes through: several times a last-level cache (32 to 64 MiB)."""


def copies_needed(inputs: Any, contenders: int, device: str) -> int:
    """How many sets of inputs to rotate through; no common factor with the contenders, so that each meets all sets."""
    copies = max(1, math.ceil(ROTATION[device] / max(size_of(inputs), 1)))
    copies = min(copies, 256)
    while copies > 1 and math.gcd(copies, contenders) > 1:
        copies += 1
    return copies


def seconds(contender: Contender, inputs: Any, device: str) -> float:
    """Of one call: by CUDA events on a GPU, by the clock on a CPU."""
    prepared = contender.prepare(inputs)
    if device == "cpu":
        start = time.perf_counter()
        contender.run(inputs, prepared)
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    contender.run(inputs, prepared)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def measure(
    case: Case,
    *,
    rounds: int = 30,
    least: float = 5.0,
    device: str = "cpu",
    only: Callable[[str], bool] = lambda name: True,
    warm_up: int = 3,
) -> dict[str, list[float]]:
    """Seconds of each contender, one a round, after `warm_up` rounds; contenders take turns, and each call the next of
    several sets of inputs.

    Args:
        case: what to measure; its check comes first.
        rounds: so many, and more while less than `least` seconds have passed (up to 20 times as many).
        least: seconds to spend at least.
        device: cpu or cuda.
        only: which contenders.
        warm_up: rounds not counted.

    Raises:
        AssertionError: contenders disagree.
    """
    inputs = [case.make()]
    case.check(inputs[0])
    contenders = {name: contender for name, contender in case.contenders.items() if only(name)}
    inputs += [case.make() for _ in range(copies_needed(inputs[0], len(contenders), device) - 1)]
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        started, number, calls = time.perf_counter(), 0, 0
        while number < rounds + warm_up or (time.perf_counter() - started < least and number < 20 * rounds):
            for name, contender in contenders.items():
                took = seconds(contender, inputs[calls % len(inputs)], device)
                calls += 1
                if number >= warm_up:
                    times[name].append(took)
            number += 1
    finally:
        gc.enable()
    return times
