"""The kernels that serve several layers in one launch, in Triton's interpreter: gather, and placement of positions."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fastsketch import triton as kernels
from fastsketch.triton import gather, launch

pytestmark = pytest.mark.interpret

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((3, 9, 11), (70, 6, 8), (16, 48), (5, 3, 4, 4))
"""[C, *spatial]: a picture, channels in two blocks, one and three spatial dimensions."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layers_of(batch: int, samples: int, dtype=torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    features = [torch.randn(batch, *shape, generator=generator()).to(dtype) for shape in SHAPES]
    index = [torch.randint(0, 48, (batch, samples), generator=generator(n)) for n in range(len(SHAPES))]
    return features, index


def gathered(features: Tensor, index: Tensor) -> Tensor:
    """By the definition: patches[b, s, c] = features[b, c, index[b, s]]."""
    flat = features.flatten(2)
    return torch.stack([flat[b][:, index[b]].T for b in range(len(flat))])


@pytest.fixture
def launches(monkeypatch) -> list:
    """The kernels launched so far."""
    made, run = [], launch.run
    monkeypatch.setattr(launch, "run", lambda kernel, *rest: (made.append(kernel), run(kernel, *rest)))
    return made


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_layers_of_any_shape_in_one_launch(dtype, launches):
    features, index = layers_of(2, 19, dtype)
    got = kernels.gather_layers(features, index)
    assert len(launches) == 1
    for g, x, i in zip(got, features, index, strict=True):
        assert g.is_contiguous()
        assert torch.equal(g, gathered(x, i))


def test_layers_in_any_strides(restrided, launches):
    """Sliced, channels last, expanded over channels and over images; one index for the whole batch."""
    features, index = layers_of(2, 19)
    features[0] = restrided(features[0])
    features[1] = features[1].to(memory_format=torch.channels_last)
    features[2] = features[2][:, :1].expand(-1, 16, -1)
    features[3] = features[3][:1].expand(2, -1, -1, -1, -1)
    index = [restrided(index[0]), index[1], index[0][:1].expand(2, -1), index[3].int().long()]
    for g, x, i in zip(kernels.gather_layers(features, index), features, index, strict=True):
        assert torch.equal(g, gathered(x, i))
    assert len(launches) == 1


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (gather.MOST_LAYERS, 1), (gather.MOST_LAYERS + 1, 2)])
def test_more_layers_take_more_launches(count, expected, launches):
    features = [torch.randn(1, 4, 10, generator=generator(n)) for n in range(count)]
    index = [torch.randint(0, 10, (1, 3), generator=generator(n)) for n in range(count)]
    got = kernels.gather_layers(features, index)
    assert len(launches) == expected
    assert all(torch.equal(g, gathered(x, i)) for g, x, i in zip(got, features, index, strict=True))


def test_a_position_outside_its_layer_reads_nan():
    features = [torch.randn(1, 4, 10), torch.randn(1, 4, 20)]
    got = kernels.gather_layers(features, [torch.tensor([[15, 2]])] * 2)
    assert got[0][0, 0].isnan().all()
    assert torch.equal(got[1], gathered(features[1], torch.tensor([[15, 2]])))
    assert torch.equal(got[0][0, 1], features[0][0, :, 2])


def test_layers_of_float64_and_no_positions_go_to_the_reference(launches):
    features, index = layers_of(2, 5)
    doubles = [x.double() for x in features]
    for g, x, i in zip(kernels.gather_layers(doubles, index), doubles, index, strict=True):
        assert torch.equal(g, gathered(x, i))
    none = kernels.gather_layers(features, [i[:, :0] for i in index])
    assert [tuple(x.shape) for x in none] == [(2, 0, shape[0]) for shape in SHAPES]
    assert not launches


def placed(index: Tensor, grid: Sequence[int], sizes, borders, uniform: Tensor) -> list[Tensor]:
    """By the definition, one position at a time in Python's integers."""
    result = []
    for layer, (size, border) in enumerate(zip(sizes, borders, strict=True)):
        out = torch.empty_like(index)
        for b, s in torch.cartesian_prod(*map(torch.arange, index.shape)).tolist():
            place = divmod(index[b, s].item(), grid[1])
            at = []
            for axis in range(2):
                cells = size[axis] - 2 * border
                first = place[axis] * cells // grid[axis]
                last = max((place[axis] + 1) * cells // grid[axis], first + 1)
                step = int((uniform[layer, axis, b, s] * torch.tensor(last - first)).item())
                at.append(min(first + step, last - 1) + border)
            out[b, s] = at[0] * size[1] + at[1]
        result.append(out)
    return result


GRID = (6, 7)
SIZES = ((6, 7), (30, 35), (27, 25), (3, 2), (1, 40))
BORDERS = (0, 0, 3, 0, 0)
"""The grid's own, a multiple, no multiple with a border, coarser, and a line."""


@pytest.mark.parametrize("images", [3, 1])
def test_positions_on_finer_and_coarser_grids_in_one_launch(launches, images):
    index = torch.randint(0, 42, (images, 50), generator=generator())
    uniform = torch.rand(len(SIZES), 2, images, 50, generator=generator(1))
    got = kernels.place_positions(index, GRID, SIZES, BORDERS, uniform)
    assert len(launches) == 1
    for g, want, size in zip(got, placed(index, GRID, SIZES, BORDERS, uniform), SIZES, strict=True):
        assert g.dtype == torch.int64
        assert g.is_contiguous()
        assert torch.equal(g, want)
        assert g.min() >= 0
        assert g.max() < size[0] * size[1]
    assert torch.equal(got[0], index)  # a cell of its own grid holds one place only


def test_uniforms_at_both_ends_stay_inside():
    """1 is not drawn, but a uniform just below it may be rounded up in the product."""
    index = torch.arange(42)[None]
    for u in (0.0, 1.0 - 2.0**-24, 1.0):
        uniform = torch.full((len(SIZES), 2, 1, 42), u)
        for g, want in zip(
            kernels.place_positions(index, GRID, SIZES, BORDERS, uniform),
            placed(index, GRID, SIZES, BORDERS, uniform),
            strict=True,
        ):
            assert torch.equal(g, want)


def test_placement_in_any_strides_and_of_many_layers(restrided, launches):
    layers = gather.MOST_LAYERS + 2
    index = torch.randint(0, 42, (2, 9), generator=generator())
    uniform = torch.rand(layers, 2, 2, 9, generator=generator(1))
    sizes, borders = [(30 + n, 35) for n in range(layers)], [0] * layers
    want = kernels.place_positions(index, GRID, sizes, borders, uniform)
    assert len(launches) == 2
    got = kernels.place_positions(restrided(index), GRID, sizes, borders, restrided(uniform))
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    assert all(torch.equal(w, p) for w, p in zip(want, placed(index, GRID, sizes, borders, uniform), strict=True))
    expanded = kernels.place_positions(index[:1].expand(2, -1), GRID, sizes, borders, uniform)
    assert all(torch.equal(g[0], w[0]) for g, w in zip(expanded, want, strict=True))


def test_no_positions_are_placed_nowhere(launches):
    got = kernels.place_positions(torch.empty(2, 0, dtype=torch.int64), GRID, SIZES, BORDERS, torch.empty(5, 2, 2, 0))
    assert [tuple(x.shape) for x in got] == [(2, 0)] * 5
    assert not launches
