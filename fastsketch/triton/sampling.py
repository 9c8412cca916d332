"""Density sampling without a look at the data from the host: the reference's formulas, index for index, as torch
operations whose shapes do not depend on the data, so that a CUDA graph can hold them.

There is no Triton kernel here (selection is sorting); this path serves where the CUDA extension is not built.
"""

import torch
from torch import Tensor

from fastsketch.reference.sampling import LEAST_UNIFORM, MAX_REGIONS, region_quota, sampling_weight


def sample_patches(
    density: Tensor,  # [B, N] floating
    region: Tensor | None,  # [B, N] integer
    uniform: Tensor,  # [B, N] in [0, 1]
    num_patches: int,
    threshold: float,
    boost: float,
) -> Tensor:  # [B, S] int64
    """See `fastsketch.reference.sampling`."""
    weight = sampling_weight(density, threshold, boost)
    key = -uniform.double().clamp_min(LEAST_UNIFORM).log() / weight
    order = key.argsort(dim=1, stable=True)
    if region is None:
        return order[:, :num_patches].contiguous()
    region = region.long()
    quota = region_quota(weight, region, num_patches, MAX_REGIONS)  # to ask how many are used would synchronise
    order = order.gather(1, region.gather(1, order).argsort(dim=1, stable=True))

    # Place of each position among its region's, and the output's place of each region's first.
    ordered_region = region.gather(1, order)
    bounds = torch.arange(MAX_REGIONS, device=region.device).expand(region.shape[0], -1).contiguous()
    region_start = torch.searchsorted(ordered_region, bounds)
    rank = torch.arange(region.shape[1], device=region.device) - region_start.gather(1, ordered_region)
    chosen = rank < quota.gather(1, ordered_region)
    output_start = quota.cumsum(1) - quota
    place = torch.where(chosen, output_start.gather(1, ordered_region) + rank, num_patches)
    # What is not chosen goes to one more column, cut off again.
    index = torch.empty((region.shape[0], num_patches + 1), dtype=torch.int64, device=region.device)
    return index.scatter_(1, place, order)[:, :num_patches].contiguous()
