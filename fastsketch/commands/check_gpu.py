"""`fastsketch check-gpu`."""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from fastsketch.errors import FastsketchError


@dataclass
class CheckGpu:
    """Try the GPU kernels on this machine's GPUs, each against the reference in float64, and keep the verdict.

    What passes is used from then on, plain PyTorch takes the place of the rest. The first use of a kernel on a GPU does
    the same, unasked, once for each kind of GPU and version.
    """


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code, 1 where something failed."""
    tyro.cli(CheckGpu, args=arguments, prog="fastsketch check-gpu")
    from fastsketch import _backend
    from fastsketch.trial import verdict
    from fastsketch.trial.run import NotTried

    gpus = verdict.gpus()
    if not gpus:
        raise FastsketchError("there is no CUDA device here")
    results: list[str] = []

    def show(case: str, wrong: str) -> None:
        print(f"  {case:32} {f'FAILED: {wrong}' if wrong else 'right'}", flush=True)
        results.append(wrong)

    for name in sorted(_backend.TRIED_FIRST):
        if reason := _backend.why_not_loaded(name):
            print(f"{name}: not there ({reason})")
            continue
        for gpu, device in gpus.items():
            print(f"{name} on {gpu}", flush=True)
            try:
                verdict.hold(_backend.IMPLEMENTATIONS[name], gpu, device, show)
            except NotTried as error:
                raise FastsketchError(f"{name} could not be tried: {error}") from error
    if not results:
        raise FastsketchError("there are no GPU kernels here")
    if failed := sum(map(bool, results)):
        print(f"{failed} failed: plain PyTorch takes the place of {'that' if failed == 1 else 'those'}")
        return 1
    print("all right: these kernels are used")
    return 0
