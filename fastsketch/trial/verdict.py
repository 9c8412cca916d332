"""Which GPU kernels passed their trial on this machine: asked for at their first use, kept in the user's cache.

A trial is held again when the GPU, torch, Triton, CUDA or the kernels themselves are others. FASTSKETCH_GPU_CHECK=0
uses the kernels untried.
"""

import contextlib
import hashlib
import importlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from fastsketch.errors import FastsketchError
from fastsketch.training.files import write_bytes
from fastsketch.trial.cases import CASES
from fastsketch.trial.run import Show, try_cases

logger = logging.getLogger("fastsketch")

_PACKAGE = Path(__file__).parents[1]
_SOURCES = ("triton/*.py", "reference/*.py", "trial/*.py", "cuda.py", "_C.so", "_C_cuda.so")
_lock = threading.Lock()


def why_not(module: str, kernel: str, index: int | None = None) -> str:
    """Why a kernel is not to be used on a GPU of this machine; empty if it passed there.

    The first question holds the trial, while other processes that ask wait for it.

    Args:
        module: name of an implementation's module.
        kernel: one of its kernels.
        index: of the GPU; None: the current one.
    """
    if os.environ.get("FASTSKETCH_GPU_CHECK") == "0":
        return ""
    if not torch.cuda.is_available():
        return "there is no CUDA device to check it on"
    gpu, device = gpu_at(torch.cuda.current_device() if index is None else index)
    with _lock:
        results, reason = _verdict(module, gpu, device)
    for name, wrong in results.items():
        if wrong and kernel in CASES[name].kernels:
            reason = f"failed its check on {gpu} ({name}: {wrong})"
    return reason


def forget() -> None:
    """Ask the cache again."""
    _verdict.cache_clear()


def hold(module: str, gpu: str, device: str, show: Show = lambda name, wrong: None) -> dict[str, str]:
    """Hold the trial whatever is known, and keep what comes out: what was wrong in each case, "" for nothing.

    Args:
        module: name of an implementation's module.
        gpu: kind of GPU, as `gpu_at` names it.
        device: one of that kind.
        show: called with each result as it comes.

    Raises:
        NotTried: it could not be held.
    """
    results = try_cases(module, device, cases_of(module), show=show)
    with contextlib.suppress(FastsketchError):  # a cache that cannot be written: the next process tries again
        write_bytes(kept_in(module, gpu), (json.dumps(_facts(gpu) | {"results": results}, indent=2) + "\n").encode())
    return results


def kept_in(module: str, gpu: str) -> Path:
    """The file that has the verdict on a module's kernels, as they are now, on a GPU of this kind."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(json.dumps([module, _facts(gpu)]).encode()).hexdigest()[:16]
    return Path(cache) / "fastsketch" / f"gpu-kernels-{name}.json"


def cases_of(module: str) -> list[str]:
    """The cases whose kernels a module has."""
    there = importlib.import_module(module)
    return [name for name, case in CASES.items() if all(hasattr(there, kernel) for kernel in case.kernels)]


def gpu_at(index: int) -> tuple[str, str]:
    """The kind of a GPU, and its name as a device."""
    facts = torch.cuda.get_device_properties(index)
    return f"{facts.name} (sm_{facts.major}{facts.minor})", f"cuda:{index}"


def gpus() -> dict[str, str]:
    """Each kind of GPU of this machine, and the first device of that kind."""
    return dict(reversed([gpu_at(index) for index in range(torch.cuda.device_count())]))


@cache
def _verdict(module: str, gpu: str, device: str) -> tuple[dict[str, str], str]:
    """Results of the trial and, where there are none, why; from the file where there is one."""
    path = kept_in(module, gpu)
    with _others_wait(path):
        if (results := _read(path, cases_of(module))) is not None:
            return results, ""
        logger.warning("fastsketch: checking the kernels of %s on %s, once (kept in %s)", module, gpu, path)
        try:
            results = hold(module, gpu, device)
        except Exception as error:  # NotTried, or what nobody foresaw: the operator has the reference to go on with
            logger.warning("fastsketch: they could not be checked (%s): plain PyTorch takes their place", error)
            return {}, f"could not be checked on {gpu}: {error}"
    if failed := [name for name, wrong in results.items() if wrong]:
        logger.warning(
            "fastsketch: plain PyTorch takes the place of what failed: %s; fastsketch check-gpu shows how",
            "; ".join(failed),
        )
    return results, ""


def _read(path: Path, cases: list[str]) -> dict[str, str] | None:
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


def _facts(gpu: str) -> dict[str, str]:
    """All that a verdict depends on."""
    return {"gpu": gpu, "torch": torch.__version__, "cuda": str(torch.version.cuda), "kernels": _digest(), **_triton()}


def _triton() -> dict[str, str]:
    try:
        return {"triton": importlib.import_module("triton").__version__}
    except ImportError:
        return {}


@cache
def _digest() -> str:
    """Of the kernels, and of what they are compared with."""
    files = sorted(path for pattern in _SOURCES for path in _PACKAGE.glob(pattern))
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()
