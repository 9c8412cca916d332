"""Trying kernels in processes of their own, so that one that crashes or hangs does so alone."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from fastsketch.trial.cases import CASES
from fastsketch.trial.child import MARK, SPOILT

LIMIT = 200.0
"""Seconds for one process. The kernels of all cases are compiled in it, if Triton has not kept them."""

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
"""What a kernel can do to its process; any other signal came from somebody."""

_START = (
    "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); "  # the paths of this process, and not the working folder
    "from fastsketch.trial import child; child.main(*sys.argv[1:])"
)
_UNSET = ("FASTSKETCH_AUTOTUNE", "FASTSKETCH_CHECK", "TRITON_INTERPRET")
_SET = {"FASTSKETCH_FP32": "tf32x3"}  # whatever torch was told of tf32: the kernels' own default is tried

Show = Callable[[str, str], None]


class NotTried(Exception):
    """The trial itself could not be held, which says nothing of the kernels."""


@dataclass
class _Process:
    """What a process found out, and how it ended."""

    found: dict[str, str] = field(default_factory=dict)
    began: bool = False
    device: str = ""
    errors: str = ""
    status: int = 0
    timed_out: bool = False


def try_cases(
    module: str,
    device: str,
    names: Sequence[str] = tuple(CASES),
    limit: float = LIMIT,
    show: Show = lambda name, wrong: None,
) -> dict[str, str]:
    """What was wrong in each case, "" for nothing.

    Args:
        module: name of an implementation's module; or of one with a `check_case(name, device)` of its own.
        device: where its kernels run, as torch names it.
        names: of `CASES` (or of the module's own cases), in the order they are tried.
        limit: seconds for one process. One that gets nowhere in them has failed at its first case; after two of these
            the rest is not tried.
        show: called with each result as it comes.

    Raises:
        NotTried: no process got as far as a case, or it was ended from outside, or the device had no memory left.
    """
    found: dict[str, str] = {}
    hung = 0

    def add(name: str, wrong: str) -> None:
        found[name] = wrong
        show(name, wrong)

    while left := [name for name in names if name not in found]:
        ended = _run(module, device, left, limit, add)
        if not (left := [name for name in left if name not in found]):
            break
        if ended.timed_out and not ended.found:
            hung += 1
            add(left[0], f"not done after {limit:g} s")
            if hung == 2:
                for name in left[1:]:
                    add(name, "not tried, after two that did not end")
        elif not ended.timed_out and ended.status != SPOILT:
            add(left[0], f"the process was ended by {signal.Signals(-ended.status).name}")
    return found


def _run(module: str, device: str, names: list[str], limit: float, add: Show) -> _Process:
    """One process.

    Raises:
        NotTried: it did not begin, or ended for no fault of a kernel.
    """
    try:
        process = _communicate(_command(module, device, names), limit, add)
    except (OSError, TypeError, ValueError) as error:
        raise NotTried(f"{type(error).__name__}: {error}") from error
    if process.began and device.startswith("cuda") and process.device != torch.cuda.get_device_name(device):
        raise NotTried(f"a new process has another GPU at {device}: {process.device}")
    crashed = process.status < 0 and -process.status in CRASHES
    if process.began and (process.timed_out or crashed or process.status in (0, SPOILT)):
        return process
    said = process.errors.strip().splitlines()
    if process.timed_out:
        said = [f"not begun after {limit:g} s"]
    elif process.status < 0:
        said = [f"the process was ended by {signal.Signals(-process.status).name}"]
    raise NotTried(said[-1][:500] if said else f"exit status {process.status}")


def _command(module: str, device: str, names: list[str]) -> list[str]:
    if not sys.executable or getattr(sys, "frozen", False):
        raise NotTried("this program cannot start a Python of its own")
    paths = "\n".join(str(path) or os.getcwd() for path in sys.path)
    return [sys.executable, "-c", _START, paths, module, device, *names]


def _communicate(command: list[str], limit: float, add: Show) -> _Process:
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET} | _SET
    ended = _Process()
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        # A session of its own: Ctrl-C is for the process that asked.
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as process,
    ):
        timer = threading.Timer(limit, process.kill)
        timer.start()
        try:
            for line in process.stdout:
                if not line.startswith(MARK):
                    continue
                name, said = json.loads(line.removeprefix(MARK))
                if name:
                    ended.found[name] = said
                    add(name, said)
                else:
                    ended.began, ended.device = True, said
            ended.status = process.wait()
        finally:
            ended.timed_out = timer.finished.is_set() and process.poll() == -signal.SIGKILL
            timer.cancel()
            process.kill()
        errors.seek(0)
        ended.errors = errors.read()
    return ended
