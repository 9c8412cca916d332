"""How time and memory grow: with samples, images, positions, picture size and layers."""

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from fastsketch.bench.case import OURS, Case, Recipe
from fastsketch.bench.cases import loss_path, patch_nce
from fastsketch.bench.layers import layer_shapes
from fastsketch.bench.memory import peak
from fastsketch.bench.operators import Effort, Times
from fastsketch.bench.record import Row, make_row
from fastsketch.bench.selection import attention_statistics, sample_patches
from fastsketch.bench.timing import measure

CALL_LIMIT = 12.0
"""Seconds that one call may be expected to take."""

CHECK_LIMIT = 1.0
"""Seconds: where the baseline is expected to take longer, agreement was asserted at the smaller sizes only."""

MEMORY_SHARE = 0.6
"""Part of the memory that is free now which a contender may be expected to take, its inputs included."""


@dataclass(frozen=True)
class Sweep:
    """One axis of growth.

    Attributes:
        title: what is computed, and what grows.
        axis: what the sizes are.
        sizes: ascending.
        recipe: the case of a size.
        expected: of each contender: the exponents of time and memory. None: we say nothing.
        needs: bytes that (contender, size) takes, inputs included, roughly; to skip what would not fit.
        power: exponent that turns a size into work, for the expectation of the next size's time.
    """

    title: str
    axis: str
    sizes: tuple[int, ...]
    recipe: Callable[[int], Recipe]
    expected: dict[str, tuple[float | None, float | None]]
    needs: Callable[[str, int], float]
    power: float = 1.0

    def case_name(self, size: int) -> str:
        """The name of a row's case."""
        return f"scaling {self.title}, {self.axis} = {size}"


def _features(batch: int, side: int) -> float:
    """Bytes of query, key, gradient from above and its copy, and CUT's dense gradient with its layouts."""
    return 6 * 4 * batch * sum(math.prod(shape) for shape in layer_shapes(side))


def _square(count: int, images: int = 1) -> float:
    return 4.0 * images * count * count


SWEEPS: dict[str, Sweep] = {
    "S": Sweep(
        "patch_nce",
        "S",
        (256, 512, 1024, 2048, 4096, 8192, 16384),
        lambda size: Recipe(patch_nce, {"images": 1, "samples": size}, {"samples": 64}),
        {OURS: (2, 1), "eager": (2, 2)},
        lambda name, size: 8e6 if name == OURS else 7 * _square(size),
        power=2,
    ),
    "B": Sweep(
        "loss_path at 128²",
        "B",
        (1, 2, 4, 8, 16, 32, 64),
        lambda size: Recipe(loss_path, {"batch": size, "side": 128}, {"batch": 1, "side": 32, "samples": 16}),
        {OURS: (1, 1), "eager": (1, 1)},
        lambda name, size: _features(size, 128),
    ),
    "N": Sweep(
        "attention_statistics",
        "N",
        (256, 512, 1024, 2048, 4096, 8192, 16384),
        lambda size: Recipe(attention_statistics, {"positions": size}, {"positions": 64}),
        {OURS: (2, 1), "materialised": (2, 2)},
        # The check holds both against float64.
        lambda name, size: 8e6 if name == OURS else 5 * _square(size),
        power=2,
    ),
    "sampling": Sweep(
        "sample_patches B=1",
        "side",
        (64, 128, 256, 512, 1024),
        lambda size: Recipe(sample_patches, {"batch": 1, "side": size}, {"side": 32}),
        {OURS: (2, 2), "per region": (2, 2)},
        lambda name, size: 100.0 * size * size,
        power=2,
    ),
    "size": Sweep(
        "loss_path B=1",
        "side",
        (64, 128, 256, 512, 1024),
        lambda size: Recipe(loss_path, {"batch": 1, "side": size}, {"side": 32, "samples": 16}),
        {OURS: (0, 0), "eager": (2, 2)},
        lambda name, size: _features(1, size),
        power=2,
    ),
    "layers": Sweep(
        "loss_path of 256×64×64 layers",
        "L",
        (1, 2, 4, 8, 16),
        lambda size: Recipe(loss_path, {"batch": 1, "layers": size}, {"layers": 1, "samples": 16}),
        {OURS: (1, 1), "eager": (1, 1)},
        lambda name, size: 6 * 4 * size * 256 * 64 * 64,
    ),
}


@dataclass(frozen=True)
class Exponent:
    """A fitted power of growth.

    Attributes:
        value: the slope of log cost over log size, least squares.
        first: smallest size of the fit.
        last: largest size.
    """

    value: float
    first: int
    last: int


def fit(points: list[tuple[int, float]]) -> Exponent | None:
    """Fit a power to the larger half of the points, at least three: what is constant has faded there."""
    points = [(size, cost) for size, cost in points if cost > 0]
    points = points[-max(3, math.ceil(len(points) / 2)) :]
    if len(points) < 3:
        return None
    sizes, costs = np.log(np.array(points, dtype=float)).T
    return Exponent(float(np.polyfit(sizes, costs, 1)[0]), points[0][0], points[-1][0])


def _available() -> float:
    """Bytes of memory that can be had now."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return 1024.0 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return math.inf


def _free(device: str) -> float:
    return float(torch.cuda.mem_get_info()[0]) if device == "cuda" else _available()


def run_sweep(
    sweep: Sweep, about: dict[str, str], effort: Effort, show: Callable[[Row], None] = lambda row: None
) -> tuple[list[Row], Times]:
    """Measure a sweep, from small to large; what would not fit in memory or time gets a row that says so."""
    rows: list[Row] = []
    raw: Times = {}
    before: dict[str, tuple[int, float]] = {}
    baseline = next(name for name in sweep.expected if name != OURS)
    for size in sweep.sizes:
        name = sweep.case_name(size)
        reasons = {contender: _reason(sweep, contender, size, before, effort.device) for contender in sweep.expected}
        recipe = sweep.recipe(size)
        times: dict[str, list[float]] = {}
        if not all(reasons.values()):
            case = recipe.case(effort.device)
            if any(reasons.values()) or _expected(sweep, baseline, size, before) > CHECK_LIMIT:
                case = _unchecked(case)
            times = _times(case, [c for c, reason in reasons.items() if not reason], effort)
        for contender, reason in reasons.items():
            if reason:
                row = make_row(name, contender, about, note=reason)
            else:
                row = make_row(
                    name,
                    contender,
                    about,
                    times=times[contender],
                    baseline=baseline,
                    baseline_times=times.get(baseline),
                    peak=_peak(recipe, contender, effort),
                )
                before[contender] = size, statistics.median(times[contender])
                raw[name, contender] = times[contender]
            rows.append(row)
            show(row)
    return rows, raw


def _unchecked(case: Case) -> Case:
    return replace(case, check=lambda inputs: None)


def _times(case: Case, contenders: list[str], effort: Effort) -> dict[str, list[float]]:
    """A few rounds; one after no warm-up where a call takes a second."""
    probe = measure(case, rounds=1, least=0, device=effort.device, only=contenders.__contains__, warm_up=1)
    longest = max(max(values) for values in probe.values())
    if longest > 1:
        return probe
    rounds = max(2, min(effort.rounds, int(1.5 / longest)))
    case = _unchecked(case)
    return measure(case, rounds=rounds, least=0, device=effort.device, only=contenders.__contains__, warm_up=1)


def _peak(recipe: Recipe, contender: str, effort: Effort) -> int | None:
    if not effort.memory:
        return None
    return peak(recipe, contender, threads=torch.get_num_threads(), device=effort.device)


def _reason(sweep: Sweep, contender: str, size: int, before: dict[str, tuple[int, float]], device: str) -> str:
    """Why a size is skipped; empty if it is not."""
    needed, free = sweep.needs(contender, size), _free(device)
    if needed > MEMORY_SHARE * free:
        return f"would take about {needed / 2**30:.1f} GiB, of {free / 2**30:.1f} GiB free"
    expected = _expected(sweep, contender, size, before)
    return f"a call would take about {expected:.0f} s" if expected > CALL_LIMIT else ""


def _expected(sweep: Sweep, contender: str, size: int, before: dict[str, tuple[int, float]]) -> float:
    """Seconds of a call, by the last size that was measured; 0 where none was."""
    last, seconds = before.get(contender, (size, 0.0))
    return seconds * (size / last) ** sweep.power


def exponents(sweep: Sweep, rows: list[Row]) -> str:
    """Fitted beside expected exponents, of time and memory."""
    lines = [f"{sweep.title}: growth with {sweep.axis}"]
    sizes = {sweep.case_name(size): size for size in sweep.sizes}
    for contender, expected in sweep.expected.items():
        mine = [(sizes[row.case], row) for row in rows if row.case in sizes and row.implementation == contender]
        for what, wanted, unit in zip(("time", "memory"), expected, ("p50_ms", "peak_mib"), strict=True):
            points = [(size, getattr(row, unit)) for size, row in mine if getattr(row, unit) is not None]
            fitted = fit(points)
            if fitted is None:
                lines.append(f"  {contender:14}{what:8}too few sizes were measured")
                continue
            says = "" if wanted is None else f"   expected {wanted:g}"
            span = f"{sweep.axis} = {fitted.first} to {fitted.last}"
            lines.append(f"  {contender:14}{what:8}{sweep.axis}^{fitted.value:.2f}{says}   ({span})")
    return "\n".join(lines)


def run_sweeps(names: list[str], about: dict[str, str], effort: Effort) -> tuple[list[Row], Times, list[str]]:
    """Measure and print sweeps one by one: rows, raw times, and those that failed."""
    rows: list[Row] = []
    raw: Times = {}
    failed = []

    def show(row: Row) -> None:
        time = f"{row.p50_ms:10.3g} ms" if row.calls else f"  not measured: {row.note}"
        memory = "" if row.peak_mib is None else f"{row.peak_mib:11.3g} MiB"
        print(f"  {row.case.removeprefix('scaling '):48}{row.implementation:14}{time}{memory}", flush=True)

    for name in names:
        try:
            new, times = run_sweep(SWEEPS[name], about, effort, show)
        except (AssertionError, RuntimeError) as error:
            failed.append(f"scaling {name}")
            print(f"scaling {name}: FAILED, {type(error).__name__}: {str(error)[:800]}", file=sys.stderr)
            continue
        print(exponents(SWEEPS[name], new), flush=True)
        rows += new
        raw |= times
    return rows, raw, failed
