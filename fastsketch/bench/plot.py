"""Figures from rows of results: ratios of the operators, and curves of growth."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from fastsketch.bench.case import OURS
from fastsketch.bench.record import Row
from fastsketch.bench.scaling import SWEEPS, Sweep, fit
from fastsketch.errors import FastsketchError
from fastsketch.files import written_whole

OUR_COLOUR, BASELINE_COLOUR = "#d1495b", "#30638e"
OTHER_COLOURS = ("#7ba6c9", "#8f9aa3", "#c0c6cc")


def _save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    paths = []
    for kind in ("png", "svg"):
        path = folder / f"{stem}.{kind}"
        with written_whole(path) as part:
            figure.savefig(part, format=kind, dpi=110)
        paths.append(path)
    return paths


def machine_of(rows: list[Row]) -> str:
    """One line that names device, threads and torch."""
    row = rows[0]
    return f"{row.device}, {row.threads} threads, torch {row.torch}, float32"


def plot_ratios(rows: list[Row], folder: Path) -> list[Path]:
    """Times as fast as the baseline, a bar a contender; the baseline is the line at 1.

    Raises:
        FastsketchError: no rows of operators or steps to draw.
    """
    rows = [row for row in rows if row.ratio and not row.case.startswith("scaling ")]
    if not rows:
        raise FastsketchError("there are no rows of operators to draw")
    cases = list(dict.fromkeys(row.case for row in rows))
    bars = [(case, [r for r in rows if r.case == case and r.implementation != r.baseline]) for case in cases]
    height = sum(len(members) for _, members in bars) + 0.8 * len(bars)
    figure = Figure(figsize=(8, 0.22 * height + 0.7), layout="constrained")
    axes = figure.add_subplot()
    y, ticks = 0.0, []
    for case, members in bars:
        others = iter(OTHER_COLOURS * 4)
        for row in members:
            colour = OUR_COLOUR if row.implementation.startswith(OURS) else next(others)
            axes.barh(y, row.ratio - 1, left=1, color=colour, height=0.85)
            axes.text(max(row.ratio, 1) * 1.06, y, f"{row.ratio:.3g}×  {row.implementation}", va="center", fontsize=8)
            y += 1
        baseline = members[0].baseline if members else ""
        ticks.append((y - (len(members) + 1) / 2, f"{case}\nagainst {baseline}"))
        y += 0.8
    axes.axvline(1, color=BASELINE_COLOUR, linewidth=1)
    axes.set_xscale("log")
    low, high = 0.9 * min(1, *(r.ratio for r in rows)), 6 * max(r.ratio for r in rows)
    axes.set_xlim(low, high)
    axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks], fontsize=8)
    axes.set_ylim(y - 0.6, -0.7)
    marks = [mark for mark in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= mark <= high]
    axes.set_xticks(marks, [f"{mark:g}×" for mark in marks])
    axes.minorticks_off()
    axes.set_xlabel(f"times as fast as the baseline (medians)\n{machine_of(rows)}", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return _save(figure, folder, "ratios")


def _curve(axes, sweep: Sweep, rows: list[Row], of: Callable[[Row], float | None], label: str) -> None:
    sizes = {sweep.case_name(size): size for size in sweep.sizes}
    for contender in sweep.expected:
        mine = [row for row in rows if row.implementation == contender]
        points = [(sizes[row.case], of(row)) for row in mine if of(row)]
        if not points:
            continue
        colour = OUR_COLOUR if contender == OURS else BASELINE_COLOUR
        power = fit(points)
        says = f"{contender}  ~ {sweep.axis}$^{{{round(power.value, 1) + 0.0:g}}}$" if power else contender
        axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3.5, linewidth=1.4, label=says)
        missing = [sizes[row.case] for row in mine if row.calls == 0]
        if missing:
            axes.plot([min(missing)], [points[-1][1]], "x", color=colour, markersize=6)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if axes.lines:  # nothing may have been measured
        axes.legend(fontsize=7, frameon=False)


def plot_scaling(rows: list[Row], folder: Path) -> list[Path]:
    """Time above, memory below, a pair of panels a sweep; a cross where a contender was not measured.

    Raises:
        FastsketchError: no rows of scaling to draw.
    """
    sweeps = []
    for sweep in SWEEPS.values():
        names = {sweep.case_name(size) for size in sweep.sizes}
        mine = [row for row in rows if row.case in names]
        if mine:
            sweeps.append((sweep, mine))
    if not sweeps:
        raise FastsketchError("there are no rows of scaling to draw; measure them first: fastsketch bench scaling")
    columns = min(3, len(sweeps))
    blocks = -(-len(sweeps) // columns)
    figure = Figure(figsize=(3.3 * columns, 4.2 * blocks + 0.3), layout="constrained")
    for number, (sweep, mine) in enumerate(sweeps):
        block, column = divmod(number, columns)
        for line, (of, label) in enumerate(((lambda r: r.p50_ms, "ms"), (lambda r: r.peak_mib, "peak MiB"))):
            axes = figure.add_subplot(2 * blocks, columns, (2 * block + line) * columns + column + 1)
            _curve(axes, sweep, mine, of, label)
            if line == 0:
                axes.set_title(sweep.title, fontsize=9)
            else:
                axes.set_xlabel(sweep.axis, fontsize=9)
    figure.supxlabel(machine_of([row for _, mine in sweeps for row in mine]), fontsize=8)
    return _save(figure, folder, "scaling")


def plot_all(rows: list[Row], folder: Path) -> list[Path]:
    """Every figure that these rows can make."""
    paths = []
    for draw in (plot_ratios, plot_scaling):
        try:
            paths += draw(rows, folder)
        except FastsketchError:
            continue
    if not paths:
        raise FastsketchError("there are no rows to draw")
    return paths
