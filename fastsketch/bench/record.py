"""Rows of results: measured, kept as csv, read back, printed."""

import csv
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from fastsketch.errors import FastsketchError
from fastsketch.files import write_csv

RAW_COLUMNS = ["case", "implementation", "call", "ms"]


@dataclass(frozen=True)
class Row:
    """One contender of one case on one machine.

    Attributes:
        case: what was computed.
        implementation: by whom.
        p20_ms: of the times of single calls, as the next two.
        p50_ms: the median.
        p80_ms: and the 80th percentile.
        calls: how many were timed; 0: it was not (see `note`).
        ratio: median of the case's baseline / this median: times as fast as the baseline.
        baseline: which that is.
        peak_mib: memory of one call above inputs and weights, MiB; empty where not measured.
        launches: operators called (CPU) or kernels launched (GPU); empty where they cannot be counted.
        note: why something is missing.
        device: processor or GPU.
        threads: torch's.
        kernels: which of fastsketch's.
        fastsketch: version, as the next three.
        commit: of fastsketch.
        torch: version.
        python: version.
        date: UTC.
    """

    case: str
    implementation: str
    p20_ms: float | None
    p50_ms: float | None
    p80_ms: float | None
    calls: int
    ratio: float | None
    baseline: str
    peak_mib: float | None
    launches: int | None
    note: str
    device: str
    threads: str
    kernels: str
    fastsketch: str
    commit: str
    torch: str
    python: str
    date: str


def make_row(
    case: str,
    implementation: str,
    about: dict[str, str],
    *,
    times: list[float] | None = None,
    baseline: str = "",
    baseline_times: list[float] | None = None,
    peak: int | None = None,
    launches: int | None = None,
    note: str = "",
) -> Row:
    """A row of times in seconds and memory in bytes."""
    low, middle, high = (1e3 * np.quantile(times, (0.2, 0.5, 0.8))).tolist() if times else (None,) * 3
    ratio = statistics.median(baseline_times) / statistics.median(times) if times and baseline_times else None
    mib = None if peak is None else peak / 2**20
    numbers = (low, middle, high, len(times or ()), ratio, baseline, mib, launches, note)
    return Row(case, implementation, *numbers, **about)


def _text(value: object) -> object:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else value


def _parse(name: str, text: str) -> object:
    if name in ("p20_ms", "p50_ms", "p80_ms", "ratio", "peak_mib"):
        return float(text) if text else None
    if name in ("calls", "launches"):
        return int(text) if text else None
    return text


def read(path: Path) -> list[Row]:
    """The rows of a csv file; none if there is no such file.

    Raises:
        FastsketchError: not a table of results.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [Row(**{name: _parse(name, text) for name, text in row.items()}) for row in csv.DictReader(file)]
    except (TypeError, ValueError) as error:
        raise FastsketchError(f"{path}: not a table of results ({error})") from error


def save(path: Path, rows: Iterable[Row]) -> None:
    """Write rows into a csv file, whole; rows that stand there for other cases stay, in their places."""
    merged = {(row.case, row.implementation): row for row in read(path)}
    merged.update({(row.case, row.implementation): row for row in rows})
    texts = ({name: _text(value) for name, value in asdict(row).items()} for row in merged.values())
    write_csv(path, [field.name for field in fields(Row)], texts)


def save_raw(path: Path, times: dict[tuple[str, str], list[float]]) -> None:
    """Every single time in milliseconds, by (case, implementation); other cases' stay."""
    merged: dict[tuple[str, str], list[str]] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != RAW_COLUMNS:
                raise FastsketchError(f"{path}: not a table of single times; move it away")
            for row in reader:
                merged.setdefault((row["case"], row["implementation"]), []).append(row["ms"])
    merged.update({key: [f"{1e3 * value:.5g}" for value in values] for key, values in times.items()})
    calls = ((*key, number, value) for key, values in merged.items() for number, value in enumerate(values))
    write_csv(path, RAW_COLUMNS, (dict(zip(RAW_COLUMNS, call, strict=True)) for call in calls))


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}{unit}" if value >= 1000 else f"{value:.3g}{unit}"


def table(rows: list[Row]) -> str:
    """A readable table: a block a case, ratios against its baseline."""
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        lines += ["", case, f"  {'':22}{'p20':>9}{'p50':>9}{'p80 ms':>9}{'speed':>10}{'peak MiB':>11}{'launches':>10}"]
        for row in (row for row in rows if row.case == case):
            if row.calls == 0:
                lines.append(f"  {row.implementation:22}  not measured: {row.note}")
                continue
            cells = "".join(f"{_number(value):>9}" for value in (row.p20_ms, row.p50_ms, row.p80_ms))
            speed = "baseline" if row.implementation == row.baseline else _number(row.ratio, "×")
            memory, count = _number(row.peak_mib), "-" if row.launches is None else str(row.launches)
            lines.append(f"  {row.implementation:22}{cells}{speed:>10}{memory:>11}{count:>10}")
    return "\n".join(lines[1:])
