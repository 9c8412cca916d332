"""What passed its trial on this machine's GPU, kernels above all: asked for at the first use, kept in the user's cache.

A trial is held again when the GPU, torch, Triton, CUDA or what it tries are others. FASTSKETCH_GPU_CHECK=0 holds none,
and uses the kernels untried.
"""

import contextlib
import hashlib
import importlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from fastsketch.errors import FastsketchError
from fastsketch.files import write_text
from fastsketch.trial.cases import CASES
from fastsketch.trial.run import Show, try_cases

logger = logging.getLogger("fastsketch")

_PACKAGE = Path(__file__).parents[1]
_lock = threading.Lock()


@dataclass(frozen=True)
class Subject:
    """What is tried.

    Attributes:
        module: as `fastsketch.trial.run.try_cases` takes it.
        cases: names of its cases.
        what: it is, for the log.
        instead: what follows for what failed, or could not be tried.
        sources: patterns of the package's files that a verdict depends on.
    """

    module: str
    cases: tuple[str, ...]
    what: str
    instead: str
    sources: tuple[str, ...]


def kernels_of(module: str) -> Subject:
    """The kernels of an implementation's module, with all cases whose kernels it has."""
    there = importlib.import_module(module)
    return Subject(
        module,
        tuple(name for name, case in CASES.items() if all(hasattr(there, kernel) for kernel in case.kernels)),
        what=f"the kernels of {module}",
        instead="plain PyTorch takes its place",
        sources=("triton/*.py", "reference/*.py", "trial/*.py", "cuda.py", "_C.so", "_C_cuda.so"),
    )


def is_asked_for() -> bool:
    """Whether trials are held."""
    return os.environ.get("FASTSKETCH_GPU_CHECK") != "0"


def why_not(module: str, kernel: str, index: int | None = None) -> str:
    """Why a kernel is not to be used on a GPU of this machine; empty if it passed there.

    The first question holds the trial, while other processes that ask wait for it.

    Args:
        module: name of an implementation's module.
        kernel: one of its kernels.
        index: of the GPU; None: the current one.
    """
    if not is_asked_for():
        return ""
    return what_failed(kernels_of(module), [name for name, case in CASES.items() if kernel in case.kernels], index)


def what_failed(subject: Subject, cases: Sequence[str], index: int | None = None) -> str:
    """What went wrong in the last of these cases that failed, or why they were not tried; empty if all passed.

    Args:
        subject: what is tried, all of it, at the first question.
        cases: those that matter.
        index: of the GPU; None: the current one.
    """
    if not torch.cuda.is_available():
        return "there is no CUDA device to check it on"
    gpu, device = gpu_at(torch.cuda.current_device() if index is None else index)
    with _lock:
        results, reason = _verdict(subject, gpu, device)
    for name in cases:
        if wrong := results.get(name):
            reason = f"failed its check on {gpu} ({name}: {wrong})"
    return reason


def forget() -> None:
    """Ask the cache again."""
    _verdict.cache_clear()


def hold(subject: Subject, gpu: str, device: str, show: Show = lambda name, wrong: None) -> dict[str, str]:
    """Hold the trial whatever is known, and keep what comes out: what was wrong in each case, "" for nothing.

    Args:
        subject: what is tried.
        gpu: kind of GPU, as `gpu_at` names it.
        device: one of that kind.
        show: called with each result as it comes.

    Raises:
        NotTried: it could not be held.
    """
    results = try_cases(subject.module, device, subject.cases, show=show)
    with contextlib.suppress(FastsketchError):  # a cache that cannot be written: the next process tries again
        kept = json.dumps(_facts(subject, gpu) | {"results": results}, indent=2) + "\n"
        write_text(kept_in(subject, gpu), kept)
    return results


def kept_in(subject: Subject, gpu: str) -> Path:
    """The file that has the verdict on a subject, as it is now, on a GPU of this kind."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(json.dumps([subject.module, subject.cases, _facts(subject, gpu)]).encode()).hexdigest()[:16]
    return Path(cache) / "fastsketch" / f"gpu-kernels-{name}.json"


def gpu_at(index: int) -> tuple[str, str]:
    """The kind of a GPU, and its name as a device."""
    facts = torch.cuda.get_device_properties(index)
    return f"{facts.name} (sm_{facts.major}{facts.minor})", f"cuda:{index}"


def gpus() -> dict[str, str]:
    """Each kind of GPU of this machine, and the first device of that kind."""
    return dict(reversed([gpu_at(index) for index in range(torch.cuda.device_count())]))


@cache
def _verdict(subject: Subject, gpu: str, device: str) -> tuple[dict[str, str], str]:
    """Results of the trial and, where there are none, why; from the file where there is one."""
    path = kept_in(subject, gpu)
    with _others_wait(path):
        if (results := _read(path, subject.cases)) is not None:
            return results, ""
        logger.warning("fastsketch: checking %s on %s, once (kept in %s)", subject.what, gpu, path)
        try:
            results = hold(subject, gpu, device)
        except Exception as error:  # NotTried, or what nobody foresaw: there is something to go on with
            logger.warning("fastsketch: it could not be checked (%s): %s", error, subject.instead)
            return {}, f"could not be checked on {gpu}: {error}"
    if failed := [f"{name} ({wrong[:160]})" for name, wrong in results.items() if wrong]:
        logger.warning("fastsketch: what failed: %s: %s", "; ".join(failed), subject.instead)
    return results, ""


def _read(path: Path, cases: Sequence[str]) -> dict[str, str] | None:
    """The verdict that a file has; None where there is no such file, or not a whole one."""
    try:
        results = json.loads(path.read_text())["results"]
        return {name: str(results[name]) for name in cases}
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _others_wait(path: Path) -> Iterator[None]:
    """Other processes that would hold the same trial wait, where the system and the folder allow it."""
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.with_suffix(".lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
            stack.callback(fcntl.flock, file, fcntl.LOCK_UN)  # a process forked meanwhile holds the file open
        except (ImportError, OSError):
            pass
        yield


def _facts(subject: Subject, gpu: str) -> dict[str, str]:
    """All that a verdict depends on."""
    versions = {"torch": torch.__version__, "cuda": str(torch.version.cuda), **_triton()}
    return {"gpu": gpu, **versions, "sources": _digest(subject.sources)}


def _triton() -> dict[str, str]:
    try:
        return {"triton": importlib.import_module("triton").__version__}
    except ImportError:
        return {}


@cache
def _digest(patterns: tuple[str, ...]) -> str:
    """Of the package's files that match."""
    files = sorted({path for pattern in patterns for path in _PACKAGE.glob(pattern)})
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()
