"""Density sampling in regions (docs/method.md section 4), batched and without a look at the data from the host."""

import torch
from torch import Tensor

LEAST_WEIGHT = 1e-30
"""Stands for weight zero: chosen only when a region has nothing else, and then uniformly."""

MAX_BOOST = 1e30
"""The largest boost: weights and their sums stay far from overflow."""

MAX_REGIONS = 1024
"""Region ids are in [0, MAX_REGIONS)."""

LEAST_UNIFORM = 2.0**-33
"""Stands for a uniform of exactly 0, whose logarithm has no value."""

SHARE_STEPS = 2.0**24
"""Shares of the quota are rounded to 1/SHARE_STEPS, so that the order of a sum cannot decide a tie."""


def sampling_weight(density: Tensor, threshold: float, boost: float) -> Tensor:
    """w = d·(boost if d > threshold else 1), d the density scaled to mean 1 an image [D].

    Args:
        density: [B, N], finite and non-negative.
        threshold: in units of the mean density.
        boost: factor above the threshold; 2 doubles the samples there, as in the paper's Fig. 4 [P].

    Returns:
        [B, N] float64, at least `LEAST_WEIGHT`.
    """
    d = density.double()
    mean = d.mean(1, keepdim=True)
    d = torch.where(mean > 0, d / mean, torch.zeros_like(d))
    return torch.where(d > threshold, d * boost, d).clamp_min(LEAST_WEIGHT)


def region_quota(weight: Tensor, region: Tensor, num_patches: int, num_regions: int) -> Tensor:
    """Samples of each region: largest-remainder rounding of num_patches·(its share of the weight) [D].

    No region gets more than it has positions; what is over goes to the other regions in order of weight (that is, of
    the rounded share), as much as each can hold. Then, if there are enough samples for all, an empty-handed region
    gets one from the largest quotas. Ties go to the lower region.

    Args:
        weight: [B, N] float64.
        region: [B, N] int64 in [0, num_regions).
        num_patches: S, at most N.
        num_regions: R.

    Returns:
        [B, R] int64, each row adding up to `num_patches`.
    """
    shape = (weight.shape[0], num_regions)
    mass = weight.new_zeros(shape).scatter_add_(1, region, weight)
    size = region.new_zeros(shape).scatter_add_(1, region, torch.ones_like(region))
    present = size > 0

    share = num_patches * mass / mass.sum(1, keepdim=True)
    share = (share * SHARE_STEPS).round() / SHARE_STEPS
    quota = share.floor()
    remainder = torch.where(present, share - quota, -1)
    quota = quota.long()
    left = num_patches - quota.sum(1, keepdim=True)
    quota += (_descending_rank(remainder) < left).long()

    over = (quota - size).clamp_min(0)
    quota -= over
    quota += _fill(over.sum(1, keepdim=True), size - quota, share)

    enough = present.sum(1, keepdim=True) <= num_patches
    lift = (present & (quota == 0) & enough).long()
    spare = (quota - 1).clamp_min(0)
    return quota + lift - _fill(lift.sum(1, keepdim=True), spare, quota)


def _descending_rank(value: Tensor) -> Tensor:
    """Place of each value in its row, largest first, ties by position. [B, R]"""
    return value.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def _fill(amount: Tensor, room: Tensor, priority: Tensor) -> Tensor:
    """Hand out `amount` [B, 1] over the row in order of priority, as much to each as it has room. [B, R]"""
    order = priority.argsort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    before = room.cumsum(1) - room
    given = torch.minimum((amount - before).clamp_min(0), room)
    return torch.empty_like(given).scatter_(1, order, given)


def sample_patches(
    density: Tensor,  # [B, N] floating
    region: Tensor | None,  # [B, N] integer >= 0
    uniform: Tensor,  # [B, N] in [0, 1]
    num_patches: int,
    threshold: float,
    boost: float,
) -> Tensor:  # [B, S] int64
    """Distinct positions, grouped by ascending region, inside a region by ascending key.

    Inside a region the `quota` smallest of the exponential race key = −log(u)/w are kept
    [L: Efraimidis & Spirakis 2006]; equal keys go to the lower position. Keys are float64.
    """
    weight = sampling_weight(density, threshold, boost)
    region = torch.zeros_like(weight, dtype=torch.int64) if region is None else region.long()
    num_regions = int(region.max()) + 1
    quota = region_quota(weight, region, num_patches, num_regions)
    key = -uniform.double().clamp_min(LEAST_UNIFORM).log() / weight

    order = key.argsort(dim=1, stable=True)
    order = order.gather(1, region.gather(1, order).argsort(dim=1, stable=True))
    ordered_region = region.gather(1, order)
    size = torch.zeros_like(quota).scatter_add_(1, region, torch.ones_like(region))
    start = size.cumsum(1) - size
    rank = torch.arange(region.shape[1], device=region.device) - start.gather(1, ordered_region)
    chosen = rank < quota.gather(1, ordered_region)
    return order[chosen].view(region.shape[0], num_patches)
