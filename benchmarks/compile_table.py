"""What every Triton kernel uses on chips that are not here: benchmarks/results/compile.csv and docs/gpu-resources.md.

python -m benchmarks.compile_table [--processes N]
Compiles every kernel with every tile for four chips, some minutes on two cores; needs no GPU. The tests compile all of
it again, and hold the csv against what they find.
"""

import argparse
import sys
from pathlib import Path

import triton

from benchmarks.compiled.shipped import CHIPS, COLUMNS, INPUTS, measure, row
from fastsketch.files import write_csv, write_text
from fastsketch.triton import configs

ROOT = Path(__file__).parents[1]
CSV = ROOT / "benchmarks" / "results" / "compile.csv"
PAGE = ROOT / "docs" / "gpu-resources.md"

HEAD = """# What the Triton kernels use of a chip

Every kernel with every tile that the package can choose (`fastsketch/triton/configs.py`), compiled by Triton {version}
for four chips; read from the machine code. Stack and spills are 0 throughout. All of it is in
[compile.csv](../benchmarks/results/compile.csv). `python -m benchmarks.compile_table` makes both, and
`tests/compile/test_triton_compile.py` compiles everything again in every test run.

No timing stands behind these tiles yet: they are what fits.

- **tile**: rows of a program × rows of the other side at a time × depth of a dot × columns of a gradient; R: a dot
  takes whole rows, and the program keeps its own.
- **registers** a thread (255 at most), **shared** memory of a program in bytes, **instructions** of the
  machine code, **dots**: the tensor-core instructions in it.
- A program may use at most this many bytes of shared memory: {limits}.

"""
SHOWN = ("chip", "kernel", "tile", "warps", "registers", "shared", "instructions", "dots")
ELSEWHERE = ("patch_nce.inverse_norms", "gather.", "placing.", "norm.", "stencils.", "features.")
"""Kernels without dots: shown once, of float32."""


def page(rows: list[dict[str, str]], version: str) -> str:
    """docs/gpu-resources.md from the rows of the csv."""
    limits = ", ".join(f"sm_{chip} {configs.SHARED_MEMORY[chip]:,}" for chip in CHIPS)
    text = [HEAD.format(version=version, limits=limits)]
    for inputs in (*INPUTS, "no dots"):
        plain = inputs == "no dots"
        some = [
            r
            for r in rows
            if r["inputs"] == ("float32" if plain else inputs) and r["kernel"].startswith(ELSEWHERE) == plain
        ]
        title = "Kernels without dots (float32)" if plain else inputs
        shown = (*SHOWN[:2], "layers", *SHOWN[2:]) if plain else SHOWN
        text += [f"## {title}\n\n| {' | '.join(shown)} |\n|{' --- |' * len(shown)}\n"]
        text += [f"| {' | '.join(r[c] for c in shown)} |\n" for r in some]
        text += ["\n"]
    return "".join(text).rstrip() + "\n"


def main() -> None:
    """Compile everything, and write both files if all of it is within the limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int)
    options = parser.parse_args()
    rows, bad = [], 0
    with measure(options.processes) as ask:
        for capability in CHIPS:
            for inputs in INPUTS:
                for launch, used in ask(capability, inputs):
                    rows.append(row(capability, inputs, launch, used))
                    if used.stack or used.shared > configs.SHARED_MEMORY[capability]:
                        bad += 1
                        print("over a limit:", *rows[-1].values(), file=sys.stderr)
                print(f"sm_{capability} {inputs}: {len(rows)} so far", file=sys.stderr, flush=True)
    if bad:
        raise SystemExit(f"{bad} over a limit; nothing written")
    write_csv(CSV, COLUMNS, rows)
    write_text(PAGE, page(rows, triton.__version__))
    print(f"{len(rows)} kernels in {CSV.name} and {PAGE.name}")


if __name__ == "__main__":
    main()
