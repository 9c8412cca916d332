"""What all operators have in common: torch.library's own checks, torch.compile and autocast."""

import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import fastsketch
from fastsketch.ops import attention, gather, patch_nce, sampling

MODES = ("image", "same_region", "other_regions")
LAYOUTS = ("contiguous", "channels_last")


def numbers(*shape: int, seed: int = 0, dtype=torch.float32, grad: bool = False, device=None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_(grad)


# opcheck: schema (no output shares memory with an input), autograd registration, fake tensors, AOT dispatch.


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_opcheck_patch_nce(backend, device, mode, normalize):
    dtype = torch.bfloat16 if normalize and mode == "image" else torch.float32
    query, key = (numbers(2, 6, 4, seed=s, dtype=dtype, device=device) for s in (1, 2))
    region = None if mode == "image" else torch.tensor([[0, 0, 1, 1, 2, 5]], device=device).expand(2, -1).contiguous()
    options = (0.2, mode, normalize)
    forward = (query.requires_grad_(), key.requires_grad_(), region, *options)
    torch.library.opcheck(patch_nce.patch_nce_forward, forward)
    query, key = query.detach(), key.detach()
    loss, lse, *scales = patch_nce.patch_nce_forward(query, key, region, *options)
    for need in ((True, True), (True, False), (False, True)):
        backward = (torch.ones_like(loss), query, key, region, lse, *scales, *options, *need)
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(patch_nce.patch_nce_backward, backward, test_utils=checks)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 4, 5), (2, 3, 2, 3, 4)], ids=str)
def test_opcheck_gather_and_tap(backend, device, shape, layout):
    channels_last = layout == "channels_last"
    if channels_last and len(shape) == 3:
        pytest.skip("1-D features have no such layout")
    memory_format = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape)) if channels_last else None
    features = numbers(*shape, device=device).contiguous(memory_format=memory_format or torch.contiguous_format)
    index = torch.tensor([[0, 5, 5, 7], [1, 1, 1, 2]], device=device)
    grad_patches = numbers(2, 4, 3, device=device)
    torch.library.opcheck(gather.gather_patches_forward, (features.clone().requires_grad_(), index))
    backward = (grad_patches.clone().requires_grad_(), index, list(shape[2:]), channels_last)
    torch.library.opcheck(gather.gather_patches_backward, backward)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(gather.tap_patches_backward, (features, grad_patches, index), test_utils=checks)


@pytest.mark.parametrize("with_region", [False, True])
def test_opcheck_sampling(backend, device, with_region):
    density, uniform = torch.rand(2, 20, device=device), torch.rand(2, 20, device=device)
    region = torch.arange(40, device=device).view(2, 20) % 3 if with_region else None
    torch.library.opcheck(sampling.sample_patches, (density, region, uniform, 6, 1.5, 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_opcheck_attention(backend, device, dtype):
    query, key = numbers(2, 6, 4, seed=1, dtype=dtype, device=device), numbers(2, 9, 4, seed=2, dtype=dtype)
    key = key.to(device)
    torch.library.opcheck(attention.attention_statistics_forward, (query.requires_grad_(), key.requires_grad_(), 0.5))
    query, key = query.detach(), key.detach()
    received, entropy, lse = attention.attention_statistics_forward(query, key, 0.5)
    backward = (received, entropy, query, key, entropy, lse, 0.5)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(attention.attention_statistics_backward, backward, test_utils=checks)


# Every public function, as a loss of two floating inputs `x` and `y` ([2, 12, 4] each), with fixed extras.


def _gathered(x: Tensor, y: Tensor) -> Tensor:
    index = torch.tensor([0, 3, 3, 2], device=x.device)
    patches = fastsketch.gather_patches(x.mT.unflatten(2, (3, 4)), index)
    return (patches * y[:, :4]).sum()


def _tapped(x: Tensor, y: Tensor) -> Tensor:
    index = torch.tensor([[0, 3, 11], [5, 5, 1]], device=x.device)
    same, patches = fastsketch.tap_patches(x.sin().mT, index)
    return (same.mT * y).sum() + patches.square().sum()


def _sampled(x: Tensor, y: Tensor) -> Tensor:
    region = torch.arange(12, device=x.device).expand(2, -1) % 2
    density, uniform = x.abs().mean(2), y.sigmoid()[..., 0]
    index = fastsketch.sample_patches(density, 5, region=region, uniform=uniform)
    return fastsketch.gather_patches(x.mT, index).exp().sum() + index.sum()


def _attended(x: Tensor, y: Tensor) -> Tensor:
    received, entropy = fastsketch.attention_statistics(x, y)
    return received.square().sum() + entropy.sum()


def _contrasted(negatives: str, normalize: bool, reduction: str = "mean"):
    def loss(x: Tensor, y: Tensor) -> Tensor:
        extra = {}
        if negatives in ("same_region", "other_regions"):
            extra["region"] = torch.arange(12, device=x.device).expand(2, -1) // 4
        weight = y.detach().abs()[..., 0]
        return fastsketch.patch_nce(
            x, y, negatives=negatives, normalize=normalize, reduction=reduction, weight=weight, **extra
        ).sum()

    return loss


def _density(x: Tensor, y: Tensor) -> Tensor:
    return (fastsketch.local_density(x.sigmoid(), 3) * y).sum()


FUNCTIONS = {
    "patch_nce image": _contrasted("image", False),
    "patch_nce normalized": _contrasted("image", True, "sum"),
    "patch_nce same_region": _contrasted("same_region", True, "none"),
    "patch_nce other_regions": _contrasted("other_regions", False),
    "patch_nce batch": _contrasted("batch", True),
    "gather_patches": _gathered,
    "tap_patches": _tapped,
    "sample_patches": _sampled,
    "attention_statistics": _attended,
    "local_density": _density,
}


def value_and_grads(function, x: Tensor, y: Tensor) -> list[Tensor]:
    """The loss and its gradients to both inputs (zero where it does not depend on one)."""
    x, y = (t.detach().clone().requires_grad_() for t in (x, y))
    loss = function(x, y)
    loss.backward()
    return [loss.detach(), *(t.new_zeros(t.shape) if t.grad is None else t.grad for t in (x, y))]


def assert_same(function, compiled, x: Tensor, y: Tensor) -> None:
    got, want = value_and_grads(compiled, x, y), value_and_grads(function, x, y)
    for g, w in zip(got, want, strict=True):
        # float32 rounding of sums that cancel is of the size of the largest entry. Eager mode makes the gradient in the
        # forward pass where a kernel can, a compiled graph recomputes: the same formula in another order.
        largest = max(1.0, w.abs().max().item())
        torch.testing.assert_close(g, w, rtol=2e-5, atol=2e-6 * largest)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiles_without_a_break(backend, device, name):
    function = FUNCTIONS[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same(function, compiled, numbers(2, 12, 4, seed=1, device=device), numbers(2, 12, 4, seed=2, device=device))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_compiles_with_inductor(device):
    """The default compiler once, forward and backward; the operators are calls to it, whatever implements them."""
    inductor = pytest.importorskip("torch._inductor.config")
    index = torch.tensor([[0, 3, 11], [5, 5, 1]], device=device)

    def function(x: Tensor, y: Tensor) -> Tensor:
        same, patches = fastsketch.tap_patches(x.mT, index)
        return fastsketch.patch_nce(patches, y[:, :3], negatives="batch", normalize=True) + same.square().sum()

    compiled = torch.compile(function, fullgraph=True)
    # These two cost more time than they save.
    with inductor.patch({"cpp_cache_precompile_headers": False, "cpp.simdlen": 1}):
        assert_same(
            function, compiled, numbers(2, 12, 4, seed=1, device=device), numbers(2, 12, 4, seed=2, device=device)
        )


def test_compiles_for_any_batch(backend, device):
    """One graph for several numbers of images and positions, as a run's last, smaller batch asks for."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def function(x: Tensor, y: Tensor) -> Tensor:
        index = fastsketch.sample_patches(x.abs().mean(2), 5, uniform=y.sigmoid()[..., 0])
        same, patches = fastsketch.tap_patches(x.mT.sin(), index)
        loss = sum(
            fastsketch.patch_nce(patches, patches.cos(), negatives=n, normalize=True) for n in ("image", "batch")
        )
        return loss + same.square().mean() + fastsketch.attention_statistics(x, y)[1].sum()

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    counted = torch.compile(function, fullgraph=True, dynamic=True, backend=count)
    for batch, positions in ((2, 12), (6, 12), (3, 20)):
        x, y = (numbers(batch, positions, 4, seed=s, device=device) for s in (1, 2))
        assert_same(function, compiled, x, y)
        counted(x, y)
    assert len(graphs) == 1


def test_settings_may_change_between_calls(backend, device):
    """torch.compile makes a float symbolic once it has changed; no check of it may break the graph."""

    def function(x: Tensor, y: Tensor, setting: float) -> Tensor:
        index = fastsketch.sample_patches(
            x.abs()[..., 0], 3, threshold=setting, boost=setting, uniform=y.sigmoid()[..., 0]
        )
        entropy = fastsketch.attention_statistics(x, y, scale=setting)[1]
        return fastsketch.patch_nce(x, y, temperature=setting) + entropy.sum() + index.sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x, y = numbers(2, 12, 4, seed=1, device=device), numbers(2, 12, 4, seed=2, device=device)
    for setting in (0.5, 0.6, 0.7):
        torch.testing.assert_close(compiled(x, y, setting), function(x, y, setting), rtol=1e-6, atol=1e-6)


def test_sampling_compiles_with_its_own_random_numbers(backend, device):
    density = torch.rand(3, 30, device=device)
    index = torch.compile(lambda d: fastsketch.sample_patches(d, 9), fullgraph=True, backend="aot_eager")(density)
    assert index.shape == (3, 9)
    assert (index.sort(1).values.diff() > 0).all()


def test_bad_input_is_an_error_under_compile_too(backend, device):
    compiled = torch.compile(fastsketch.patch_nce, backend="aot_eager")
    with pytest.raises(ValueError, match="key must have shape"):
        compiled(torch.zeros(1, 4, 3, device=device), torch.zeros(1, 5, 3, device=device))


def test_meta_tensors_need_no_kernel(device):
    query = torch.zeros(2, 6, 4, device="meta", dtype=torch.bfloat16)
    assert fastsketch.patch_nce(query, query, reduction="none").dtype == torch.float32
    assert fastsketch.gather_patches(query, torch.zeros(3, dtype=torch.int64, device="meta")).shape == (2, 3, 6)
    assert [t.shape for t in fastsketch.attention_statistics(query, query)] == [(2, 6), (2, 6)]
    density = torch.zeros(2, 5, 5, device="meta")
    assert fastsketch.sample_patches(density, 4, uniform=density).shape == (2, 4)


def test_a_scale_is_a_number_without_a_gradient(backend, device):
    query = numbers(2, 6, 4, device=device)
    with pytest.raises(TypeError, match="scale must be a number, got a tensor that wants a gradient"):
        fastsketch.attention_statistics(query, query, scale=torch.tensor(1.0, requires_grad=True))
    with pytest.raises(TypeError, match="scale must be a number, got '1'"):
        fastsketch.attention_statistics(query, query, scale="1")
    want = fastsketch.attention_statistics(query, query, scale=0.5)
    for scale in (torch.tensor(0.5), np.float32(0.5), Fraction(1, 2)):
        for one, other in zip(fastsketch.attention_statistics(query, query, scale=scale), want, strict=True):
            assert torch.equal(one, other)
    density = torch.rand(2, 6, device=device)
    for name in ("threshold", "boost"):
        with pytest.raises(TypeError, match=f"{name} must be a number, got None"):
            fastsketch.sample_patches(density, 3, **{name: None})


# Autocast: the two operators with a softmax take their inputs as float32, the gathers leave the dtype alone.


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("operator", [fastsketch.patch_nce, fastsketch.attention_statistics])
def test_autocast_computes_in_float32(backend, device, operator, low):
    x, y = numbers(2, 12, 4, seed=1, device=device), numbers(2, 12, 4, seed=2, device=device)

    def outputs(query: Tensor, key: Tensor) -> list[Tensor]:
        out = operator(query, key)
        return [out] if isinstance(out, Tensor) else list(out)

    want = outputs(x, y.to(low).float())
    for query, key in ((x, y.to(low)), (x.to(low), y.to(low)), (x, y)):
        query, key = (t.detach().clone().requires_grad_() for t in (query, key))
        with torch.autocast(device.type, low):
            got = outputs(query, key)
            sum(o.square().sum() for o in got).backward()
        assert all(o.dtype == torch.float32 for o in got)
        assert query.grad.dtype == query.dtype
        assert key.grad.dtype == key.dtype
        if query.dtype == torch.float32 and key.dtype == low:
            for g, w in zip(got, want, strict=True):
                torch.testing.assert_close(g, w, rtol=0, atol=0)  # exactly the float32 computation
    with torch.autocast(device.type, low):
        got = outputs(torch.nn.functional.linear(x, torch.eye(4, device=device)), y)  # what a layer gives there
    assert all(o.dtype == torch.float32 for o in got)


@pytest.mark.parametrize("operator", [fastsketch.patch_nce, fastsketch.attention_statistics])
def test_autocast_leaves_float64_alone(backend, device, operator):
    x, y = (numbers(2, 12, 4, seed=s, dtype=torch.float64, device=device) for s in (1, 2))
    with torch.autocast(device.type, torch.bfloat16):
        got = operator(x, y)
    want = operator(x, y)
    for g, w in zip(
        [got] if isinstance(got, Tensor) else got, [want] if isinstance(want, Tensor) else want, strict=True
    ):
        torch.testing.assert_close(g, w, rtol=0, atol=0)


def test_autocast_leaves_gathers_in_the_features_dtype(backend, device):
    features = numbers(2, 3, 8, grad=True, device=device)
    index = torch.tensor([1, 4], device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert fastsketch.gather_patches(features, index).dtype == torch.float32
        same, patches = fastsketch.tap_patches(features.bfloat16(), index)
        assert same.dtype == patches.dtype == torch.bfloat16
        ((same * 2.5).float().sum() + patches.float().sum()).backward()
    want = torch.full((2, 3, 8), 2.5, device=device)
    want[..., [1, 4]] += 1
    assert torch.equal(features.grad, want)


@pytest.mark.parametrize("name", ["patch_nce batch", "attention_statistics"])
def test_autocast_and_compile_together(backend, device, name):
    function = FUNCTIONS[name]

    def cast(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            weight = torch.eye(4, device=x.device)
            return function(torch.nn.functional.linear(x, weight), torch.nn.functional.linear(y, weight))

    x, y = numbers(2, 12, 4, seed=1, device=device), numbers(2, 12, 4, seed=2, device=device)
    assert_same(cast, torch.compile(cast, fullgraph=True, backend="aot_eager"), x, y)
