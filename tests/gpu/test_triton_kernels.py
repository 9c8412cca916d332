"""The Triton kernels on a GPU: against float64, captured, compiled, repeatable, beyond 2^31 elements.

The operators' own tests run on a GPU too: FASTSKETCH_TEST_DEVICE=cuda python -m pytest tests/reference -k triton
"""

import pytest
import torch
from torch import Tensor

import fastsketch
from fastsketch import _backend, reference
from fastsketch.trial import cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = torch.device("cuda")
EPS = torch.finfo(torch.float32).eps
NEGATIVES = ("image", "same_region", "other_regions")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNIT = {torch.float32: 32 * EPS, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
"""Error of a gradient relative to the largest: sums in float32 of three tf32 products; weights and results rounded."""


@pytest.fixture(autouse=True)
def triton_by_name(monkeypatch):
    """The implementation asked for by name; values unchecked and float32 at its default, as in training."""
    if reason := _backend._why_not("triton", "patch_nce_forward"):
        pytest.fail(reason)  # there is a GPU: a kernel that is not there is a failure
    monkeypatch.delenv("FASTSKETCH_CHECK", raising=False)
    monkeypatch.delenv("FASTSKETCH_FP32", raising=False)
    with _backend.use_backend("triton"):
        yield


def randn(*shape: int, dtype=torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return (torch.randn(shape, generator=generator, device=DEVICE) * scale).to(dtype)


def nce(module, query, key, region, grad, negatives="image", normalize=True, temperature=0.07) -> list[Tensor]:
    loss, *saved = module.patch_nce_forward(query, key, region, temperature, negatives, normalize)
    grads = module.patch_nce_backward(
        grad, query, key, region, *saved, temperature, negatives, normalize, need_query=True, need_key=True
    )
    return [loss, *grads]


def kernels():
    from fastsketch import triton

    return triton


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    error, size = (got.double() - want).abs().max().item(), max(want.abs().max().item(), 1e-30)
    assert got.isfinite().all()
    assert error <= tolerance * size, f"error {error:.3g} of {size:.3g}, allowed {tolerance:.3g} of it"


CASES = [
    *(((5, 256, 256), normalize, negatives) for normalize in (False, True) for negatives in NEGATIVES),
    *((shape, True, "same_region") for shape in [(2, 77, 45), (2, 70, 128), (1, 1500, 256), (1, 130, 320)]),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("shape", "normalize", "negatives"), CASES, ids=str)
def test_patch_nce_against_float64(shape, normalize, negatives, dtype):
    """The method's own shape; ragged; the large tile with norms apart; rows wider than a tile."""
    query, key = (randn(*shape, dtype=dtype, seed=s, scale=1 if normalize else 0.1) for s in (1, 2))
    region = None if negatives == "image" else torch.randint(0, 4, shape[:2], device=DEVICE)
    grad = randn(*shape[:2], seed=3)
    got = nce(kernels(), query, key, region, grad, negatives, normalize)
    want = nce(reference, query.double(), key.double(), region, grad.double(), negatives, normalize)
    torch.testing.assert_close(got[0].double(), want[0], rtol=64 * EPS, atol=64 * EPS * 15)  # logits up to 15
    for g, w in zip(got[1:], want[1:], strict=True):
        close(g, w, UNIT[dtype])


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32x3", 64 * EPS), ("ieee", 64 * EPS), ("tf32", 2.0**-8)])
def test_precisions_of_float32(precision, tolerance, monkeypatch):
    monkeypatch.setenv("FASTSKETCH_FP32", precision)
    query, key, grad = randn(5, 256, 256, seed=1), randn(5, 256, 256, seed=2), randn(5, 256)
    got = nce(kernels(), query, key, None, grad)
    want = nce(reference, query.double(), key.double(), None, grad.double())
    for g, w in zip(got, want, strict=True):
        close(g, w, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_queries_without_negatives_give_exactly_nothing(dtype):
    query, key, grad = randn(2, 300, 256, dtype=dtype, seed=1), randn(2, 300, 256, dtype=dtype, seed=2), randn(2, 300)
    region = torch.arange(300, device=DEVICE).expand(2, -1) // 2 * 2
    region = torch.where(region < 200, region, torch.arange(300, device=DEVICE))  # the last hundred stand alone
    loss, *grads = nce(kernels(), query, key, region, grad, "same_region")
    assert (loss[:, 200:] == 0).all()
    assert all((g[:, 200:] == 0).all() for g in grads)
    assert (loss[:, :200] > 0).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", [(2, 4096, 32), (1, 1000, 45), (1, 300, 256), (1, 130, 320)], ids=str)
def test_attention_statistics_against_float64(shape, dtype):
    query, key = randn(*shape, dtype=dtype, seed=1), randn(*shape, dtype=dtype, seed=2)
    grads, scale = (randn(*shape[:2], seed=3), randn(*shape[:2], seed=4)), shape[-1] ** -0.5

    def both(module, q, k, grad_received, grad_entropy):
        received, entropy, lse = module.attention_statistics_forward(q, k, scale)
        back = module.attention_statistics_backward(grad_received, grad_entropy, q, k, entropy, lse, scale)
        return [received, entropy, *back]

    got = both(kernels(), query, key, *grads)
    want = both(reference, query.double(), key.double(), *(g.double() for g in grads))
    for number, (g, w) in enumerate(zip(got, want, strict=True)):
        close(g, w, 64 * EPS if number < 2 else 2 * UNIT[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_gather_and_tap(dtype):
    """The trial's own case, with more positions and a narrower bound."""
    cases.gather_and_tap(kernels(), DEVICE, dtype, UNIT[dtype], samples=300)


def loss_path(features: Tensor, density: Tensor, uniform: Tensor, head: torch.nn.Linear) -> Tensor:
    """Sample, tap, project, compare: what a training step does for a layer, sampling included."""
    region = (density > 0.5).long() + (density > 0.8).long()
    index = fastsketch.sample_patches(density, 256, region=region, uniform=uniform)
    same, patches = fastsketch.tap_patches(features, index)
    query = head(patches)
    loss = fastsketch.patch_nce(query, query.detach().roll(1, -1), normalize=True)
    received, entropy = fastsketch.attention_statistics(query, query)
    return loss + (same * same).mean() + received.square().mean() + entropy.mean()


def path_inputs():
    head = torch.nn.Linear(64, 32, device=DEVICE)
    density, uniform = (torch.rand(2, 32 * 32, device=DEVICE) for _ in range(2))
    return randn(2, 64, 32, 32).requires_grad_(), density, uniform, head


LAYERS = ((3, (70, 70)), (16, (64, 64)), (130, (32, 32)), (5, (100,)))
"""Channels and sizes."""


def gathered(features: Tensor, index: Tensor) -> Tensor:
    """patches[b, s, c] = features[b, c, index[b, s]]."""
    flat = features.flatten(2)
    return torch.stack([flat[b][:, index[b]].T for b in range(len(flat))])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("count", [len(LAYERS), 3 * len(LAYERS)])
def test_layers_gathered_in_one_launch(count, dtype):
    layers = [LAYERS[n % len(LAYERS)] for n in range(count)]  # above `MOST_LAYERS` in two launches
    features = [randn(2, channels, *size, dtype=dtype, seed=n) for n, (channels, size) in enumerate(layers)]
    features[1] = features[1].to(memory_format=torch.channels_last)
    index = [torch.randint(0, 100, (2, 300), device=DEVICE) for _ in layers]
    for got, x, i in zip(kernels().gather_layers(features, index), features, index, strict=True):
        assert got.is_contiguous()
        assert torch.equal(got, gathered(x, i))


@pytest.mark.parametrize("held", [False, True])
def test_tap_writes_into_the_arriving_gradient_where_nothing_else_holds_it(monkeypatch, held):
    from fastsketch.ops import gather

    written, kept = [], []

    def find(name: str, device: torch.device):
        return lambda *args: written.append(args[0].data_ptr()) or kernels().tap_patches_add_(*args)

    monkeypatch.setattr(gather._backend, "optional_kernel", find)
    x, weight = randn(2, 3, 4, 4).requires_grad_(), randn(2, 4, 3, seed=1)
    index = torch.tensor([[0, 3, 3, 7], [1, 2, 5, 15]], device=DEVICE)
    features, patches = fastsketch.tap_patches(x, index)
    loss = features.relu().square().sum() + (patches * weight).sum()
    if held:
        features.register_hook(lambda grad: kept.append(grad))
    loss.backward()
    assert len(written) == (not held)
    plain = x.detach().requires_grad_()
    rows = plain.flatten(2).gather(2, index[:, None].expand(-1, 3, -1)).mT
    (plain.relu().square().sum() + (rows * weight).sum()).backward()
    torch.testing.assert_close(x.grad, plain.grad)
    assert all(torch.equal(grad, 2 * x.detach().relu()) for grad in kept)


def test_layers_are_placed_and_gathered_in_a_graph_without_waiting():
    """Two launches for all layers, replayed on other data; every place lies in the block that its cell covers."""
    sizes, borders = [(70, 70), (64, 64), (32, 32), (8, 8)], [3, 0, 0, 0]
    features = [randn(2, 16, *size) for size in sizes]
    index = torch.randint(0, 1024, (2, 300), device=DEVICE)
    uniform = torch.rand(4, 2, 2, 300, device=DEVICE)

    def run() -> tuple[list[Tensor], list[Tensor]]:
        places = kernels().place_positions(index, (32, 32), sizes, borders, uniform)
        return places, kernels().gather_layers(features, places)

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        places, patches = run()
    for _ in range(2):
        index.copy_(torch.randint(0, 1024, index.shape))
        uniform.uniform_()
        uniform[0, 0, 0, 0] = 1  # which must stay inside
        graph.replay()
        for x, place, patch, size, border in zip(features, places, patches, sizes, borders, strict=True):
            scale = (size[0] - 2 * border) / 32
            cells = place // size[1] - border, place % size[1] - border
            for cell, drawn in zip(cells, (index // 32, index % 32), strict=True):
                coarse, fine = (drawn, cell) if scale >= 1 else (cell, drawn)
                assert torch.equal((fine / max(scale, 1 / scale)).floor().long(), coarse)
            assert torch.equal(patch, gathered(x, place))


def test_autotuning_keeps_a_tile_and_stays_right(monkeypatch):
    from fastsketch.triton import autotune

    monkeypatch.setenv("FASTSKETCH_AUTOTUNE", "1")
    autotune.forget()
    query, key, grad = (randn(2, 300, 256, dtype=torch.bfloat16, seed=s) for s in (1, 2, 3))
    grad = grad[..., 0].float().contiguous()
    first = nce(kernels(), query, key, None, grad)
    known = dict(autotune._winners)
    assert known
    want = nce(reference, query.double(), key.double(), None, grad.double())
    for g, w in zip(first[1:], want[1:], strict=True):
        close(g, w, UNIT[torch.bfloat16])
    assert all(torch.equal(a, b) for a, b in zip(first, nce(kernels(), query, key, None, grad), strict=True))
    assert autotune._winners == known
    autotune.forget()


def step(features, density, uniform, head) -> list[Tensor]:
    loss = loss_path(features, density, uniform, head)
    return [loss, *torch.autograd.grad(loss, (features, head.weight))]


def test_never_waits_for_the_device():
    arguments = path_inputs()
    step(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_captured_in_a_graph_and_replayed_on_other_data():
    features, density, uniform, head = path_inputs()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(features, density, uniform, head)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(features, density, uniform, head)
    for seed in (5, 6):
        with torch.no_grad():
            features.copy_(randn(2, 64, 32, 32, seed=seed))
            density.copy_(randn(2, 1024, seed=seed).sigmoid())
        graph.replay()
        for g, w in zip(captured, step(features, density, uniform, head), strict=True):
            assert torch.equal(g, w)


def test_compiles_without_a_break():
    arguments = path_inputs()
    want = loss_path(*arguments)
    got = torch.compile(loss_path, fullgraph=True)(*arguments)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_the_same_bits_in_every_run(dtype):
    query, key, grad = randn(3, 700, 256, dtype=dtype, seed=1), randn(3, 700, 256, dtype=dtype, seed=2), randn(3, 700)
    region = torch.randint(0, 3, (3, 700), device=DEVICE)
    first = nce(kernels(), query, key, region, grad, "same_region")
    for _ in range(10):
        assert all(
            torch.equal(a, b)
            for a, b in zip(first, nce(kernels(), query, key, region, grad, "same_region"), strict=True)
        )


def test_any_strides(restrided):
    query, key, grad = randn(2, 77, 45, seed=1), randn(2, 77, 45, seed=2), randn(2, 77)
    want = nce(kernels(), query, key, None, grad)
    for g, w in zip(nce(kernels(), restrided(query), restrided(key), None, restrided(grad)), want, strict=True):
        close(g, w.double(), 32 * EPS)


def test_offsets_beyond_32_bits():
    """Two rows of a tensor of more than 2^31 elements, and features whose last image begins beyond that."""
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free memory")
    storage = torch.empty(2**31 + 2**20, dtype=torch.bfloat16, device=DEVICE)
    query = storage.as_strided((2, 64, 64), (2**31, 64, 1))
    query.copy_(randn(2, 64, 64, dtype=torch.bfloat16))
    key, grad = randn(2, 64, 64, dtype=torch.bfloat16, seed=2), randn(2, 64)
    for g, w in zip(
        nce(kernels(), query, key, None, grad), nce(kernels(), query.clone(), key, None, grad), strict=True
    ):
        assert torch.equal(g, w)
    features = storage.as_strided((2, 16, 64), (2**31, 64, 1))
    index = torch.tensor([[3, 60], [63, 0]], device=DEVICE)
    want = reference.gather_patches_forward(features.clone(), index)
    assert torch.equal(kernels().gather_patches_forward(features, index), want)
    expected = reference.tap_patches_backward(features.clone(), want, index)
    assert torch.equal(kernels().tap_patches_add_(features, want, index), expected)


def test_65536_negatives_need_little_memory():
    query, key = (randn(65536, 256, dtype=torch.bfloat16, seed=s)[None].requires_grad_() for s in (1, 2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fastsketch.patch_nce(query, key, normalize=True).backward()
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - before
    # Two gradients of 32 MiB (and copies autograd may make) and eight vectors; the logits would be 16 GiB.
    assert taken < 160 * 2**20, f"{taken / 2**20:.0f} MiB"
    rows = slice(1000, 1064)  # a few rows against the definition
    q, k = (torch.nn.functional.normalize(x[0].detach().float(), dim=-1) for x in (query, key))
    logits = q[rows] @ k.T / 0.07
    want = torch.nn.functional.cross_entropy(logits, torch.arange(1000, 1064, device=DEVICE), reduction="none")
    got = fastsketch.patch_nce(query.detach(), key.detach(), normalize=True, reduction="none")[0, rows]
    torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)  # torch's float32 product may be tf32
