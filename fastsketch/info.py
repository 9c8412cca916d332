"""What `fastsketch info` prints: versions, devices, and which implementation each operator uses."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from fastsketch import __version__, _backend
from fastsketch.bench.machine import processor

PACKAGES = ("torch", "torchvision", "triton", "numpy", "piq", "lpips", "torchmetrics", "safetensors")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    lines = [f"cpu     {processor()}, {threads}, torch runs {torch.backends.cpu.get_cpu_capability()}"]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        memory = facts.total_memory / 2**30
        lines.append(f"cuda:{number}  {facts.name}, sm_{facts.major}{facts.minor}, {memory:.0f} GiB")
    if len(lines) == 1:
        built = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch built without CUDA"
        lines.append(f"cuda    none ({built}, no device found)")
    return lines


def _operators(device_types: tuple[str, ...] = ("cpu", "cuda")) -> list[str]:
    """What runs each kernel on each kind of device, then why each better implementation does not run one."""
    lines, reasons, used = [], {}, {}
    for device_type in device_types:
        explained = _backend.explain(device_type)
        used[device_type] = {kernel: name for kernel, (name, _) in explained.items()}
        used[device_type] |= _backend.explain_optional(device_type)
        for _, passed_over in explained.values():
            for name, reason in passed_over.items():
                if not reason.startswith("has no "):  # it never meant to run this one
                    reasons.setdefault(f"not {name} on {device_type}", reason)
    for kernel in used[device_types[0]]:
        lines.append(f"{kernel:33}" + "".join(f"{used[kind].get(kernel, ''):11}" for kind in device_types).rstrip())
    return [f"{'':33}{''.join(f'{kind:11}' for kind in device_types).rstrip()}", *lines] + [
        f"{name}: {reason}" for name, reason in reasons.items()
    ]


def _kernels() -> list[str]:
    try:
        from fastsketch import cpp
    except (ImportError, OSError) as error:
        return [str(error)]
    return [f"{name:18} {value}" for name, value in cpp.facts().items()]


def report() -> str:
    """The report as text."""
    sections = {
        f"fastsketch {__version__}": [f"python {platform.python_version()}, {platform.platform()}"],
        "packages": [f"{name:12} {_version(name)}" for name in PACKAGES],
        "devices": _devices(),
        "C++ kernels": _kernels(),
        "operators": _operators(),
    }
    return "\n".join(f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in sections.items())
