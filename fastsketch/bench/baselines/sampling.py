"""Weighted positions by torch.multinomial, region by region."""

import torch
from torch import Tensor


def per_region(
    weight: Tensor,  # [B, N]
    region: Tensor,  # [B, N]
    quota: list[list[int]],  # [B][R]
) -> Tensor:  # [B, S]
    """Distinct positions of each image and region, as many as its quota, by one torch.multinomial each."""
    drawn = []
    for weights, regions, counts in zip(weight, region, quota, strict=True):
        parts = [torch.multinomial(weights * (regions == r), n) for r, n in enumerate(counts)]
        drawn.append(torch.cat(parts))
    return torch.stack(drawn)
