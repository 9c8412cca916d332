"""`fastsketch info`."""

from collections.abc import Sequence

from fastsketch.errors import FastsketchError


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    from fastsketch.info import report

    if list(arguments) in (["-h"], ["--help"]):
        print("usage: fastsketch info\n\nVersions, processor, implementations, and why one is not there.")
        return 0
    if arguments:
        raise FastsketchError(f"info takes no options, got {' '.join(arguments)}")
    print(report())
    return 0
