"""`fastsketch bench`, whose options are in `fastsketch.bench.command`."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    from fastsketch.bench.threads import start_bound

    start_bound(["bench"], arguments)
    from fastsketch.bench.command import bench

    return bench(arguments)
