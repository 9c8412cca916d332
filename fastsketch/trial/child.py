"""The process that tries kernels. It prints a line when the device is there, and one after each case: MARK, and in JSON
the case's name and what was wrong, "" for nothing.

What goes wrong in CUDA itself spoils everything after it in a process: then this one ends, and the next goes on.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence

import torch

from fastsketch.trial.cases import CASES

MARK = "fastsketch-trial "

SPOILT, NO_MEMORY = 3, 4
"""Exit status after an error that later cases would meet again, and where there is no memory to try anything."""


def _say(name: str, wrong: str) -> None:
    print(MARK + json.dumps([name, wrong]), flush=True)


def _in_one_line(error: BaseException) -> str:
    return " ".join("".join(traceback.format_exception_only(error)).split())[:500]


def try_here(module_name: str, device_name: str, names: Sequence[str]) -> int:
    """Try the cases of these names; the exit status."""
    device = torch.device(device_name)
    torch.zeros(1, device=device).item()
    module = importlib.import_module(module_name)
    _say("", "")
    for name in names:
        wrong, status = "", 0
        try:
            CASES[name].check(module, device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except AssertionError as error:
            wrong = str(error) or "AssertionError"
        except torch.OutOfMemoryError as error:
            print(_in_one_line(error), file=sys.stderr)
            return NO_MEMORY
        except Exception as error:
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
