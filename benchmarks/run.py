"""`fastsketch bench` from a checkout, saved by default: `python -m benchmarks.run [operators] [scaling] [step] …`.

Results go to benchmarks/results/, a csv file for each kind of machine; `--help` shows all options, `--save OTHER`
another folder.
"""

import sys
from pathlib import Path

from fastsketch.bench.command import bench
from fastsketch.bench.threads import start_bound
from fastsketch.errors import FastsketchError

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    start_bound([], sys.argv[1:])
    try:
        code = bench(sys.argv[1:], prog="python -m benchmarks.run", save=RESULTS)
    except FastsketchError as error:
        raise SystemExit(f"error: {error}") from error
    raise SystemExit(code)


if __name__ == "__main__":
    main()
