"""gather_layers and place_positions: against indexing and a loop, and what they refuse."""

import numpy as np
import pytest
import torch

import fastsketch
from fastsketch.ops.gather import gather_layers as gather_op
from fastsketch.ops.placing import place_positions as place_op

KERNELS = ("gather_layers", "place_positions")
SHAPES = [(3, 14, 14), (40, 8, 8), (16, 4, 4), (7, 33), (5, 3, 4, 2)]


def layers(dtype=torch.float32):
    features = [torch.randn(2, *shape).to(dtype) for shape in SHAPES]
    features[1] = features[1].to(memory_format=torch.channels_last)
    features[2] = features[2][:, ::2]
    index = [torch.randint(0, x.shape[2:].numel(), (2, 9)) for x in features]
    index[3][:, 1] = index[3][:, 0]  # a position twice
    return features, index


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_gather_layers(backend, dtype):
    features, index = layers(dtype)
    for x, i, patches in zip(features, index, fastsketch.gather_layers(features, index), strict=True):
        wanted = torch.stack([x[b].flatten(1)[:, i[b]].T for b in range(2)])
        assert patches.dtype == dtype
        assert patches.is_contiguous()
        assert torch.equal(patches, wanted)


def test_gather_layers_has_no_graph_and_takes_one_index_for_all(backend):
    features, index = layers()
    features[0].requires_grad_()
    shared = [i[0].int() for i in index]
    patches = fastsketch.gather_layers(features, shared)
    assert not any(x.requires_grad for x in patches)
    for x, i, got in zip(features, shared, patches, strict=True):
        assert torch.equal(got, fastsketch.gather_patches(x, i))


def test_gather_layers_with_nothing_to_gather(backend):
    features, index = layers()
    assert [x.shape for x in fastsketch.gather_layers(features, [i[:, :0] for i in index])] == [
        (2, 0, x.shape[1]) for x in features
    ]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda f, i: i.pop(), ValueError, "as many tensors"),
        (lambda f, i: (f.clear(), i.clear()), ValueError, "at least one"),
        (lambda f, i: i[1].fill_(64), ValueError, r"index must lie in \[0, 64\)"),
        (lambda f, i: i[1].fill_(-1), ValueError, r"index must lie in \[0, 64\)"),
        (lambda f, i: f.__setitem__(0, f[0].int()), TypeError, "features must be one of"),
        (lambda f, i: i.__setitem__(0, i[0][:1]), ValueError, "index must be"),
    ],
)
def test_gather_layers_refuses(backend, change, error, match):
    features, index = layers()
    change(features, index)
    with pytest.raises(error, match=match):
        fastsketch.gather_layers(features, index)


@pytest.mark.parametrize("differentiable", [False, True])
def test_gather_layers_of_a_single_tensor(backend, differentiable):
    features, index = layers()
    with pytest.raises(TypeError, match="features must be a list of tensors, one a layer, got Tensor"):
        fastsketch.gather_layers(features[0], index[:2], differentiable=differentiable)
    with pytest.raises(TypeError, match="index must be a list of tensors, one a layer, got Tensor"):
        fastsketch.gather_layers(features[:2], index[0], differentiable=differentiable)


SIZES, BORDERS = [(22, 22), (16, 16), (8, 9), (4, 4), (2, 3)], [3, 0, 0, 0, 0]


def test_places_lie_in_their_blocks(backend):
    grid, index = (4, 4), torch.arange(16).expand(3, 16).contiguous()
    uniform = torch.rand(5, 2, 3, 16)
    uniform[:, :, 0], uniform[:, :, 1, :2] = 0.0, 1.0
    placed = fastsketch.place_positions(index, grid, SIZES, borders=BORDERS, uniform=uniform)
    for layer, ((height, width), border) in enumerate(zip(SIZES, BORDERS, strict=True)):
        for image in range(3):
            for position in range(16):
                coordinates = []
                for axis, (cell, side) in enumerate(((position // 4, height), (position % 4, width))):
                    inner = side - 2 * border
                    first, last = cell * inner // 4, max((cell + 1) * inner // 4, cell * inner // 4 + 1)
                    u = uniform[layer, axis, image, position].item()
                    coordinates.append(border + min(first + int(u * (last - first)), last - 1))
                assert placed[layer][image, position] == coordinates[0] * width + coordinates[1]


def test_places_are_the_same_in_every_implementation_and_drawn_from_the_generator(backend):
    index = torch.randint(0, 64 * 64, (2, 300))
    sizes = [(262, 262), (256, 256), (128, 128)]

    def draw():
        generator = torch.Generator().manual_seed(3)
        return fastsketch.place_positions(index, (64, 64), sizes, borders=[3, 0, 0], generator=generator)

    got = draw()
    with fastsketch.use_backend("reference"):
        assert all(torch.equal(a, b) for a, b in zip(got, draw(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((torch.zeros(2, 3), (4, 4), [(8, 8)]), {}, TypeError, "index must be one of int64"),
        ((torch.zeros(2, dtype=torch.int64), (4, 4), [(8, 8)]), {}, ValueError, r"index must be \[B, S\]"),
        ((torch.zeros(2, 3, dtype=torch.int64), (4, 4), [(8, 8)]), {"borders": [4]}, ValueError, "leaves nothing"),
        ((torch.zeros(2, 3, dtype=torch.int64), (4, 4), [(8, 8)]), {"borders": []}, ValueError, "one number for each"),
        (
            (torch.zeros(2, 3, dtype=torch.int64), (4, 4), [(8, 8)]),
            {"uniform": torch.zeros(2, 2, 2, 3)},
            ValueError,
            "uniform must have shape",
        ),
        (
            (torch.zeros(2, 3, dtype=torch.int64), (4, 4), [(8, 8)]),
            {"uniform": torch.zeros(1, 2, 2, 3), "generator": torch.Generator()},
            ValueError,
            "leave one of them out",
        ),
    ],
)
def test_place_positions_refuses(arguments, options, error, match):
    with pytest.raises(error, match=match):
        fastsketch.place_positions(*arguments, **options)


PLACES = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"grid": (4,)}, ValueError, "grid must be a pair of ints, height and width, got 1 of them"),
        ({"grid": (4, 0)}, ValueError, r"grid must be positive, got \(4, 0\)"),
        ({"grid": (4, 4.0)}, TypeError, "grid must hold ints, got 4.0"),
        ({"grid": 4}, TypeError, "grid must be a pair of ints, height and width, got int"),
        ({"sizes": [(8, 8, 8)]}, ValueError, r"sizes\[0\] must be a pair of ints, height and width, got 3 of them"),
        ({"sizes": [(8, 8), (0, 8)]}, ValueError, r"sizes\[1\] must be positive, got \(0, 8\)"),
        ({"sizes": [(8, True)]}, TypeError, r"sizes\[0\] must hold ints, got True"),
        ({"sizes": (8, 8)}, TypeError, r"sizes\[0\] must be a pair of ints, height and width, got int"),
        ({"sizes": 8}, TypeError, "sizes must be a list of pairs, height and width, got int"),
        ({"borders": [0.5]}, TypeError, "borders must hold ints, got 0.5"),
        ({"borders": 1}, TypeError, "borders must be a list of ints, one a size, got int"),
        ({"index": PLACES - 1}, ValueError, r"index must lie in \[0, 16\), the cells of grid; got -1 to -1"),
        ({"index": PLACES + 16}, ValueError, r"index must lie in \[0, 16\), the cells of grid; got 16 to 16"),
        ({"uniform": torch.full((1, 2, 2, 3), 1.01)}, ValueError, r"uniform must lie in \[0, 1\], got 1.0"),
        ({"uniform": torch.full((1, 2, 2, 3), -0.1)}, ValueError, r"uniform must lie in \[0, 1\], got -0.1"),
        ({"uniform": torch.full((1, 2, 2, 3), torch.nan)}, ValueError, r"uniform must lie in \[0, 1\], got nan"),
    ],
)
def test_place_positions_names_what_is_wrong(backend, change, error, match):
    arguments = {"index": PLACES, "grid": (4, 4), "sizes": [(8, 8)], **change}
    with pytest.raises(error, match=match):
        fastsketch.place_positions(**arguments)


def test_place_positions_takes_other_ints_and_nothing(backend):
    sizes = [torch.zeros(8, 8).shape, list(np.array([8, 8]))]
    assert [x.shape for x in fastsketch.place_positions(PLACES + 15, np.array([4, 4]), sizes)] == [(2, 3)] * 2
    assert fastsketch.place_positions(PLACES, (4, 4), []) == []
    assert [x.shape for x in fastsketch.place_positions(PLACES[:, :0], (4, 4), [(8, 8)])] == [(2, 0)]


def test_place_positions_looks_at_no_values_where_there_are_none(backend):
    meta = fastsketch.place_positions(PLACES.to("meta"), (4, 4), [(8, 8)], uniform=torch.zeros(1, 2, 2, 3).to("meta"))
    assert [x.shape for x in meta] == [(2, 3)]
    compiled = torch.compile(fastsketch.place_positions, backend="aot_eager", fullgraph=True, dynamic=True)
    for side in (8, 9, 10):  # symbolic from the second call on
        uniform = torch.rand(1, 2, 2, 3)
        got = compiled(PLACES + 3, (side // 2, 4), [(side, side)], uniform=uniform)
        want = fastsketch.place_positions(PLACES + 3, (side // 2, 4), [(side, side)], uniform=uniform)
        assert torch.equal(got[0], want[0])
    with pytest.raises(ValueError, match="index must lie in"):
        compiled(PLACES - 1, (4, 4), [(8, 8)], uniform=torch.rand(1, 2, 2, 3))


def test_opcheck_and_compile(backend):
    features, index = layers()
    torch.library.opcheck(gather_op, (features, index))
    places = torch.randint(0, 16, (2, 9))
    uniform = torch.rand(2, 2, 2, 9)
    torch.library.opcheck(place_op, (places, [4, 4], [8, 8, 22, 22], [0, 3], uniform))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(features, index, places, uniform):
        placed = fastsketch.place_positions(places, (4, 4), [(8, 8), (22, 22)], borders=[0, 3], uniform=uniform)
        return fastsketch.gather_layers(features, index), placed

    gathered, placed = compiled(features, index, places, uniform)
    assert all(torch.equal(a, b) for a, b in zip(gathered, fastsketch.gather_layers(features, index), strict=True))
    wanted = fastsketch.place_positions(places, (4, 4), [(8, 8), (22, 22)], borders=[0, 3], uniform=uniform)
    assert all(torch.equal(a, b) for a, b in zip(placed, wanted, strict=True))
