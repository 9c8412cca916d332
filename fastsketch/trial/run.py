"""Trying kernels in processes of their own, so that one that crashes or hangs does so alone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import torch

from fastsketch.trial.cases import CASES
from fastsketch.trial.child import MARK, SPOILT

LIMIT = 200.0
"""Seconds for one process. The kernels of its cases are compiled in it, if Triton has not kept them."""

MOST_PROCESSES = 7
"""Side by side on a GPU: nearly all of a trial's time is one core's, which compiles. No divisor of the number of kinds
of cases, so that the dearest kind, which comes once a dtype, is not left to one process."""

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
    processes: int | None = None,
) -> dict[str, str]:
    """What was wrong in each case, "" for nothing.

    Args:
        module: name of an implementation's module; or of one with a `check_case(name, device)` of its own.
        device: where its kernels run, as torch names it.
        names: of `CASES` (or of the module's own cases). A process tries its share in this order.
        limit: seconds for one process. One that gets nowhere in them has failed at its first case; after two of these
            the rest of its share is not tried.
        show: called with each result as it comes.
        processes: so many side by side; what they could not begin is tried in one. None: on a GPU half as many as there
            are cores, at most `MOST_PROCESSES`; else one.

    Raises:
        NotTried: no process got as far as a case, or it was ended from outside, or the device had no memory left.
    """
    count = min(_processes(device) if processes is None else processes, max(1, len(names) // 3))
    trial = _Trial(module, device, limit, show)
    if count > 1:
        with ThreadPoolExecutor(count) as pool:
            shares = [pool.submit(trial.hold, names[n::count]) for n in range(count)]
            try:
                wait(shares)
            except BaseException:  # Ctrl-C, which children do not see
                trial.end()
                raise
        for share in shares:
            if (error := share.exception()) is not None and not isinstance(error, NotTried):
                raise error
    trial.hold([name for name in names if name not in trial.found])
    return {name: trial.found[name] for name in names}


def _processes(device: str) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_PROCESSES, cores // 2)) if device.startswith("cuda") else 1


class _Trial:
    """What was found out so far, and the processes that are at it; `hold` may run in several threads."""

    def __init__(self, module: str, device: str, limit: float, show: Show) -> None:
        self.module, self.device, self.limit, self.show = module, device, limit, show
        self.found: dict[str, str] = {}
        self.running: set[subprocess.Popen] = set()
        self.ended = False
        self._lock = threading.Lock()

    def add(self, name: str, wrong: str) -> None:
        with self._lock:
            self.found[name] = wrong
            self.show(name, wrong)

    def end(self) -> None:
        """End the processes, and begin no other."""
        with self._lock:
            self.ended = True
            for process in self.running:
                process.kill()

    @contextlib.contextmanager
    def runs(self, process: subprocess.Popen) -> Iterator[None]:
        """Inside the block `end` ends this one."""
        with self._lock:
            self.running.add(process)
            if self.ended:
                process.kill()
        try:
            yield
        finally:
            with self._lock:
                self.running.remove(process)

    def hold(self, names: Sequence[str]) -> None:
        """Try these, in as many processes as it takes, one after the other."""
        hung = 0
        while left := [name for name in names if name not in self.found]:
            ended = _run(self, left)
            if not (left := [name for name in left if name not in self.found]):
                break
            if ended.timed_out and not ended.found:
                hung += 1
                self.add(left[0], f"not done after {self.limit:g} s")
                if hung == 2:
                    for name in left[1:]:
                        self.add(name, "not tried, after two that did not end")
            elif not ended.timed_out and ended.status != SPOILT:
                self.add(left[0], f"the process was ended by {signal.Signals(-ended.status).name}")


def _run(trial: _Trial, names: list[str]) -> _Process:
    """One process.

    Raises:
        NotTried: it did not begin, or ended for no fault of a kernel.
    """
    try:
        process = _communicate(_command(trial.module, trial.device, names), trial)
    except (OSError, TypeError, ValueError) as error:
        raise NotTried(f"{type(error).__name__}: {error}") from error
    device = trial.device
    if process.began and device.startswith("cuda") and process.device != torch.cuda.get_device_name(device):
        raise NotTried(f"a new process has another GPU at {device}: {process.device}")
    crashed = process.status < 0 and -process.status in CRASHES
    if process.began and (process.timed_out or crashed or process.status in (0, SPOILT)):
        return process
    said = process.errors.strip().splitlines()
    if process.timed_out:
        said = [f"not begun after {trial.limit:g} s"]
    elif process.status < 0:
        said = [f"the process was ended by {signal.Signals(-process.status).name}"]
    raise NotTried(said[-1][:500] if said else f"exit status {process.status}")


def _command(module: str, device: str, names: list[str]) -> list[str]:
    if not sys.executable or getattr(sys, "frozen", False):
        raise NotTried("this program cannot start a Python of its own")
    paths = "\n".join(str(path) or os.getcwd() for path in sys.path)
    return [sys.executable, "-c", _START, paths, module, device, *names]


def _communicate(command: list[str], trial: _Trial) -> _Process:
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET} | _SET
    ended = _Process()
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        # A session of its own: Ctrl-C is for the process that asked.
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as process,
        trial.runs(process),
    ):
        timer = threading.Timer(trial.limit, process.kill)
        timer.start()
        try:
            for line in process.stdout:
                if not line.startswith(MARK):
                    continue
                name, said = json.loads(line.removeprefix(MARK))
                if name:
                    ended.found[name] = said
                    trial.add(name, said)
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
