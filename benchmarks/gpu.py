"""The GPU's bars, in one run: `python -m benchmarks.gpu --out DIR [--only TEXT] [--quick]`.

Writes DIR/gpu.csv (a row a contender: 20th, 50th and 80th percentile in microseconds, peak memory) and DIR/gpu.md (the
ratios, and the bars they are held to). Contenders of a case take turns, and their results are compared before
anything is timed. `captured` is the same work replayed from a CUDA graph. --quick shrinks everything: a dry run, which
is all that a CPU is good for here.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_cases import CASES, DEVICE, Case
from fastsketch import _backend
from fastsketch.bench.memory import rise_cuda
from fastsketch.files import write_csv, write_text

COLUMNS = ("chip", "case", "contender", "p20_us", "p50_us", "p80_us", "peak_bytes")


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Mean seconds of one call, of `repeats` calls in a row: by CUDA events, or the clock on a CPU."""
    if DEVICE.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def measure(name: str, case: Case, rounds: int) -> Iterator[tuple]:
    """(case, contender, p20, p50, p80 in µs, peak bytes) of each contender, timed in turns."""
    times: dict[str, list[float]] = {contender: [] for contender in case.contenders}
    repeats = {}
    for contender, run in case.contenders.items():
        for _ in range(3):
            run()
        synchronize()
        # About 20 ms a round, so that the launch of the events is nothing beside it.
        repeats[contender] = max(1, min(200, int(0.02 / max(seconds(run, 2), 1e-7))))
    for _ in range(rounds):
        for contender, run in case.contenders.items():
            times[contender].append(seconds(run, repeats[contender]))
    for contender, values in times.items():
        percentiles = statistics.quantiles(values, n=10, method="inclusive")
        peak = rise_cuda(case.contenders[contender]) if DEVICE.type == "cuda" else 0
        yield name, contender, *(1e6 * percentiles[i] for i in (1, 4, 7)), peak


def report(name: str, case: Case, rows: list[tuple]) -> list[str]:
    """Lines of Markdown: the case's contenders, ratios and notes."""
    medians = {row[1]: row[3] for row in rows}
    lines = [
        f"### {name}",
        "",
        "| contender | p20 µs | p50 µs | p80 µs | peak MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {r[1]} | {r[2]:.1f} | {r[3]:.1f} | {r[4]:.1f} | {r[5] / 2**20:.2f} |" for r in rows]
    for ours, other, least in case.bars:
        ratio = medians[other] / medians[ours]
        verdict = "reached" if ratio >= least else "NOT reached"
        verdict = verdict if DEVICE.type == "cuda" else "not judged on a CPU"
        lines.append(f"- {ours} against {other}: {ratio:.2f}× (bar {least}: {verdict})")
    lines += [f"- {note}: {say({k: v / 1e6 for k, v in medians.items()})}" for note, say in case.notes.items()]
    return [*lines, ""]


def main() -> None:
    """Run the cases, one failing no other, and write the files as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["FASTSKETCH_GPU_CHECK"] = "0"  # timed whatever their trial said

    chip = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu (a dry run, no measurement)"
    used = {kernel: chosen for kernel, (chosen, _) in _backend.explain(DEVICE.type).items()}
    text = [f"{chip}, torch {torch.__version__}, CUDA {torch.version.cuda}; {used}", ""]
    table: list[tuple] = []
    failed = []
    for name, make in CASES.items():
        if options.only not in name:
            continue
        try:
            case = make(options.quick)
            rows = list(measure(name, case, options.rounds))
        except Exception as error:  # a case that fails must not cost the others their time on the GPU
            failed.append(name)
            text += [f"### {name}", "", f"FAILED: {type(error).__name__}: {str(error)[:2000]}", ""]
        else:
            table += rows
            text += report(name, case, rows)
        print(text[-2] if text[-2].startswith("FAILED") else f"done: {name}", flush=True)
        write_text(options.out / "gpu.md", "\n".join(text))
        write_csv(options.out / "gpu.csv", COLUMNS, (dict(zip(COLUMNS, (chip, *row), strict=True)) for row in table))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
