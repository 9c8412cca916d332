"""fastsketch::sample_patches."""

import torch
from torch import Tensor

from fastsketch import _backend
from fastsketch.ops.eager import nothing_looks_on

MAX_REGIONS = 1024
"""Region ids are in [0, MAX_REGIONS)."""


def _check(density: Tensor, region: Tensor | None, uniform: Tensor) -> None:
    if not _backend.checks_values(density):
        return
    low, high = (float(x) for x in density.aminmax())
    if not (low >= 0 and high < float("inf")):
        raise ValueError(f"density must be finite and non-negative, got {low} to {high}")
    low, high = (float(x) for x in uniform.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"uniform must lie in [0, 1], got {low} to {high}")
    if region is not None:
        low, high = (int(x) for x in region.aminmax())
        if low < 0 or high >= MAX_REGIONS:
            raise ValueError(f"region must lie in [0, {MAX_REGIONS}), got {low} to {high}")


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
