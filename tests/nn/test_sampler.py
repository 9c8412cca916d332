"""Regions, positions on finer grids, and the sampler's options."""

import math

import pytest
import torch

from fastsketch import place_positions
from fastsketch.nn import StructureSampler, segment_regions


def test_regions_are_quantiles_of_the_foreground():
    structure = torch.rand(2, 12, 10)
    mask = torch.ones(2, 1, 48, 40)
    mask[:, :, :16] = 0
    region = segment_regions(structure, 4, mask)
    assert (region[:, :4] == 0).all()
    for b in range(2):
        sizes = torch.bincount(region[b].flatten(), minlength=4)
        assert sizes[0] == 40
        assert sizes[1:].max() - sizes[1:].min() <= 1
        for low, high in ((1, 2), (2, 3)):
            assert structure[b][region[b] == low].max() <= structure[b][region[b] == high].min()


@pytest.mark.parametrize("num_regions", [3, 4, 8, 11, 22])
def test_a_position_at_a_quantile_belongs_below_it(num_regions):
    """Values 0 to 10 (R - 1): the cuts are 10, 20, ... themselves."""
    parts = num_regions - 1
    structure = torch.randperm(10 * parts + 1).float().view(1, 1, -1)
    region = segment_regions(structure, num_regions)
    want = 1 + (structure.long() - 1).clamp(min=0) // 10
    assert torch.equal(region, want)


@pytest.mark.parametrize("num_regions", [3, 5, 12])
def test_regions_are_those_of_nanquantile_elsewhere(num_regions):
    structure, mask = torch.rand(6, 17, 23), (torch.rand(6, 1, 17, 23) > 0.3).float()
    background = mask.flatten(1) < 0.5
    values = structure.flatten(1).double().masked_fill(background, torch.nan)
    cuts = torch.arange(1, num_regions - 1, dtype=torch.float64) / (num_regions - 1)
    want = 1 + (values > values.nanquantile(cuts, dim=1)[..., None]).sum(0)
    got = segment_regions(structure, num_regions, mask).flatten(1)
    last, ranks = (~background).sum(1) - 1, torch.arange(1, num_regions - 1)
    exact = (last[:, None] * ranks) % (num_regions - 1) == 0  # there nanquantile depends on rounding
    assert ((got != want.masked_fill(background, 0)).sum(1) <= exact.sum(1)).all()


def test_regions_without_mask_or_foreground():
    structure = torch.rand(1, 6, 6)
    assert segment_regions(structure, 3).min() == 1
    assert (segment_regions(structure, 3, torch.zeros(1, 1, 24, 24)) == 0).all()
    assert set(segment_regions(structure, 2).flatten().tolist()) == {1}
    assert set(segment_regions(torch.ones(1, 6, 6), 4).flatten().tolist()) == {1}


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: segment_regions(torch.rand(6, 6)), "structure_map"),
        (lambda: segment_regions(torch.rand(1, 6, 6), 1), "num_regions"),
        (lambda: segment_regions(torch.rand(1, 6, 6), 4, torch.rand(1, 6, 6)), "mask"),
        (lambda: place_positions(torch.zeros(1, 1, dtype=torch.int64), (4, 4), [(6, 6)], borders=[3]), "border"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: segment_regions(None), TypeError, "structure_map must be a torch.Tensor, got NoneType"),
        (lambda m: segment_regions(m[:, :0]), ValueError, r"structure_map must be .* got \[2, 0, 6\]"),
        (lambda m: segment_regions(m, 2.5), TypeError, "num_regions must be an int, got float"),
        (lambda m: segment_regions(m.log() - torch.inf), ValueError, "structure_map must be finite, got -inf to -inf"),
        (
            lambda m: segment_regions(m.index_fill(2, torch.tensor(3), math.nan)),
            ValueError,
            "structure_map must be finite, got nan",
        ),
        (lambda m: segment_regions(m, 4, m[:, None] / 0), ValueError, "mask must be finite, got inf to inf"),
        (lambda m: segment_regions(m, 4, 3), TypeError, "mask must be a torch.Tensor, got int"),
        (lambda m: StructureSampler(4)(m[0]), ValueError, r"structure_map must be .* got \[5, 6\]"),
        (lambda m: StructureSampler(4)([1.0]), TypeError, "structure_map must be a torch.Tensor, got list"),
    ],
)
def test_arguments_of_another_kind_are_named(call, error, match):
    with pytest.raises(error, match=match):
        call(torch.rand(2, 5, 6))


@pytest.mark.parametrize(("size", "border"), [((64, 64), 0), ((262, 262), 3), ((128, 96), 0), ((50, 33), 0)])
def test_places_stay_in_their_block(size, border):
    grid = (16, 12)
    index = torch.arange(16 * 12).repeat(3, 1)
    (placed,) = place_positions(index, grid, [size], borders=[border])
    y, x = placed // size[1] - border, placed % size[1] - border
    height, width = size[0] - 2 * border, size[1] - 2 * border
    assert (y >= 0).all() and (y < height).all() and (x >= 0).all() and (x < width).all()
    # The cell of the grid that the placed pixel lies in is the drawn one (up to rounding where sides do not divide).
    tolerance = 0 if height % 16 == 0 and width % 12 == 0 else 1
    assert ((y * 16 // height) - index // 12).abs().max() <= tolerance
    assert ((x * 12 // width) - index % 12).abs().max() <= tolerance


def test_a_coarser_grid_takes_the_cell_that_holds_the_place():
    index = torch.arange(16 * 12)[None]
    (placed,) = place_positions(index, (16, 12), [(8, 6)])
    assert torch.equal(placed, (index // 12 // 2) * 6 + index % 12 // 2)


def test_places_are_uniform_in_their_block():
    index = torch.full((1, 40000), 5)
    (placed,) = place_positions(index, (4, 4), [(16, 16)], generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(placed.flatten(), minlength=256).view(16, 16)[4:8, 4:8].double()
    assert counts.sum() == 40000
    chi2 = ((counts - 2500) ** 2 / 2500).sum()
    assert chi2 < 37.7  # 15 degrees of freedom, p = 0.001


def test_one_set_of_positions_for_all_layers():
    structure = torch.rand(2, 16, 16)
    sample = StructureSampler(32)(structure, torch.ones(2, 1, 64, 64))
    layers = sample.on([(70, 70), (64, 64), (32, 32), (16, 16)], [3, 0, 0, 0])
    assert layers[3] is sample.index
    for placed, side, border in zip(layers, (64, 64, 32, 16), (3, 0, 0, 0), strict=True):
        y, x = placed // (side + 2 * border) - border, placed % (side + 2 * border) - border
        assert torch.equal((y * 16 // side) * 16 + x * 16 // side, sample.index)
        assert all(row.unique().numel() == 32 for row in placed)


def test_switches():
    structure = torch.zeros(1, 16, 16)
    structure[:, :4, :4] = 1.0
    rng = torch.Generator().manual_seed(1)

    def share(**options) -> float:
        sample = StructureSampler(64, window=1, **options)(structure.expand(64, -1, -1), generator=rng)
        return ((sample.index // 16 < 4) & (sample.index % 16 < 4)).double().mean().item()

    assert share(regions=False, dynamic=False) == pytest.approx(16 / 256, abs=0.02)
    assert share(regions=False, dynamic=True) == pytest.approx(16 / 64)  # all the density there is
    assert StructureSampler(64, regions=False, dynamic=False)(structure).region.unique().tolist() == [0]
    given = torch.zeros(1, 16, 16, dtype=torch.int64)
    given[:, 8:] = 7
    sample = StructureSampler(64, dynamic=False)(structure, region=given)
    assert torch.bincount(sample.region[0]).tolist() == [32] + 6 * [0] + [32]


def test_multiplicity_weighs_instead_of_drawing():
    structure = torch.rand(2, 16, 16)
    sample = StructureSampler(64, multiplicity=True, boost=3.0, window=1)(structure)
    dense = structure.flatten(1).gather(1, sample.index) > 1.5 * structure.mean((1, 2))[:, None]
    assert torch.equal(sample.weight, torch.where(dense, 3.0, 1.0))
    assert StructureSampler(64)(structure).weight is None

    def drawn(**options):
        sampler = StructureSampler(64, window=1, **options)
        return sampler(structure, generator=torch.Generator().manual_seed(0)).index

    once = drawn(boost=1.0)
    assert torch.equal(drawn(boost=3.0, multiplicity=True), once) and not torch.equal(drawn(boost=3.0), once)


def test_small_maps_give_fewer_patches():
    assert StructureSampler(256)(torch.rand(1, 4, 4)).index.shape == (1, 16)
