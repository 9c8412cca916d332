"""Results of quality runs as csv and as a Markdown table."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastsketch.files import csv_text, write_text
from fastsketch.metrics.report import METRICS, OVERALL

GREY = "grey photo"
ORDER = (GREY, "cut", "fastcut", "random", "+regions", "+dynamic", "+mask", "+pixel", "+perceptual", "unpaired")


def read_results(out: Path) -> list[dict[str, Any]]:
    """All finished runs of a folder, in the table's order."""
    results = [json.loads(path.read_text()) for path in out.glob("runs/*/result.json")]
    return sorted(results, key=lambda r: (ORDER.index(r["row"]), r["seed"] or 0))


def write_results(out: Path, about: dict[str, str], metrics: Sequence[str]) -> str:
    """Write results.csv (a line a run and subset) and table.md; the table."""
    results = read_results(out)
    run = ("row", "seed", "steps", "seconds")
    rows = [
        {key: r[key] for key in run}
        | {"subset": subset, "images": values["images"]}
        | {m: f"{values[m]:.5f}" for m in metrics if m in values}
        for r in results
        for subset, values in r["subsets"].items()
    ]
    head = "".join(f"# {key}: {value}\n" for key, value in about.items())
    write_text(out / "results.csv", head + csv_text([*run, "subset", "images", *metrics], rows))
    text = markdown(results, metrics)
    write_text(out / "table.md", text)
    return text


def markdown(results: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """A table over all test pairs and one a subset: mean ± sample standard deviation over seeds."""
    subsets = sorted({subset for r in results for subset in r["subsets"]}, key=lambda s: (s != OVERALL, s))
    return "\n".join(_subset_table(results, metrics, subset) for subset in subsets)


def _subset_table(results: Sequence[dict[str, Any]], metrics: Sequence[str], subset: str) -> str:
    images = next((r["subsets"][subset]["images"] for r in results), 0)
    lines = [
        f"| {subset}, {images} test pairs | seeds | {' | '.join(METRICS[m] for m in metrics)} |",
        "|---" * (2 + len(metrics)) + "|",
    ]
    for row in ORDER:
        runs = [r for r in results if r["row"] == row]
        if runs:
            cells = [_mean_and_spread([r["subsets"][subset].get(m) for r in runs]) for m in metrics]
            seeds = "" if row == GREY else str(len(runs))
            lines.append(f"| {row} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean_and_spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "n/a"
    mean = f"{statistics.fmean(known):.4f}"
    return mean if len(known) < 2 else f"{mean} ± {statistics.stdev(known):.4f}"
