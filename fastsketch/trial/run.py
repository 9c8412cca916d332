"""Trying kernels in processes of their own, so that one that crashes or hangs does so alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from fastsketch.trial.cases import CASES
from fastsketch.trial.child import MARK, SPOILT

LIMIT = 300.0
"""Seconds for one process. The kernels of all cases are compiled in it."""

_START = (
    "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); "  # the paths of this process, and not the working folder
    "from fastsketch.trial import child; child.main(*sys.argv[1:])"
)
_SETTINGS = ("FASTSKETCH_AUTOTUNE", "FASTSKETCH_FP32", "FASTSKETCH_CHECK")


class NotTried(Exception):
    """The trial itself could not be held, which says nothing of the kernels."""


def try_cases(module: str, device: str, names: Sequence[str] = tuple(CASES), limit: float = LIMIT) -> dict[str, str]:
    """What was wrong in each case, "" for nothing.

    Args:
        module: name of an implementation's module.
        device: where its kernels run, as torch names it.
        names: of `CASES`, in the order they are tried.
        limit: seconds for one process; the case it is at then has failed.

    Raises:
        NotTried: no process got as far as a case, or the device had no memory left.
    """
    found: dict[str, str] = {}
    while left := [name for name in names if name not in found]:
        done, ending = _one_process(module, device, left, limit)
        found |= done
        if ending and len(done) < len(left):
            found[left[len(done)]] = ending
    return found


def _one_process(module: str, device: str, names: list[str], limit: float) -> tuple[dict[str, str], str]:
    """Results of the cases a process got through, and what ended it in the midst of the next; "" for no such thing."""
    paths = "\n".join(path or os.getcwd() for path in sys.path)
    command = [sys.executable, "-c", _START, paths, module, device, *names]
    environment = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
        output, errors, status = ended.stdout, ended.stderr, ended.returncode
        ending = _ending(status)
    except subprocess.TimeoutExpired as error:
        output, errors, status = _text(error.stdout), _text(error.stderr), None
        ending = f"not done after {limit:g} s"
    except OSError as error:
        raise NotTried(f"{sys.executable}: {error.strerror or error}") from error
    lines = [json.loads(line.removeprefix(MARK)) for line in output.splitlines() if line.startswith(MARK)]
    got_nowhere = len(lines) == 1 and ending == ""
    if not lines or ending is None or got_nowhere:
        raise NotTried((errors.strip().splitlines() or [ending or f"exit status {status}"])[-1][:500])
    return dict(lines[1:]), ending


def _ending(status: int) -> str | None:
    """What an exit status says of the case that was not finished; None where no case is to blame."""
    if status in (0, SPOILT):
        return ""
    if status < 0:
        return f"the process was ended by {signal.Signals(-status).name}"
    return None


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
