"""sample_patches against exact rational arithmetic, and its frequencies against the probabilities they should have."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import fastsketch
from fastsketch.reference.sampling import MAX_BOOST

KERNELS = ("sample_patches",)
UNLIKELY = 1e-4
"""Seeds are fixed: a test passes or fails for ever. A right sampler fails one in ten thousand choices of seed."""


def exact_weights(density: list, threshold, boost) -> list[Fraction]:
    """w = d·(boost if d > threshold else 1), d in units of the mean; one everywhere if all are zero."""
    total = sum(Fraction(x) for x in density)
    if not total:
        return [Fraction(1)] * len(density)
    scaled = [Fraction(x) * len(density) / total for x in density]
    return [d * Fraction(boost) if d > Fraction(threshold) else d for d in scaled]


def exact_quota(weights: list[Fraction], region: list[int], samples: int) -> dict[int, int]:
    """Largest remainders, then what is over by weight, then one for the empty-handed; ties to the lower region."""
    regions = sorted(set(region))
    size = {r: region.count(r) for r in regions}
    mass = {r: sum(w for w, s in zip(weights, region, strict=True) if s == r) for r in regions}
    share = {r: samples * mass[r] / sum(weights) for r in regions}
    quota = {r: math.floor(share[r]) for r in regions}
    by_remainder = sorted(regions, key=lambda r: quota[r] - share[r])  # a stable sort
    for r in by_remainder[: samples - sum(quota.values())]:
        quota[r] += 1
    over = sum(max(0, quota[r] - size[r]) for r in regions)
    quota = {r: min(quota[r], size[r]) for r in regions}
    for r in sorted(regions, key=lambda r: -mass[r]):
        given = min(over, size[r] - quota[r])
        quota[r] += given
        over -= given
    empty = [r for r in regions if not quota[r]] if len(regions) <= samples else []
    wanted = len(empty)
    for r in sorted(regions, key=lambda r: -quota[r]):
        taken = min(wanted, max(0, quota[r] - 1))
        quota[r] -= taken
        wanted -= taken
    return quota | dict.fromkeys(empty, 1)


def exact_sample(density, region, uniform, samples: int, threshold=1.5, boost=2.0) -> list[int]:
    """The positions of one image from lists of numbers: the `quota` first of each region's race."""
    weights = exact_weights(density, threshold, boost)
    quota = exact_quota(weights, region, samples)
    chosen = []
    for r in sorted(quota):
        members = [j for j in range(len(region)) if region[j] == r]
        keys = {j: -math.log(max(uniform[j], 2.0**-33)) / max(float(weights[j]), 1e-30) for j in members}
        chosen += sorted(members, key=keys.__getitem__)[: quota[r]]
    return chosen


def counts(index: Tensor, region: Tensor) -> list[dict[int, int]]:
    """How many samples of each present region each image got."""
    got = region.flatten(1).gather(1, index).cpu().numpy()
    present = [np.unique(r) for r in region.flatten(1).cpu().numpy()]
    return [{int(r): int((g == r).sum()) for r in regions} for g, regions in zip(got, present, strict=True)]


def test_small_cases_equal_rational_arithmetic(backend, device):
    """Every branch of the quotas (caps, ties, minimum of one, fewer samples than regions, empty ids, zero weights)."""
    rng = random.Random(1)
    for case in range(400):
        size = rng.randint(1, 24)
        samples = rng.randint(1, size)
        ids = [0, 1, 2, 4, 5, 9, 700][: rng.randint(1, 7)]
        density = [rng.choice([0, 0, 1, 2, 3, rng.randint(0, 9), 40]) for _ in range(size)]
        if case % 10 == 0:
            density = [0] * size
        region = [rng.choice(ids) for _ in range(size)]
        uniform = [rng.choice([rng.random(), rng.random(), rng.random(), 0.0, 1.0]) for _ in range(size)]
        options = {"threshold": rng.choice([0.0, 0.5, 1.5, 2.5]), "boost": rng.choice([0.5, 1.0, 1.5, 2.0])}
        got = fastsketch.sample_patches(
            torch.tensor([density], dtype=torch.float32, device=device),
            samples,
            region=torch.tensor([region], device=device),
            uniform=torch.tensor([uniform], dtype=torch.float64, device=device),
            **options,
        )
        want = exact_sample(density, region, uniform, samples, **options)
        assert got[0].tolist() == want, f"{density=} {region=} {uniform=} {samples=} {options=}"


@pytest.mark.parametrize("samples", [1, 3, 256, 1023, 1024])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
def test_a_map_equals_rational_arithmetic(backend, device, dtype, samples):
    generator = torch.Generator().manual_seed(3)
    density = torch.rand(2, 32, 32, generator=generator).pow(4).to(dtype)
    region = torch.randint(0, 4, (2, 32, 32), generator=generator)
    uniform = torch.rand(2, 32, 32, generator=generator)
    got = fastsketch.sample_patches(density.to(device), samples, region=region.to(device), uniform=uniform.to(device))
    assert got.dtype == torch.int64
    assert got.shape == (2, samples)
    for b in range(2):
        want = exact_sample(*(x[b].flatten().tolist() for x in (density, region, uniform)), samples)
        assert got[b].tolist() == want


@pytest.mark.parametrize(
    ("mass", "size", "samples", "want"),
    [
        ([1, 1, 1], [9, 9, 9], 9, [3, 3, 3]),
        ([1, 1, 1], [9, 9, 9], 8, [3, 3, 2]),  # remainders tie: the lower regions
        ([1, 1, 1], [9, 9, 9], 7, [3, 2, 2]),
        ([5, 3, 2], [9, 9, 9], 10, [5, 3, 2]),
        ([5.4, 3.4, 1.2], [9, 9, 9], 10, [6, 3, 1]),  # remainders .4, .4, .2, one left
        ([98, 1, 1], [9, 9, 9], 4, [2, 1, 1]),  # the minimum of one comes from the largest
        ([98, 1, 1], [9, 9, 9], 2, [2, 0, 0]),  # fewer samples than regions: no minimum
        ([90, 6, 4], [2, 9, 9], 10, [2, 7, 1]),  # capped at 2; what is over goes to the next in weight
        ([90, 4, 6], [2, 9, 3], 10, [2, 5, 3]),  # and on, when that one is full
        ([1, 0, 0], [3, 3, 3], 9, [3, 3, 3]),
        ([1, 0, 0], [3, 3, 3], 5, [2, 2, 1]),  # 5 capped to 3, 2 over to the next, then one for the third
        ([0, 0, 0], [6, 2, 1], 3, [1, 1, 1]),  # no weight at all: by size, 2, .67, .33 and then one for each
        ([0, 0, 0], [6, 2, 1], 9, [6, 2, 1]),
    ],
)
def test_quotas_worked_by_hand(backend, device, mass, size, samples, want):
    density = torch.cat([torch.full((n,), m / n, dtype=torch.float64) for m, n in zip(mass, size, strict=True)])
    region = torch.arange(3).repeat_interleave(torch.tensor(size))
    index = fastsketch.sample_patches(density[None].to(device), samples, region=region[None].to(device), boost=1.0)
    assert list(counts(index, region[None].to(device))[0].values()) == want


def test_one_sample_falls_in_proportion_to_the_weight(backend, device):
    """Quota 1: P(j) = w_j/Σw exactly. The third position, above 1.5 times the mean of 2, counts twice."""
    density = torch.tensor([1.0, 2.0, 4.0, 0.5, 3.0, 0.0, 2.5, 3.0], device=device)
    weights = density.double() * torch.where(density > 3.0, 2, 1)
    images = 20_000
    generator = torch.Generator(device).manual_seed(0)
    index = fastsketch.sample_patches(density.expand(images, 8), 1, generator=generator)
    seen = index.flatten().bincount(minlength=8).cpu().numpy()
    assert seen[5] == 0
    expected = (weights / weights.sum() * images).cpu().numpy()
    keep = expected > 0
    assert stats.chisquare(seen[keep], expected[keep]).pvalue > UNLIKELY


def test_several_samples_are_drawn_one_after_another(backend, device):
    """P(i, j, k) = w_i/W · w_j/(W - w_i) · w_k/(W - w_i - w_j), in the order in which they are returned."""
    weights, images = [1.0, 2.0, 4.0, 0.5, 3.0], 30_000
    generator = torch.Generator(device).manual_seed(1)
    density = torch.tensor(weights, device=device).expand(images, 5)
    index = fastsketch.sample_patches(density, 3, boost=1.0, generator=generator)
    code = (index * torch.tensor([25, 5, 1], device=device)).sum(1)
    seen, expected = [], []
    for draw in itertools.permutations(range(5), 3):
        left, probability = sum(weights), 1.0
        for j in draw:
            probability *= weights[j] / left
            left -= weights[j]
        seen.append(int((code == draw[0] * 25 + draw[1] * 5 + draw[2]).sum()))
        expected.append(probability * images)
    assert sum(seen) == images
    assert stats.chisquare(seen, np.array(expected) * images / sum(expected)).pvalue > UNLIKELY


def test_inclusion_in_regions_equals_a_simulation(backend, device):
    """16 positions in two regions, 6 samples, against numpy's successive drawing without replacement."""
    rng = np.random.default_rng(0)
    density = rng.gamma(1.0, size=16)
    region = np.arange(16) % 2
    weights = np.array([float(w) for w in exact_weights(density.tolist(), 1.5, 2.0)])
    quota = exact_quota([Fraction(w) for w in weights], region.tolist(), 6)
    images, rounds = 20_000, 5_000
    simulated = np.zeros(16)
    for r, n in quota.items():
        members = np.flatnonzero(region == r)
        p = weights[members] / weights[members].sum()
        for _ in range(rounds):
            simulated[rng.choice(members, n, replace=False, p=p, shuffle=False)] += 1
    index = fastsketch.sample_patches(
        torch.from_numpy(density).to(device).expand(images, 16),
        6,
        region=torch.from_numpy(region).to(device).expand(images, 16),
        generator=torch.Generator(device).manual_seed(2),
    )
    got = index.flatten().bincount(minlength=16).cpu().numpy() / images
    want = simulated / rounds
    spread = np.sqrt(want * (1 - want) * (1 / images + 1 / rounds)) + 1e-9
    assert np.abs((got - want) / spread).max() < 4.5  # of 16 normal numbers: exceeded once in ten thousand


def test_no_density_is_sampled_evenly(backend, device):
    """An image without any density, and a region without in an image with some."""
    images = 10_000
    density = torch.zeros(images, 10, device=device)
    index = fastsketch.sample_patches(density, 3, generator=torch.Generator(device).manual_seed(0))
    inclusion = index.flatten().bincount(minlength=10).cpu().numpy() / images
    assert np.abs(inclusion - 0.3).max() < 4.5 * math.sqrt(0.3 * 0.7 / images)

    density[:, 6:] = 1
    region = torch.tensor([0] * 6 + [1] * 4, device=device).expand(images, 10)
    index = fastsketch.sample_patches(density, 5, region=region, generator=torch.Generator(device).manual_seed(1))
    assert (index[:, 0] < 6).all()  # the minimum of one
    assert (index[:, 1:] >= 6).all()
    seen = index[:, 0].bincount(minlength=6).cpu().numpy()
    assert stats.chisquare(seen).pvalue > UNLIKELY


def test_zero_weight_comes_last(backend, device):
    """Within a region a position of density 0 is taken only when nothing else is left, and then evenly."""
    density = torch.tensor([0.0, 1.0, 0.0, 1e-6, 0.0, 1e3], device=device).expand(6000, 6)
    generator = torch.Generator(device).manual_seed(0)
    index = fastsketch.sample_patches(density, 4, generator=generator)
    assert (index[:, :3].sort(1).values == torch.tensor([1, 3, 5], device=device)).all()
    seen = index[:, 3].bincount(minlength=6)[[0, 2, 4]].cpu().numpy()
    assert seen.sum() == 6000
    assert stats.chisquare(seen).pvalue > UNLIKELY


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
def test_one_huge_density(backend, device, dtype):
    density = torch.ones(1, 50, dtype=dtype, device=device)
    density[0, 17] = torch.finfo(dtype).max / 4
    index = fastsketch.sample_patches(density.expand(500, 50), 20)
    assert (index == 17).any(1).all()
    if dtype != torch.float16:
        assert (index[:, 0] == 17).all()  # chosen first but for a chance of 1e-36
    assert (index.sort(1).values.diff() > 0).all()


def test_threshold_and_boost(backend, device):
    """With u = 1/e everywhere the keys are 1/w, so the order is that of the weights; ties to the lower position."""
    density = torch.tensor([[1.5, 0.25, 1.75, 0.5, 1.0, 1.0]], dtype=torch.float64, device=device)  # mean 1
    uniform = torch.full_like(density, math.exp(-1))

    def order(**options) -> list[int]:
        return fastsketch.sample_patches(density, 6, uniform=uniform, **options)[0].tolist()

    assert order() == [2, 0, 4, 5, 3, 1]  # 1.5 itself is not above the threshold
    assert order(threshold=0.75, boost=0.125) == [3, 1, 2, 0, 4, 5]
    assert order(threshold=1.6, boost=0.4) == [0, 4, 5, 2, 3, 1]  # .7 only for 1.75
    assert order(threshold=1.5, boost=0.4) == [0, 4, 5, 2, 3, 1]  # not for 1.5
    assert order(threshold=1.4999, boost=0.4) == [4, 5, 2, 0, 3, 1]
    region = torch.tensor([[0, 0, 1, 0, 0, 0]], device=device)
    # Region 1 holds 1.75 of 6, boosted 3.5 of 7.75; of 2 samples that is 0.58 and 0.90: one. Four times: 7/11.25, 1.24.
    for boost, share in ((1.0, 1.75 / 6), (2.0, 3.5 / 7.75), (4.0, 7 / 11.25)):
        index = fastsketch.sample_patches(density, 2, region=region, boost=boost)
        assert counts(index, region)[0][1] == min(1, round(2 * share))


def test_scale_of_the_density_does_not_matter(backend, device):
    density = torch.rand(3, 40, dtype=torch.float64, device=device)
    uniform = torch.rand(3, 40, device=device)
    want = fastsketch.sample_patches(density, 11, uniform=uniform)
    for factor in (2.0**-40, 1e-30, 1e30):
        assert torch.equal(fastsketch.sample_patches(density * factor, 11, uniform=uniform), want)


@pytest.mark.parametrize("samples", [1, 7, 64, 256])
def test_distinct_grouped_and_in_order(backend, device, samples):
    density = torch.rand(5, 16, 16, device=device)
    region = torch.randint(0, 6, (5, 16, 16), device=device) * 3
    uniform = torch.rand(5, 16, 16, device=device)
    index = fastsketch.sample_patches(density, samples, region=region, uniform=uniform)
    assert index.shape == (5, samples)
    assert index.is_contiguous()
    assert index.min() >= 0
    assert index.max() < 256
    assert (index.sort(1).values.diff() > 0).all()
    d = density.double().flatten(1)
    d = d / d.mean(1, keepdim=True)
    key = -uniform.double().flatten(1).log() / (d * torch.where(d > 1.5, 2, 1))
    regions, keys = region.flatten(1).gather(1, index), key.gather(1, index)
    assert (regions.diff() >= 0).all()
    assert ((keys.diff() >= 0) | (regions.diff() > 0)).all()


def test_all_positions_are_a_permutation(backend, device):
    density, region = torch.rand(3, 5, 7, device=device), torch.randint(0, 3, (3, 5, 7), device=device)
    index = fastsketch.sample_patches(density, 35, region=region)
    assert torch.equal(index.sort(1).values, torch.arange(35, device=device).expand(3, -1))


def test_uniforms_at_the_ends(backend, device):
    density = torch.tensor([[1.0, 3.0, 2.0, 0.0]], device=device)

    def order(*uniform: float) -> list[int]:
        return fastsketch.sample_patches(density, 4, uniform=density.new_tensor([uniform]))[0].tolist()

    assert order(1, 1, 1, 1) == [0, 1, 2, 3]  # all keys are 0: the lower position first
    assert order(0, 0, 0, 0) == [1, 2, 0, 3]  # finite keys, the heaviest first
    assert order(0, 1, 0, 1) == [1, 3, 2, 0]
    assert order(0.999, 0, 0.999, 0) == [2, 0, 1, 3]


def test_reproducible(backend, device):
    density = torch.rand(2, 12, 12, device=device)

    def draw(seed: int) -> Tensor:
        return fastsketch.sample_patches(density, 30, generator=torch.Generator(device).manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    uniform = torch.rand(density.shape, generator=torch.Generator(device).manual_seed(1), device=device)
    assert torch.equal(fastsketch.sample_patches(density, 30, uniform=uniform), draw(1))
    torch.manual_seed(1)
    first, second = (fastsketch.sample_patches(density, 30) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(fastsketch.sample_patches(density, 30), first)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])  # an image's draw is its own


def test_images_do_not_influence_each_other(backend, device):
    density, region = torch.rand(4, 30, device=device), torch.randint(0, 5, (4, 30), device=device)
    region[1] += 900
    uniform = torch.rand(4, 30, device=device)
    together = fastsketch.sample_patches(density, 9, region=region, uniform=uniform)
    for b in range(4):
        one = slice(b, b + 1)
        alone = fastsketch.sample_patches(density[one], 9, region=region[one], uniform=uniform[one])
        assert torch.equal(alone, together[one])


def test_strides_ranks_and_dtypes_do_not_matter(backend, device, restrided):
    density, region = torch.rand(2, 24, device=device), torch.randint(0, 3, (2, 24), device=device)
    uniform = torch.rand(2, 24, device=device)
    want = fastsketch.sample_patches(density, 10, region=region, uniform=uniform)
    for shape in ((2, 24), (2, 4, 6), (2, 2, 3, 4)):
        inputs = [restrided(x.view(shape)) for x in (density, region, uniform)]
        for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
            got = fastsketch.sample_patches(
                inputs[0].requires_grad_(), 10, region=inputs[1].to(dtype), uniform=inputs[2].double()
            )
            assert torch.equal(got, want)
    expanded = [x[:1].expand(3, -1) for x in (density, region, uniform)]
    got = fastsketch.sample_patches(expanded[0], 10, region=expanded[1], uniform=expanded[2])
    assert torch.equal(got, want[:1].expand(3, -1))


def test_largest_boost(backend):
    """Only what is above the threshold is drawn, while there is any: nothing overflows."""
    density = torch.rand(2, 64) + 0.5
    density[:, :9] += 10
    index = fastsketch.sample_patches(density, 9, threshold=2.0, boost=MAX_BOOST)
    assert torch.equal(index.sort(1).values, torch.arange(9).expand(2, -1))


def test_kernel_called_by_itself_refuses_what_it_cannot_count():
    if not hasattr(torch.ops.fastsketch_C, "sample_patches"):
        pytest.skip("the C++ kernels are not built")
    density, uniform = torch.rand(1, 64), torch.rand(1, 64)
    for boost in (1e308, -1.0, NAN):
        with pytest.raises(RuntimeError, match="boost must be"):
            torch.ops.fastsketch_C.sample_patches(density, None, uniform, 8, 1.5, boost)
    with pytest.raises(RuntimeError, match="threshold must be"):
        torch.ops.fastsketch_C.sample_patches(density, None, uniform, 8, NAN, 2.0)


D = torch.ones(2, 3, 4)
NAN, INF = float("nan"), float("inf")


def spoiled(value: float) -> Tensor:
    x = D.clone()
    x[1, 2, 3] = value
    return x


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "density must be a torch.Tensor, got list", {"density": [[1.0]]}),
        (TypeError, "density must be one of float32.* got torch.int64", {"density": D.long()}),
        (ValueError, r"density must be \[B, \*spatial\], not empty, got \[12\]", {"density": D[0].flatten()}),
        (ValueError, r"density must be .* not empty, got \[0, 3, 4\]", {"density": D[:0]}),
        (ValueError, r"density must be .* not empty, got \[2, 3, 0\]", {"density": D[..., :0]}),
        (ValueError, "density must be finite and non-negative, got -1", {"density": spoiled(-1)}),
        (ValueError, "density must be finite and non-negative, got nan", {"density": spoiled(NAN)}),
        (ValueError, "density must be finite and non-negative, got 1.0 to inf", {"density": spoiled(INF)}),
        (ValueError, "density must have a finite sum", {"density": D.double() * 1e308}),
        (TypeError, "num_patches must be an int, got float", {"num_patches": 3.0}),
        (TypeError, "num_patches must be an int, got bool", {"num_patches": True}),
        (ValueError, "num_patches must be 1 to 12, .* got 0", {"num_patches": 0}),
        (ValueError, "num_patches must be 1 to 12, .* got 13", {"num_patches": 13}),
        (TypeError, "region must be one of int64.* got torch.float32", {"region": D}),
        (ValueError, r"region must have shape \[2, 3, 4\], got \[2, 12\]", {"region": D.long().flatten(1)}),
        (ValueError, r"region must lie in \[0, 1024\), got -1 to 1", {"region": spoiled(-1).long()}),
        (ValueError, r"region must lie in \[0, 1024\), got 1 to 1024", {"region": spoiled(1024).long()}),
        (ValueError, "threshold must be non-negative and finite, got -0.5", {"threshold": -0.5}),
        (ValueError, "threshold must be non-negative and finite, got nan", {"threshold": NAN}),
        (ValueError, "threshold must be non-negative and finite, got inf", {"threshold": INF}),
        (ValueError, "boost must be positive and finite, got 0", {"boost": 0.0}),
        (ValueError, "boost must be positive and finite, got inf", {"boost": INF}),
        (ValueError, r"boost must be at most 1e\+30, got 1e\+31", {"boost": 1e31}),
        (TypeError, "uniform must be one of float32.* got torch.int64", {"uniform": D.long()}),
        (ValueError, r"uniform must have shape \[2, 3, 4\], got \[3, 4\]", {"uniform": D[0]}),
        (ValueError, r"uniform must lie in \[0, 1\], got 1.0 to 1.5", {"uniform": spoiled(1.5)}),
        (ValueError, r"uniform must lie in \[0, 1\], got -0.5", {"uniform": spoiled(-0.5)}),
        (ValueError, r"uniform must lie in \[0, 1\], got nan", {"uniform": spoiled(NAN)}),
        (ValueError, "generator is not used when uniform is given", {"uniform": D, "generator": torch.Generator()}),
        (ValueError, "uniform must be on cpu, got meta", {"uniform": D.to("meta")}),
    ],
)
def test_bad_input_is_named(error, message, arguments):
    with pytest.raises(error, match=message):
        fastsketch.sample_patches(**{"density": D, "num_patches": 5, **arguments})


def test_a_number_of_numpy_is_a_number(backend):
    assert fastsketch.sample_patches(D, np.int64(5)).shape == (2, 5)


@pytest.mark.parametrize(
    ("error", "message", "structure_map", "window"),
    [
        (TypeError, "window must be an int, got float", D, 7.0),
        (TypeError, "window must be an int, got NoneType", D, None),
        (ValueError, "window must be odd and positive, got 4", D, 4),
        (ValueError, r"structure_map must be \[B, H, W\], H and W at least 1, got \[2, 3, 0\]", D[..., :0], 7),
    ],
)
def test_bad_density_is_named(error, message, structure_map, window):
    with pytest.raises(error, match=message):
        fastsketch.local_density(structure_map, window)
