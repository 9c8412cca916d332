"""Measure the operators' cases: times in turns, memory, launches, and the bars."""

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fastsketch.bench.case import OURS, Bar, Case, Recipe
from fastsketch.bench.memory import launches, peak
from fastsketch.bench.record import Row, make_row
from fastsketch.bench.timing import measure

Times = dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: calls of each contender, at least.
        least: seconds to spend on a case, at least.
        compiled: measure torch.compile's versions too.
        memory: measure peak memory.
        device: cpu or cuda.
        warm_up: rounds before those that count.
    """

    rounds: int = 30
    least: float = 5.0
    compiled: bool = True
    memory: bool = True
    device: str = "cpu"
    warm_up: int = 3


def verdicts(case: Case, times: dict[str, list[float]], peaks: dict[str, int | None]) -> Iterator[str]:
    """A line a bar: by how much it is reached, or not."""
    for bar in case.bars:
        ratio = _ratio(bar, times, peaks)
        if ratio is not None:
            says = "reached" if ratio >= bar.ratio else "NOT REACHED"
            yield f"  {bar.of} against {bar.other}: {ratio:.3g}×, bar {bar.ratio:g}×: {says}"


def _ratio(bar: Bar, times: dict[str, list[float]], peaks: dict[str, int | None]) -> float | None:
    if bar.of == "time":
        both = [times.get(bar.other), times.get(OURS)]
        return statistics.median(both[0]) / statistics.median(both[1]) if all(both) else None
    both = [peaks.get(bar.other), peaks.get(OURS)]
    return both[0] / max(both[1], 1) if None not in both else None


def measure_case(
    name: str, recipe: Recipe, about: dict[str, str], effort: Effort
) -> tuple[list[Row], Times, list[str]]:
    """Rows, raw times and verdicts of one case.

    Raises:
        AssertionError: contenders disagree.
    """
    torch.compiler.reset()
    case = recipe.case(effort.device)

    def wanted(contender: str) -> bool:
        return effort.compiled or not case.contenders[contender].compiled

    times = measure(
        case,
        rounds=effort.rounds,
        least=effort.least,
        device=effort.device,
        only=wanted,
        warm_up=effort.warm_up,
    )
    peaks: dict[str, int | None] = {}
    rows = []
    for contender, values in times.items():
        if effort.memory:
            threads = torch.get_num_threads()
            peaks[contender] = peak(recipe, contender, threads=threads, device=effort.device)
        row = make_row(
            name,
            contender,
            about,
            times=values,
            baseline=case.baseline,
            baseline_times=times[case.baseline],
            peak=peaks.get(contender),
            launches=launches(case, contender, effort.device),
        )
        rows.append(row)
    return rows, {(name, contender): values for contender, values in times.items()}, [*verdicts(case, times, peaks)]


def measure_cases(
    recipes: dict[str, Recipe],
    about: dict[str, str],
    effort: Effort,
    show: Callable[[list[Row], list[str]], None],
) -> tuple[list[Row], Times, list[str]]:
    """All of them, shown as they come: rows, raw times, and the names of cases that failed."""
    rows: list[Row] = []
    times: Times = {}
    failed = []
    for name, recipe in recipes.items():
        try:
            new, raw, bars = measure_case(name, recipe, about, effort)
        except (AssertionError, RuntimeError) as error:  # the others are still worth measuring
            failed.append(name)
            print(f"{name}: FAILED, {type(error).__name__}: {str(error)[:800]}", file=sys.stderr)
            continue
        rows += new
        times |= raw
        show(new, bars)
    return rows, times, failed
