"""`fastsketch check-gpu`."""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from fastsketch.errors import FastsketchError


@dataclass
class CheckGpu:
    """Try the GPU kernels on this machine's GPUs, each against the reference in float64, and training steps captured
    in a CUDA graph against plain ones; and keep the verdict.

    What passes is used from then on, plain PyTorch takes the place of the rest. The first use of a kernel on a GPU does
    the same, unasked, once for each kind of GPU and version; so does the first training run with its settings.
    """


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code, 1 where something failed."""
    tyro.cli(CheckGpu, args=arguments, prog="fastsketch check-gpu")
    from fastsketch import _backend
    from fastsketch.trial import captured, verdict
    from fastsketch.trial.run import NotTried

    gpus = verdict.gpus()
    if not gpus:
        raise FastsketchError("there is no CUDA device here")
    results: list[str] = []

    def show(case: str, wrong: str) -> None:
        print(f"  {case:32} {f'FAILED: {wrong}' if wrong else 'right'}", flush=True)
        results.append(wrong)

    def hold(what: str, subject: verdict.Subject, gpu: str, label: str = "") -> None:
        try:
            verdict.hold(subject, gpu, gpus[gpu], lambda case, wrong: show(label or case, wrong))
        except NotTried as error:
            raise FastsketchError(f"{what} could not be tried: {error}") from error

    for name in sorted(_backend.TRIED_FIRST):
        if reason := _backend.why_not_loaded(name):
            print(f"{name}: not there ({reason})")
            continue
        for gpu in gpus:
            print(f"{name} on {gpu}", flush=True)
            hold(name, verdict.kernels_of(_backend.IMPLEMENTATIONS[name]), gpu)
    if not results:
        raise FastsketchError("there are no GPU kernels here")
    _backend.forget()  # what was chosen before
    verdict.forget()
    for gpu, device in gpus.items():
        print(f"training steps in a CUDA graph on {gpu}", flush=True)
        for preset in ("fsscl", "cut"):
            hold("captured steps", captured.subject_of_preset(preset, device), gpu, preset)
    if failed := sum(map(bool, results)):
        print(f"{failed} failed: plain PyTorch takes the place of a kernel, a plain step that of a captured one")
        return 1
    print("all right: these kernels are used, and training steps are captured")
    return 0
