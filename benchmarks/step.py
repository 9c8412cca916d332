"""A whole training step against CUT's way, and where its time goes: `python -m benchmarks.step [--sizes 128 256] …`."""

import sys

from benchmarks import run

if __name__ == "__main__":
    sys.argv[1:1] = ["step"]
    run.main()
