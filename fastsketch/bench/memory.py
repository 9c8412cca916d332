"""Peak memory and number of operators of one call.

On a CPU each call to be measured runs in a process of its own (forked from a server that has imported everything and
computed nothing, so that no earlier call's scratch memory is there to be used again). It warms up on a small case of
the same kind, resets the kernel's high-water mark of resident memory (Linux: /proc/self/clear_refs), calls once, and
takes the rise: results, scratch memory of every thread and the allocator's slack count; inputs and weights do not.
On a GPU it is what torch's allocator reports.
"""

import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_legacy import profile as legacy_profile

from fastsketch.bench.case import Case, Contender, Recipe
from fastsketch.bench.machine import allocator
from fastsketch.errors import first_line

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MMAP_THRESHOLD, OPTION = 64 * 1024, -3
"""glibc keeps freed blocks below a threshold that grows with use; fixed here, so that blocks return to the system."""


def _resident(field: str) -> int:
    return int(STATUS.read_text().split(f"{field}:")[1].split()[0]) * 1024


def _call(contender: Contender, inputs: Any) -> Any:
    return contender.run(inputs, contender.prepare(inputs))


def _measure_cpu(recipe: Recipe, name: str, threads: int) -> int:
    torch.set_num_threads(threads)
    libc = ctypes.CDLL(None)
    libc.mallopt(OPTION, MMAP_THRESHOLD)
    case = recipe.case()
    contender = case.contenders[name]
    inputs = case.make()
    if contender.compiled:
        _call(contender, inputs)  # compiles for these very shapes
    else:
        small = recipe.warm_up()
        _call(small.contenders[name], small.make())
    gc.collect()
    prepared = contender.prepare(inputs)
    libc.malloc_trim(0)
    RESET.write_text("5")
    before = _resident("VmRSS")
    result = contender.run(inputs, prepared)
    rise = _resident("VmHWM") - before
    del result
    return max(rise, 0)


def _serve(pipe: Connection, recipe: Recipe, name: str, threads: int) -> None:
    try:
        pipe.send(_measure_cpu(recipe, name, threads))
    except (RuntimeError, MemoryError, OSError) as error:
        pipe.send(f"{type(error).__name__}: {first_line(error)}")


def peak(recipe: Recipe, name: str, *, threads: int, device: str = "cpu", timeout: float = 300.0) -> int | None:
    """Bytes that one call of a contender takes above what was there before; None where it cannot be measured.

    Args:
        recipe: of the case.
        name: of the contender.
        threads: that the call may use.
        device: cpu or cuda.
        timeout: seconds after which the call is given up.
    """
    if device == "cuda":
        case = recipe.case(device)
        return _peak_cuda(case, name)
    if sys.platform != "linux" or allocator():  # another one keeps pages, glibc is told not to
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastsketch.bench.cases", "fastsketch.bench.step"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, recipe, name, threads), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv() if ours.poll(timeout) else f"no answer in {timeout:g} s"
    except EOFError:
        answer = "the process was killed (out of memory?)"
    finally:
        process.kill()
        process.join()
    if isinstance(answer, str):
        print(f"  memory of {name}: not measured, {answer}", file=sys.stderr)
        return None
    return answer


def _peak_cuda(case: Case, name: str) -> int:
    contender, inputs = case.contenders[name], case.make()
    _call(contender, inputs)
    prepared = contender.prepare(inputs)
    return rise_cuda(lambda: contender.run(inputs, prepared))


def rise_cuda(run: Callable[[], Any]) -> int:
    """Bytes that a call takes of the current GPU above what is there already, as torch's allocator counts them."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _is_operator(event: Any) -> bool:
    return "::" in event.name and not event.name.startswith(("autograd::", "torch::"))


def _is_outermost(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None and not _is_operator(parent):
        parent = parent.cpu_parent
    return parent is None


def launches(case: Case, name: str, device: str = "cpu") -> int | None:
    """Operators called in one call, views included, those that others call left out (CPU), or kernels launched (GPU);
    None for compiled CPU code. Seen by the profiler: a dispatch mode would send our operators another way.
    """
    contender, inputs = case.contenders[name], case.make()
    if device != "cuda" and contender.compiled:
        return None
    _call(contender, inputs)
    prepared = contender.prepare(inputs)
    if device != "cuda":
        with legacy_profile() as profile:  # the newer one writes to the terminal where there is no GPU
            contender.run(inputs, prepared)
        return sum(_is_operator(event) and _is_outermost(event) for event in profile.function_events)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        contender.run(inputs, prepared)
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
