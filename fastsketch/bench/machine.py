"""What a row of results says of the machine and the code."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

import fastsketch


def processor() -> str:
    """The processor's name, family and model where the system tells them, else its architecture."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    if not facts.get("model name"):
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def _commit() -> str:
    """The commit of a checkout, with -dirty where files were changed; nothing for an installed package."""
    folder = Path(fastsketch.__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def allocator() -> str:
    """What stands in for the C library's allocator by LD_PRELOAD: jemalloc, say, as its file is called; or nothing."""
    names = [Path(word).name for word in os.environ.get("LD_PRELOAD", "").replace(":", " ").split()]
    return next((name.split(".")[0].removeprefix("lib") for name in names if "malloc" in name), "")


def _kernels(device: str) -> str:
    if device == "cuda":
        from fastsketch import _backend

        return " ".join(sorted({chosen for chosen, _ in _backend.explain(device).values()}))
    try:
        from fastsketch import cpp
    except (ImportError, OSError):
        return "reference"
    return ", ".join(filter(None, (f"cpp {cpp.facts()['in use']}", cpp.facts()["compiler"], allocator())))


def facts(device: str = "cpu") -> dict[str, str]:
    """Device, threads, versions and commit, as text."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": str(torch.get_num_threads()),
        "kernels": _kernels(device),
        "fastsketch": fastsketch.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def file_stem(device: str, about: dict[str, str]) -> str:
    """A file name for this kind of machine, and for the allocator, which times on a CPU depend on."""
    kind = about["device"] if device == "cuda" else f"{about['device']} {allocator()}"
    plain = "".join(c if c.isalnum() else "-" for c in kind.lower())
    return "-".join(["cuda" if device == "cuda" else "cpu", *(part for part in plain.split("-") if part)])
