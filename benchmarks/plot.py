"""Draw saved results: `python -m benchmarks.plot CSV FOLDER`."""

import sys
from pathlib import Path

from fastsketch.bench.plot import plot_all
from fastsketch.bench.record import read

if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    print(*plot_all(read(Path(sys.argv[1])), Path(sys.argv[2])), sep="\n")
