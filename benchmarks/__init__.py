"""Speed and memory of the operators against CUT's data path: `python -m benchmarks.run --help`."""
