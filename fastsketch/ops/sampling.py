"""fastsketch::sample_patches."""

import math

import torch
from torch import Tensor

from fastsketch import _backend
from fastsketch._checks import check_values
from fastsketch.ops.eager import nothing_looks_on
from fastsketch.reference.sampling import MAX_REGIONS


def _check(density: Tensor, region: Tensor | None, uniform: Tensor) -> None:
    if not _backend.checks_values(density):
        return
    check_values("density", density, "be finite and non-negative,", lambda value: 0 <= value < math.inf)
    if density.dtype == torch.float64 and not density.sum(1).isfinite().all():
        raise ValueError("density must have a finite sum")
    check_values("uniform", uniform, "lie in [0, 1],", lambda value: 0 <= value <= 1)
    if region is not None:
        check_values("region", region, f"lie in [0, {MAX_REGIONS}),", lambda value: 0 <= value < MAX_REGIONS)


def _sample_patches(
    density: Tensor,
    region: Tensor | None,
    uniform: Tensor,
    num_patches: int,
    threshold: float,
    boost: float,
) -> Tensor:
    """Dispatch; see `fastsketch.reference.sampling`."""

    def check() -> None:
        _check(density, region, uniform)

    args = (density, region, uniform, num_patches, threshold, boost)
    return _backend.run_checked("sample_patches", density.device, check, *args)


sample_patches = torch.library.custom_op("fastsketch::sample_patches", _sample_patches, mutates_args=())


@sample_patches.register_fake
def _(density, region, uniform, num_patches, threshold, boost):
    return density.new_empty((density.shape[0], num_patches), dtype=torch.int64)


def sample(density: Tensor, region: Tensor | None, uniform: Tensor, *options) -> Tensor:
    """`sample_patches`, straight to the kernel where nothing looks on."""
    return (_sample_patches if nothing_looks_on(density, region, uniform) else sample_patches)(
        density, region, uniform, *options
    )
