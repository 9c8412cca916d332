"""What every Triton kernel uses on chips that are not here: a Markdown table (docs/gpu.md), and the whole as csv.

python -m benchmarks.compile_table [--csv FILE] [--capability 90 ...] [--inputs bfloat16 ...]
Compiles some 250 launches a chip; minutes, on few cores. Needs no GPU.
"""

import argparse
import csv
import sys
from dataclasses import astuple

from fastsketch.triton import configs
from fastsketch.triton.resources import INPUTS, WIDTHS, Usage, compile_launch, shipped, usage

SHOWN = {"patch_nce": 256, "attention": 32, "gather": 256}
"""The width whose row the table shows, by module: the method's own."""

COLUMNS = ("chip", "inputs", "kernel", "width", "tile", "warps", "registers", "stack", "shared", "instructions", "dots")


def rows(capability: int, inputs: str):
    """One row of `COLUMNS` a launch, compiled."""
    seen = set()
    for width, launch in shipped(capability, inputs):
        gradient = {True: " of query", False: " of key"}.get(launch.constants.get("OF_QUERY"), "")
        few_or_many = (
            " (one pass)" if launch.name == "patch_nce.forward" and not launch.constants["NORMS_APART"] else ""
        )
        name = launch.name + gradient + few_or_many
        if (name, width) in seen:
            continue
        seen.add((name, width))
        tile = launch.tile
        used: Usage = usage(compile_launch(launch, capability))
        yield (
            f"sm_{capability}",
            inputs,
            name,
            width,
            f"{tile.rows}×{tile.columns}×{tile.depth}×{tile.out}",
            tile.warps,
            *astuple(used),
        )


def main() -> None:
    """Print the table; write the csv where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv")
    parser.add_argument("--capability", type=int, nargs="*", default=[80, 90, 100, 120])
    parser.add_argument("--inputs", nargs="*", default=list(INPUTS), choices=list(INPUTS))
    options = parser.parse_args()

    table, bad = [], 0
    for capability in options.capability:
        for inputs in options.inputs:
            for row in rows(capability, inputs):
                table.append(row)
                if row[7] > 0 or row[8] > configs.SHARED_MEMORY[capability]:
                    bad += 1
                    print("over a limit:", *row, file=sys.stderr)
            print(f"sm_{capability} {inputs}: {len(table)} launches so far, {bad} over a limit", file=sys.stderr)
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *table])
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * len(COLUMNS))
    for row in table:
        if row[3] == SHOWN[row[2].split(".")[0]]:
            print("| " + " | ".join(map(str, row)) + " |")
    print(f"\n{len(table)} launches, widths {', '.join(map(str, WIDTHS))}; {bad} with stack or too much shared memory.")
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    main()
