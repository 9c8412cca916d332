"""Which implementation an operator runs, and why not another.

An implementation is a module with one function per kernel, all of the same names and signatures. `reference` (plain
PyTorch, the specification) has every kernel and runs everywhere; the others are preferred where they load and have
the kernel. A choice made by name never falls back: what is missing is an error that says why. Where nobody chose and
there are no kernels for a device at all, a line on the logger says so, once.
"""

import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType

import torch

from fastsketch.errors import FastsketchError

logger = logging.getLogger("fastsketch")

IMPLEMENTATIONS = {
    "cpp": "fastsketch.cpp",
    "cuda": "fastsketch.cuda",
    "triton": "fastsketch.triton",
    "reference": "fastsketch.reference",
}
"""Name of an implementation, and the module it lives in."""

PREFERENCE = {
    "cpu": ("cpp", "reference"),
    "cuda": ("cuda", "triton", "reference"),
}
"""What an operator tries, best first, by device type (but see `TRIED_FIRST`); other devices run the reference."""

TRIED_FIRST = {"cuda", "triton"}
"""Chosen for the kernels that passed their trial on this machine's GPU (`fastsketch.trial`), or asked for by name."""

KERNELS = (
    "patch_nce_forward",
    "patch_nce_backward",
    "gather_layers",
    "gather_patches_forward",
    "gather_patches_backward",
    "tap_patches_backward",
    "sample_patches",
    "place_positions",
    "attention_statistics_forward",
    "attention_statistics_backward",
)

OPTIONAL = {
    "patch_nce_forward_with_gradient": "patch_nce_forward",
    "tap_patches_add_": "tap_patches_backward",
    "project_patches_forward": "gather_patches_forward",
    "project_patches_backward": "gather_patches_forward",
    "normalize_layers": "patch_nce_forward",
    "normalize_layers_gradient": "patch_nce_forward",
    "transport_plan": "patch_nce_forward",
    "transport_plan_gradient": "patch_nce_forward",
    "relation_weight": "patch_nce_forward",
    "semantic_relation": "patch_nce_forward",
    "weighted_nce": "patch_nce_forward",
    "convolve": "gather_patches_forward",
    "convolve_input_gradient": "gather_patches_forward",
    "convolve_kernel_gradient": "gather_patches_forward",
    "attend_forward": "gather_patches_forward",
    "attend_backward": "gather_patches_forward",
    "attend_rows_forward": "gather_patches_forward",
    "attend_rows_backward": "gather_patches_forward",
    "blur_downsample": "gather_patches_forward",
    "blur_downsample_gradient": "gather_patches_forward",
    "blur_upsample": "gather_patches_forward",
    "blur_upsample_gradient": "gather_patches_forward",
    "instance_norm": "gather_patches_forward",
    "instance_norm_gradient": "gather_patches_forward",
    "feature_distance": "gather_patches_forward",
    "feature_distance_gradient": "gather_patches_forward",
    "max_pool": "gather_patches_forward",
    "max_pool_gradient": "gather_patches_forward",
    "reflection_pad": "gather_patches_forward",
    "reflection_pad_gradient": "gather_patches_forward",
}
"""Kernels that an implementation may lack, and the kernel beside which each is run: by the same implementation, or if
that has it not, by the framework's operators."""

IN_PLACE_OF = {"attend_rows_forward": "attend_forward", "attend_rows_backward": "attend_backward"}
"""Kernels for processors with AMX, and those that compute the same elsewhere."""

_forced: str | None = None  # of the whole process: backward on a GPU runs in threads of autograd's own


class CannotRun(FastsketchError, RuntimeError):
    """An implementation asked for by name does not run a kernel."""


@cache
def _load(implementation: str) -> tuple[ModuleType | None, str]:
    """Import an implementation once: (module, "") or (None, why it cannot be used)."""
    try:
        return importlib.import_module(IMPLEMENTATIONS[implementation]), ""
    except (ImportError, OSError) as error:
        return None, f"{type(error).__name__}: {error}"


def _why_not(implementation: str, kernel: str) -> str:
    """Why an implementation cannot run a kernel; empty if it can."""
    module, reason = _load(implementation)
    if module is None:
        return reason
    return "" if hasattr(module, kernel) else f"has no {kernel}"


def why_not_loaded(implementation: str) -> str:
    """Why an implementation is not there; empty if it is."""
    return _load(implementation)[1]


def why_not_used(implementation: str) -> str:
    """Why an implementation is not in use where it might be: another was asked for, or it is not there. Else empty."""
    forced = forced_backend()
    return f"{forced} was asked for" if forced not in (None, implementation) else why_not_loaded(implementation)


def _passed_over(implementation: str, kernel: str, index: int | None = None) -> str:
    """Why an implementation that nobody asked for by name does not run a kernel; empty if it does."""
    reason = _why_not(implementation, kernel)
    if reason or implementation not in TRIED_FIRST:
        return reason
    from fastsketch.trial.verdict import why_not

    return why_not(IMPLEMENTATIONS[implementation], kernel, index)


def forced_backend() -> str | None:
    """The implementation asked for by `use_backend` or FASTSKETCH_BACKEND, if any.

    Raises:
        FastsketchError: FASTSKETCH_BACKEND names none.
    """
    name = _forced or os.environ.get("FASTSKETCH_BACKEND") or None
    if name is not None and name not in IMPLEMENTATIONS:
        raise FastsketchError(f"FASTSKETCH_BACKEND must be one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    return name


def select(kernel: str, device_type: str, index: int | None = None) -> str:
    """Name of the implementation that `kernel` runs on the device of this type and index (None: the current one).

    Raises:
        CannotRun: the implementation asked for by name cannot run it. It is a RuntimeError, too.
    """
    return _choose(kernel, device_type, index, forced_backend())


@cache
def _choose(kernel: str, device_type: str, index: int | None, forced: str | None) -> str:
    if forced is not None:
        reason = _why_not(forced, kernel)
        if forced not in (*PREFERENCE.get(device_type, ()), "reference"):
            reason = f"does not run on {device_type}"
        if reason:
            raise CannotRun(f"backend {forced!r} was asked for, but {kernel}: {reason}")
        return forced
    for implementation in PREFERENCE.get(device_type, ()):
        if implementation != "reference" and not _passed_over(implementation, kernel, index):
            return implementation
    _tell_without_kernels(device_type)
    return "reference"


@cache
def _tell_without_kernels(device_type: str) -> None:
    """Say so where none of a device's implementations is there; a trial that a kernel failed speaks for itself."""
    reasons = [why_not_loaded(name) for name in PREFERENCE.get(device_type, ()) if name != "reference"]
    if reasons and all(reasons):
        logger.warning(
            "fastsketch: no kernels for %s, so operators run on plain PyTorch, slowly: %s", device_type, reasons[-1]
        )


def forget() -> None:
    """Look for implementations again: what was loaded and chosen is kept otherwise."""
    _load.cache_clear()
    _choose.cache_clear()
    _optional.cache_clear()


def kernel(name: str, device: torch.device):
    """The function that computes kernel `name` on `device`."""
    module, _ = _load(select(name, device.type, device.index))
    return getattr(module, name)


def run_checked(name: str, device: torch.device, check: Callable[[], None], *args):
    """Run kernel `name` on arguments whose values `check` accepts; it raises for others.

    An implementation that looks at values itself (`CHECKS_VALUES`) comes first, and `check` only says what was wrong.
    """
    module, _ = _load(select(name, device.type, device.index))
    if not getattr(module, "CHECKS_VALUES", False):
        check()
        return getattr(module, name)(*args)
    try:
        return getattr(module, name)(*args)
    except RuntimeError:
        check()
        raise


def optional_kernel(name: str, device: torch.device) -> Callable | None:
    """A kernel of `OPTIONAL`; None where the framework's operators take its place."""
    implementation = select(OPTIONAL[name], device.type, device.index)
    return _optional(name, implementation, device.index, forced_backend() is None)


@cache
def _optional(name: str, implementation: str, index: int | None, to_be_tried: bool) -> Callable | None:
    if to_be_tried and _passed_over(implementation, name, index):
        return None
    return getattr(_load(implementation)[0], name, None)


def explain(device_type: str) -> dict[str, tuple[str, dict[str, str]]]:
    """For each kernel: the implementation in use, and why each better one is not."""
    result = {}
    for name in KERNELS:
        used = select(name, device_type)
        passed_over = {}
        for implementation in PREFERENCE.get(device_type, ()):
            if implementation == used:
                break
            passed_over[implementation] = _passed_over(implementation, name) or "not asked for"
        result[name] = (used, passed_over)
    return result


def explain_optional(device_type: str) -> dict[str, str]:
    """For each kernel of `OPTIONAL` the implementation in use, or "torch" for the framework's operators.

    Those of `IN_PLACE_OF` are left out where they are not there.
    """
    device = torch.device(device_type)
    return {
        name: select(beside, device_type) if optional_kernel(name, device) else "torch"
        for name, beside in OPTIONAL.items()
        if name not in IN_PLACE_OF or optional_kernel(name, device)
    }


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every operator inside the block with the implementation `name` (None: the best there is).

    Holds for the whole process, all threads; a backward that runs after the block is not inside it.

    Args:
        name: a key of `IMPLEMENTATIONS`; FASTSKETCH_BACKEND sets the same for a whole process.

    Raises:
        ValueError: no implementation has that name.
    """
    if name is not None and name not in IMPLEMENTATIONS:
        raise ValueError(f"backend must be one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def checks_values(tensor: torch.Tensor) -> bool:
    """Whether values (not only shapes) are checked: always on CPU; elsewhere, where a look costs a
    synchronisation, only with FASTSKETCH_CHECK=1.
    """
    return tensor.device.type == "cpu" or os.environ.get("FASTSKETCH_CHECK") == "1"
