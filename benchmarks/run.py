"""Measure, print a table, and keep the raw numbers: `python -m benchmarks.run [--only TEXT] [--rounds N] [--save]`.

All contenders of a case run in one process, on the same inputs, in turns: a round times each once, so that a slow
spell of the machine meets all of them. Printed are the 20th, 50th and 80th percentile; the ratio is that of medians.
"""

import argparse
import csv
import datetime
import gc
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import fastsketch
from benchmarks import cases

RESULTS = Path(__file__).parent / "results"


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


def time_case(case: cases.Case, rounds: int, least_seconds: float) -> dict[str, list[float]]:
    """Seconds of each contender, a list over rounds; more rounds where they are short."""
    case.check()
    times: dict[str, list[float]] = {name: [] for name in case.contenders}
    warm_up = 3
    gc.collect()
    gc.disable()
    started, number = time.perf_counter(), 0
    while number < rounds + warm_up or (time.perf_counter() - started < least_seconds and number < 20 * rounds):
        for name, contender in case.contenders.items():
            prepared = contender.prepare()
            start = time.perf_counter()
            contender.run(prepared)
            seconds = time.perf_counter() - start
            if number >= warm_up:
                times[name].append(seconds)
        number += 1
    gc.enable()
    return times


def verdict(ratio: float, bar: cases.Bar) -> str:
    return "reached" if ratio >= bar.ratio else "NOT REACHED"


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    if not facts.get("model name"):
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def facts(threads: int) -> dict[str, str]:
    try:
        from fastsketch import cpp

        kernels = f"cpp {cpp.facts()['in use']}, {cpp.facts()['compiler']}"
    except ImportError as error:
        kernels = f"reference ({error})"
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit,
        "fastsketch": fastsketch.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "threads": str(threads),
        "kernels": kernels,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=5.0, help="least time for a case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help=f"write csv files to {RESULTS.name}/")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    about = facts(arguments.threads)
    print("  ".join(f"{key}: {value}" for key, value in about.items()))

    raw, summary = [], []
    for name, make in cases.CASES.items():
        if arguments.only not in name:
            continue
        torch.compiler.reset()
        case = make()
        times = time_case(case, arguments.rounds, arguments.seconds)
        median = {contender: statistics.median(values) for contender, values in times.items()}
        for contender, values in times.items():
            low, high = percentile(values, 0.2), percentile(values, 0.8)
            print(
                f"{name:30} {contender:13} {low * 1e3:9.3f} {median[contender] * 1e3:9.3f} {high * 1e3:9.3f} ms",
                flush=True,
            )
            raw += [(name, contender, number, f"{value * 1e3:.4f}") for number, value in enumerate(values)]
        for bar in case.bars:
            ratio = median[bar.other] / median[bar.ours]
            summary.append((name, "time", bar.other, f"{ratio:.2f}", f"{bar.ratio:g}", verdict(ratio, bar)))
        del case
    for name, (_, bar) in cases.MEMORY_CASES.items():
        if arguments.only not in name:
            continue
        peaks = {}
        for contender in (bar.ours, bar.other):
            command = [sys.executable, "-m", "benchmarks.memory", name, contender, str(arguments.threads)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            peaks[contender] = int(output)
            print(f"{name:30} {contender:13} {peaks[contender] / 2**20:9.1f} MiB above the inputs at peak")
            raw.append((name, contender, "peak MiB", f"{peaks[contender] / 2**20:.2f}"))
        ratio = peaks[bar.other] / max(peaks[bar.ours], 1)
        summary.append((name, "memory", bar.other, f"{ratio:.1f}", f"{bar.ratio:g}", verdict(ratio, bar)))

    print()
    for row in summary:
        print(f"{row[0]:30} {row[1]:7} against {row[2]:13} {row[3]:>8}x  bar {row[4]:>4}x  {row[5]}")
    if arguments.save:
        save(about, raw, summary)


def save(about: dict[str, str], raw: list[tuple], summary: list[tuple]) -> None:
    """Raw numbers and ratios as csv, the facts in comment lines above; named by processor and date."""
    RESULTS.mkdir(exist_ok=True)
    plain = "".join(c if c.isalnum() else "-" for c in about["cpu"].lower()).strip("-")
    stem = "-".join(part for part in plain.split("-") if part)
    for kind, header, rows in (
        ("raw", ("case", "contender", "round", "ms"), raw),
        ("ratios", ("case", "what", "against", "ratio", "bar", "verdict"), summary),
    ):
        target = RESULTS / f"cpu-{stem}-{kind}.csv"
        temporary = target.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            file.writelines(f"# {key}: {value}\n" for key, value in about.items())
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        temporary.replace(target)
        print(f"wrote {target.relative_to(Path.cwd())}" if target.is_relative_to(Path.cwd()) else f"wrote {target}")


if __name__ == "__main__":
    main()
