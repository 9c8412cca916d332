"""Regions and density sampling on the structure map (docs/method.md sections 3 and 4), for all layers at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsketch._backend import checks_values
from fastsketch._checks import FLOATING, INTEGER, check_int, check_tensor, check_values
from fastsketch.functional import local_density, place_positions, sample_patches
from fastsketch.ops.eager import nothing_looks_on
from fastsketch.reference.sampling import MAX_REGIONS


def _check_map(structure_map: Tensor) -> None:
    check_tensor("structure_map", structure_map, (*FLOATING, *INTEGER))
    if structure_map.dim() != 3 or 0 in structure_map.shape[1:]:
        raise ValueError(f"structure_map must be [B, H, W], H and W at least 1, got {list(structure_map.shape)}")


def _check_finite(name: str, values: Tensor) -> None:
    if nothing_looks_on(values) and checks_values(values):
        check_values(name, values.detach(), "be finite,", math.isfinite)


def segment_regions(structure_map: Tensor, num_regions: int = 4, mask: Tensor | None = None) -> Tensor:
    """Cut a picture into regions by the quantiles of its structure map [P: regions from the map; D: how].

    Args:
        structure_map: [B, H, W], finite.
        num_regions: R, 2 to 1024, the background included.
        mask: [B, 1, H', W'] in [0, 1], resized to the map by averaging; below one half is background. None: no
            background.

    Returns:
        int64 [B, H, W]: 0 is the background; the foreground is 1 to R−1 by ascending map value, cut at its
        quantiles, image by image.

    Raises:
        TypeError: a map or mask that is no tensor, or a number that is no int.
        ValueError: a wrong shape or number; a map or mask that is not finite (looked at on a CPU, and elsewhere with
            FASTSKETCH_CHECK=1).
    """
    _check_map(structure_map)
    check_int("num_regions", num_regions)
    if not 2 <= num_regions <= MAX_REGIONS:
        raise ValueError(f"num_regions must be 2 to {MAX_REGIONS}, got {num_regions}")
    _check_finite("structure_map", structure_map)
    values = structure_map.flatten(1).float()
    background = torch.zeros_like(values, dtype=torch.bool)
    if mask is not None:
        check_tensor("mask", mask, (*FLOATING, *INTEGER, torch.bool))
        if mask.dim() != 4 or mask.shape[:2] != (structure_map.shape[0], 1):
            raise ValueError(f"mask must be [{structure_map.shape[0]}, 1, H, W], got {list(mask.shape)}")
        _check_finite("mask", mask)
        background = F.adaptive_avg_pool2d(mask.float(), structure_map.shape[1:]).flatten(1) < 0.5
    # Linear quantiles, ranks in whole numbers: torch.nanquantile rounds them, and in torch 2.11 waits for the device.
    ascending, parts = values.masked_fill(background, torch.inf).sort(dim=1).values, num_regions - 1
    last = (~background).sum(1, keepdim=True).sub(1).clamp(min=0)
    ranks = last * torch.arange(1, parts, device=values.device)  # [B, R-2]
    below, rest = ranks // parts, ranks % parts
    low, high = (ascending.gather(1, rank) for rank in (below, below + (rest > 0)))
    bounds = low.lerp(high, (rest / parts).to(low.dtype))
    region = 1 + (values[:, None] > bounds[..., None]).sum(1)
    return region.masked_fill(background, 0).view(structure_map.shape)


@dataclass(frozen=True)
class PatchSample:
    """Positions drawn on the map's grid, and what is known of them.

    Attributes:
        index: int64 [B, S] flat positions on `grid`.
        region: int64 [B, S], the region of each.
        weight: float [B, S] multiplicity of each, or None.
        grid: (h, w) of the map.
    """

    index: Tensor
    region: Tensor
    weight: Tensor | None
    grid: tuple[int, int]

    def on(
        self,
        sizes: Sequence[Sequence[int]],
        borders: Sequence[int],
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        """The same facial points on each layer's grid: a list of [B, S], one a layer."""
        layers = list(zip((tuple(size) for size in sizes), borders, strict=True))
        elsewhere = [layer for layer in layers if layer != (self.grid, 0)]
        if not elsewhere:
            return [self.index for _ in layers]
        placed = iter(
            place_positions(
                self.index,
                self.grid,
                [size for size, _ in elsewhere],
                borders=[border for _, border in elsewhere],
                generator=generator,
            )
        )
        return [self.index if layer == (self.grid, 0) else next(placed) for layer in layers]


class StructureSampler(nn.Module):
    """Draws the patches of an image from its structure map: one set of positions for all layers.

    With neither regions nor density this is CUT's uniform sampling without replacement.

    Args:
        num_patches: S; fewer where the map has fewer positions.
        regions: share the samples out over regions of the map [P].
        dynamic: sample in proportion to the feature density, boosted above a threshold [P].
        num_regions: R, the background included [D].
        window: side of the density's box mean, in map positions [D].
        threshold: in units of the mean density [D].
        boost: factor above the threshold [P: doubled].
        multiplicity: above the threshold weigh a sample's loss by `boost`, and do not draw it more often [D].
    """

    def __init__(
        self,
        num_patches: int = 256,
        *,
        regions: bool = True,
        dynamic: bool = True,
        num_regions: int = 4,
        window: int = 7,
        threshold: float = 1.5,
        boost: float = 2.0,
        multiplicity: bool = False,
    ) -> None:
        super().__init__()
        self.num_patches = num_patches
        self.regions = regions
        self.dynamic = dynamic
        self.num_regions = num_regions
        self.window = window
        self.threshold = threshold
        self.boost = boost
        self.multiplicity = multiplicity

    @torch.no_grad()
    def forward(
        self,
        structure_map: Tensor,
        mask: Tensor | None = None,
        *,
        region: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> PatchSample:
        """Draw.

        Args:
            structure_map: [B, h, w] in [0, 1].
            mask: [B, 1, H, W] in [0, 1]; its background is region 0.
            region: integer [B, h, w] to use in place of the map's own regions (a face parsing, say).
            generator: source of the random numbers.

        Returns:
            The sample; S is `num_patches`, or h·w if that is less.

        Raises:
            TypeError, ValueError: as `segment_regions` and `fastsketch.sample_patches`.
        """
        _check_map(structure_map)
        _batch, height, width = structure_map.shape
        if region is None and self.regions:
            region = segment_regions(structure_map, self.num_regions, mask)
        density = local_density(structure_map, self.window) if self.dynamic else torch.ones_like(structure_map)
        index = sample_patches(
            density,
            min(self.num_patches, height * width),
            region=region,
            threshold=self.threshold,
            boost=1.0 if self.multiplicity else self.boost,
            generator=generator,
        )
        picked = torch.zeros_like(index) if region is None else region.flatten(1).gather(1, index).long()
        weight = None
        if self.multiplicity and self.dynamic:
            dense = density.flatten(1).gather(1, index) > self.threshold * density.mean((1, 2))[:, None]
            weight = torch.where(dense, self.boost, 1.0)
        return PatchSample(index, picked, weight, (height, width))
