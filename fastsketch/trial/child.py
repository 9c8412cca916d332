"""The process that tries kernels, or steps.

It prints a line when all but the kernels is seen to work, and one after each case: MARK, and in JSON the case's name
and what was wrong, "" for nothing.

What goes wrong in CUDA itself spoils everything after it in a process: then this one ends, and the next goes on.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial

import torch

from fastsketch.trial import cases

MARK = "fastsketch-trial "

SPOILT, NO_MEMORY = 3, 4
"""Exit status after an error that later cases would meet again, and where there is no memory to try anything."""


def _say(name: str, wrong: str) -> None:
    print(MARK + json.dumps([name, wrong]), flush=True)


def _in_one_line(error: BaseException) -> str:
    return " ".join("".join(traceback.format_exception_only(error)).split())[:500]


def _is_lack_of_memory(error: BaseException) -> bool:
    signs = "out of memory", "ALLOC_FAILED"
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def _begin(device: torch.device, with_triton: bool) -> None:
    """Do what a trial needs beside the kernels: what fails here (no compiler for Triton, say) is not their fault."""
    x = torch.ones(16, 16, dtype=torch.float64, device=device)
    (x @ x).sum().item()
    if with_triton:
        from fastsketch.trial.smallest import check

        check(device)


def try_here(module_name: str, device_name: str, names: Sequence[str]) -> int:
    """Try the cases of these names; the exit status."""
    device = torch.device(device_name)
    on_gpu = device.type == "cuda"
    module = importlib.import_module(module_name)
    check = getattr(module, "check_case", partial(cases.check_case, module))
    _begin(device, on_gpu and module_name.endswith(".triton"))
    _say("", torch.cuda.get_device_name(device) if on_gpu else "")
    for name in names:
        wrong, status = "", 0
        try:
            check(name, device)
            if on_gpu:
                torch.cuda.synchronize(device)
        except AssertionError as error:
            wrong = str(error) or "AssertionError"
        except Exception as error:
            if _is_lack_of_memory(error):
                print(_in_one_line(error), file=sys.stderr)
                return NO_MEMORY
            wrong, status = _in_one_line(error), SPOILT
        _say(name, wrong)
        if status:
            return status
    return 0


def main(module_name: str, device_name: str, *names: str) -> None:
    """Try the cases and end the process at once: a spoilt CUDA context would only complain while it is taken down."""
    status = try_here(module_name, device_name, names)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
