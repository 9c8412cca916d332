"""`fastsketch bench`: measure the user's choice, print tables with ratios, keep csv, draw."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from fastsketch.bench import machine, plot, profile, record, scaling, step
from fastsketch.bench.cases import CASES, CPU_CASES
from fastsketch.bench.operators import Effort, Times, measure_case, measure_cases
from fastsketch.bench.record import Row
from fastsketch.errors import FastsketchError
from fastsketch.training.graph import WARM_UP


@dataclass
class Bench:
    """Time and memory of fastsketch against the same computation written otherwise, on this machine."""

    what: Annotated[tuple[Literal["operators", "scaling", "step"], ...], tyro.conf.Positional] = ("operators",)
    """operators: CUT's data path and its parts; scaling: how cost grows; step: a whole training step."""
    only: str = ""
    """Operators' cases whose name contains this; --list shows the names."""
    sweeps: tuple[Literal["S", "B", "N", "sampling", "size", "layers"], ...] = tuple(scaling.SWEEPS)
    """Axes of scaling: samples, images, positions of attention, positions of sampling, picture size, layers."""
    sizes: tuple[int, ...] = (128,)
    """Sides of the training step's pictures, in pixels."""
    presets: tuple[Literal["cut", "fsscl"], ...] = ("cut", "fsscl")
    """Of the training step: cut, or the full method with attention, mask, pixel and perceptual loss."""
    batches: tuple[int, ...] = (1,)
    """Of the training step: pictures a step."""
    portraits: bool = False
    """Of the training step: pictures of 4:5, on a tight canvas and on a square one."""
    rounds: int | None = None
    """Calls of each contender at least; default 30 (operators, 10 for scaling, 5 for a step)."""
    seconds: float = 5.0
    """Least time for a case of the operators."""
    threads: int | None = None
    """Threads of torch; default: torch's own choice."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where."""
    compiled: bool = True
    """Measure torch.compile's versions too; their compilation takes a minute or two in all."""
    memory: bool = True
    """Measure peak memory, each call in a process of its own."""
    save: Path | None = None
    """Folder for results: a csv file for this kind of machine, and one of every single time. Other cases' rows stay."""
    plot: Path | None = None
    """Folder for figures (PNG, SVG) of these rows, or of all saved ones with --save."""
    list: bool = False
    """Only list the cases."""


def _names() -> str:
    sweeps = [
        f"scaling {name}: {s.title}, {s.axis} = {s.sizes[0]} to {s.sizes[-1]}" for name, s in scaling.SWEEPS.items()
    ]
    return "\n".join([*CASES, *sweeps, "step: a training step, presets cut and fsscl, any --sizes, --portraits"])


def _operators(options: Bench, about: dict[str, str]) -> tuple[list[Row], Times, list[str]]:
    there = {name: recipe for name, recipe in CASES.items() if options.device == "cpu" or name not in CPU_CASES}
    chosen = {name: recipe for name, recipe in there.items() if options.only in name}
    if not chosen:
        raise FastsketchError(f"no case's name contains {options.only!r}; there are:\n{_names()}")
    effort = Effort(options.rounds or 30, options.seconds, options.compiled, options.memory, options.device)

    def show(rows: list[Row], bars: list[str]) -> None:
        print("", record.table(rows), *bars, sep="\n", flush=True)

    return measure_cases(chosen, about, effort, show)


def _scaling(options: Bench, about: dict[str, str]) -> tuple[list[Row], Times, list[str]]:
    effort = Effort(options.rounds or 10, 0, False, options.memory, options.device)
    return scaling.run_sweeps([*options.sweeps], about, effort)


def _step(options: Bench, about: dict[str, str]) -> tuple[list[Row], Times, list[str]]:
    # The C library's heap takes some steps to learn how large the feature maps are; a graph is captured after some.
    on_gpu = options.device == "cuda"
    effort = Effort(options.rounds or 5, 0, False, options.memory, options.device, WARM_UP + 2 if on_gpu else 3)
    ways = (False, True) if on_gpu else (False,)  # captured ones last: what fails in them costs no other
    rows: list[Row] = []
    raw: Times = {}
    failed: list[str] = []
    for captured, *what in itertools.product(ways, options.sizes, options.presets, options.batches):
        this = *what, options.portraits, captured
        recipe, name = step.recipe(*this), step.case_name(*this)
        try:
            # A graph's memory is a pool of its own: what the allocator says of a call leaves it out.
            new, times, _ = measure_case(name, recipe, about, replace(effort, memory=effort.memory and not captured))
        except (AssertionError, RuntimeError, FastsketchError) as error:
            print(f"{name} FAILED: {error}", flush=True)
            failed.append(name)
            continue
        print("", record.table(new), sep="\n")
        for row in new:
            print(f"  {row.implementation:22}{what[-1] * 1e3 / row.p50_ms:.3g} images/s", flush=True)
        rows += new
        raw |= times
        _save(options, about, rows, raw)  # at once: a later case may take longer than there is time
        if captured:
            continue  # its kernels are those of the plain step
        case = recipe.case(options.device)
        spent = {contender: profile.breakdown(case, contender, options.device) for contender in case.contenders}
        print(profile.table(spent), flush=True)
    return rows, raw, failed


def _save(options: Bench, about: dict[str, str], rows: list[Row], times: Times) -> Path | None:
    """The file of the rows, where they are to be kept."""
    if options.save is None or not rows:
        return None
    path = options.save / f"{machine.file_stem(options.device, about)}.csv"
    record.save(path, rows)
    record.save_raw(path.with_name(f"{path.stem}-raw.csv"), times)
    return path


PARTS = {"operators": _operators, "scaling": _scaling, "step": _step}


def bench(arguments: Sequence[str], prog: str = "fastsketch bench", save: Path | None = None) -> int:
    """Run the command; 1 when a case failed.

    Args:
        arguments: the command line's.
        prog: what it is called in help.
        save: default of --save.

    Raises:
        FastsketchError: options that do not go together, or files that cannot be written.
    """
    options = tyro.cli(Bench, args=arguments, prog=prog, default=Bench(save=save))
    if options.list:
        print(_names())
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        raise FastsketchError("--device cuda: torch finds no GPU")
    if options.threads is not None:
        if options.threads < 1:
            raise FastsketchError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    about = machine.facts(options.device)
    print("  ".join(f"{key}: {value}" for key, value in about.items()), flush=True)
    rows: list[Row] = []
    failed: list[str] = []
    for part in options.what:
        new, times, broken = PARTS[part](options, about)
        rows += new
        failed += broken
        if path := _save(options, about, new, times):
            print(f"saved: {path}, {path.stem}-raw.csv")
            rows = record.read(path) if part == options.what[-1] else rows
    if options.plot is not None and rows:
        print("drawn:", *plot.plot_all(rows, options.plot))
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0
