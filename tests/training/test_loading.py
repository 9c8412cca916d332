"""Loading processes, forked as by default until Python 3.13, or not, as since: Ctrl-C, a closed terminal, a kill."""

import contextlib
import fcntl
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_cli import TINY

from fastsketch.training.checkpoint import load_checkpoint
from fastsketch.training.signals import WORDS

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("method", ["fork", "forkserver"])]


class Run:
    """A long training with two loading processes in a session of its own, with or without a terminal that rules it."""

    def __init__(self, method: str, data: Path, out: Path, terminal: bool) -> None:
        start = f"import multiprocessing as m, fastsketch.cli; m.set_start_method('{method}'); fastsketch.cli.main()"
        many = shlex.split("--epochs 1000 --save-every 1 --log-every 1 --workers 2 --pictures 0")
        command = [sys.executable, "-c", start, "train", "--data", str(data), "--out", str(out), *TINY, *many]
        self.out, self.said, self.deadline = out, b"", time.monotonic() + 240
        self.terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if terminal else None,
        )
        os.close(theirs)
        os.set_blocking(self.terminal, False)

    def close(self) -> None:
        """The terminal."""
        if self.terminal >= 0:
            os.close(self.terminal)
        self.terminal = -1

    def read(self) -> None:
        """What was said since."""
        try:
            self.said += os.read(self.terminal, 1 << 16)
        except OSError:  # nothing yet, no one there any more, or closed here
            return

    def wait(self, until: Callable[[], bool]) -> None:
        while not until():
            assert time.monotonic() < self.deadline, self.said
            self.read()
            time.sleep(0.02)
        self.read()

    def wait_for_checkpoint(self) -> None:
        self.wait(lambda: (self.out / "checkpoint.pt").exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said

    def living(self) -> list[int]:
        """Processes of its session."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # no process, or one that has just ended
                continue
            if int(session) == self.process.pid and state != "Z":
                found.append(int(entry.name))
        return found


@pytest.fixture
def running(method, data, tmp_path, request):
    run = Run(method, data, tmp_path / "a run", terminal=getattr(request, "param", True))
    yield run
    for process in run.living():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    run.process.wait()
    run.close()


@pytest.mark.parametrize("how", ["ctrl-c", "closed"])
def test_a_terminal(running, how):
    """Ctrl-C in one is told once, whatever loading processes get; one that is closed stops the run, saved."""
    running.wait_for_checkpoint()
    if how == "closed":
        running.close()
    else:
        os.write(running.terminal, b"\x03")
    running.wait(lambda: running.process.poll() is not None)
    step = load_checkpoint(running.out / "checkpoint.pt", torch.device("cpu"))["step"]
    assert step and (running.out / "losses.csv").read_text().splitlines()
    if how == "ctrl-c":
        assert running.process.returncode == 130, running.said
        assert running.said.count(WORDS.encode()) == 1, running.said
        saved = f"saved at step {step}; go on with: fastsketch train --out '{running.out}' --resume"
        assert saved in running.said.decode()
    else:
        assert (running.out / "losses.png").exists()  # which a run draws after it was stopped, and saved
    running.wait(lambda: not running.living())


def test_ctrl_c_while_loading_processes_begin(running, method):
    """They do not shield themselves yet."""
    running.wait(lambda: len(running.living()) >= (4 if method == "forkserver" else 3))
    os.write(running.terminal, b"\x03")
    running.wait(lambda: running.process.poll() is not None)
    assert running.process.returncode == 130, running.said
    assert b"stopped and saved" in running.said


@pytest.mark.parametrize("running", [False], ids=["no terminal"], indirect=True)
def test_they_end_with_a_training_that_is_killed(running):
    """A terminal would tell them."""
    running.wait_for_checkpoint()
    assert len(running.living()) >= 3
    running.process.kill()
    running.wait(lambda: not running.living())
