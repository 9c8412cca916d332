"""sample_patches in CUDA C++ on a GPU: the reference's choice, captured, unsynchronised, repeatable."""

import pytest
import torch
from torch import Tensor

import fastsketch
from fastsketch import _backend, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def cuda_by_name(monkeypatch):
    """The implementation asked for by name, so that nothing else can run; values unchecked, as in training."""
    if reason := _backend._why_not("cuda", "sample_patches"):
        pytest.fail(reason)  # there is a GPU: a kernel that is not there is a failure
    monkeypatch.delenv("FASTSKETCH_CHECK", raising=False)
    with _backend.use_backend("cuda"):
        yield


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def regions(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(high))


def reference_choice(density, region, uniform, samples: int, threshold=1.5, boost=2.0) -> Tensor:
    """On the CPU, whose sums have a fixed order."""
    host = (x if x is None else x.cpu() for x in (density, region, uniform))
    return reference.sample_patches(*host, samples, threshold, boost)


def check(density: Tensor, region: Tensor | None, uniform: Tensor, samples: int) -> None:
    inputs = [x if x is None else x.to(DEVICE) for x in (density, region, uniform)]
    got = fastsketch.sample_patches(inputs[0], samples, region=inputs[1], uniform=inputs[2])
    assert torch.equal(got.cpu(), reference_choice(density, region, uniform, samples))


@pytest.mark.parametrize(
    ("images", "positions", "ids", "samples"),
    [
        (1, 1, 1, 1),
        (8, 4096, 4, 256),
        (3, 1000, 0, 100),
        (2, 16384, 30, 1024),
        (2, 4096, 1024, 4096),  # every position
        (2, 30000, 1024, 4000),  # selection with four-bit digits
        (2, 9000, 3, 3500),  # with eight
        (2, 30000, 30, 5000),  # more than is sorted at once
        (1, 2**20, 4, 256),
        (1, 2**20, 1000, 4096),
        (1, 2**20, 4, 100_000),
        (5000, 9, 3, 4),  # several groups of images
    ],
)
def test_equals_the_reference(images, positions, ids, samples):
    region = regions(ids, images, positions) if ids else None
    check(rand(images, positions).pow(3), region, rand(images, positions, seed=1).double(), samples)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("integer", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_types(dtype, integer):
    check(rand(2, 5000).to(dtype), regions(5, 2, 5000).to(integer), rand(2, 5000, seed=1).to(dtype), 300)


def test_equal_keys_go_to_the_lower_position():
    check(torch.ones(2, 9000), regions(3, 2, 9000), torch.full((2, 9000), 0.5), 3500)
    check(torch.zeros(2, 9000), regions(3, 2, 9000), torch.ones(2, 9000), 20)


def test_heavy_positions_need_a_second_pass():
    density = torch.zeros(2, 50_000)
    density[:, :9] = 1
    density[:, 7] = 1e9
    check(density, regions(3, 2, 50_000), rand(2, 50_000), 200)


def test_any_strides():
    density, region, uniform = rand(4, 64, 128), regions(4, 64, 64), rand(64, 4, 64, seed=1)
    inputs = (density[:, :, ::2], region.expand(4, 64, 64), uniform.transpose(0, 1))
    got = fastsketch.sample_patches(
        inputs[0].to(DEVICE),
        256,
        region=region.to(DEVICE).expand(4, 64, 64),
        uniform=uniform.to(DEVICE).transpose(0, 1),
    )
    assert torch.equal(got.cpu(), reference_choice(*(x.flatten(1) for x in inputs), 256))


def test_offsets_beyond_32_bits():
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free memory")
    rows, positions = 2200, 2**20
    storage = torch.empty(rows, positions, dtype=torch.bfloat16, device=DEVICE)
    density = storage[:: rows - 1]  # the second image begins beyond 2^31 elements
    values = rand(2, positions).bfloat16()
    density.copy_(values)
    uniform = rand(2, positions, seed=1)
    got = torch.ops.fastsketch_C.sample_patches(density, None, uniform.to(DEVICE), 300, 1.5, 2.0)
    assert torch.equal(got.cpu(), reference_choice(values, None, uniform, 300))


@pytest.mark.parametrize("samples", [256, 5000])
def test_the_same_bits_in_every_run(samples):
    inputs = rand(4, 20_000).pow(6).to(DEVICE), regions(1024, 4, 20_000).to(DEVICE), rand(4, 20_000, seed=1).to(DEVICE)
    first = fastsketch.sample_patches(inputs[0], samples, region=inputs[1], uniform=inputs[2])
    for _ in range(20):
        again = fastsketch.sample_patches(inputs[0], samples, region=inputs[1], uniform=inputs[2])
        assert torch.equal(first, again)


@pytest.mark.parametrize("samples", [256, 5000])
def test_never_waits_for_the_device(samples):
    density, region, uniform = (x.to(DEVICE) for x in (rand(2, 9000), regions(4, 2, 9000), rand(2, 9000, seed=1)))
    fastsketch.sample_patches(density, samples, region=region, uniform=uniform)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fastsketch.sample_patches(density, samples, region=region, uniform=uniform)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("samples", [256, 5000])
def test_captured_in_a_graph_and_replayed_on_other_data(samples):
    """Other regions in number and size, and a density that needs a second pass: nothing of the data is in the graph."""
    first = rand(2, 9000), regions(4, 2, 9000), rand(2, 9000, seed=1)
    peaked = torch.full((2, 9000), 1e-6)
    peaked[:, :3] = 1e6
    second = peaked, regions(900, 2, 9000), rand(2, 9000, seed=2)
    buffers = [x.to(DEVICE) for x in first]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        fastsketch.sample_patches(buffers[0], samples, region=buffers[1], uniform=buffers[2])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        index = fastsketch.sample_patches(buffers[0], samples, region=buffers[1], uniform=buffers[2])
    for inputs in (first, second, first):
        for buffer, values in zip(buffers, inputs, strict=True):
            buffer.copy_(values)
        graph.replay()
        assert torch.equal(index.cpu(), reference_choice(*inputs, samples))


def test_runs_on_the_current_stream():
    density, uniform = rand(8, 2**18).to(DEVICE), rand(8, 2**18, seed=1).to(DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        changed = density * 0
        changed[:, :1000] = 1
        index = fastsketch.sample_patches(changed, 500, uniform=uniform)
    stream.synchronize()
    assert index.max() < 1000


def test_compiles_whole_and_passes_opcheck():
    density, region, uniform = (x.to(DEVICE) for x in (rand(2, 900), regions(4, 2, 900), rand(2, 900, seed=1)))
    compiled = torch.compile(fastsketch.sample_patches, fullgraph=True)
    want = fastsketch.sample_patches(density, 50, region=region, uniform=uniform)
    assert torch.equal(compiled(density, 50, region=region, uniform=uniform), want)
    torch.library.opcheck(torch.ops.fastsketch.sample_patches.default, (density, region, uniform, 50, 1.5, 2.0))


def test_memory_is_the_candidates_at_most():
    """12 bytes a position and 56 KiB of tables an image, whatever the data."""
    density, region, uniform = (x.to(DEVICE) for x in (rand(1, 2**20), regions(4, 1, 2**20), rand(1, 2**20, seed=1)))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fastsketch.sample_patches(density, 256, region=region, uniform=uniform)
    assert torch.cuda.max_memory_allocated() - before < 12 * 2**20 + 2**18


def test_values_nobody_checked_stay_in_bounds():
    density, uniform, region = rand(1, 500), rand(1, 500, seed=1), regions(3, 1, 500)
    density[0, 3], density[0, 4], density[0, 5] = float("nan"), float("inf"), -1e30
    uniform[0, 6], uniform[0, 7], uniform[0, 8] = float("nan"), -1, 2
    region[0, :2] = torch.tensor([-5, 2**40])
    index = fastsketch.sample_patches(
        density.to(DEVICE), 60, region=region.to(DEVICE), uniform=uniform.to(DEVICE)
    ).cpu()
    assert 0 <= index.min() <= index.max() < 500
    assert index.unique().numel() == 60


def test_too_many_positions_are_refused_by_name_only():
    density = torch.ones(1, 2**20 + 1, device=DEVICE)
    with pytest.raises(ValueError, match="at most 1048576 positions an image, got 1048577"):
        fastsketch.sample_patches(density, 5)
    with _backend.use_backend(None):
        assert fastsketch.sample_patches(density, 5).shape == (1, 5)
