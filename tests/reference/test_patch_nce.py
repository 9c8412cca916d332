"""patch_nce against cross-entropy over explicitly listed negatives, in float64."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastsketch

KERNELS = ("patch_nce_forward", "patch_nce_backward")
MODES = ("image", "same_region", "other_regions", "batch")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def listed_negatives(mode: str, region: Tensor | None, b: int, i: int, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """The (image, sample) pairs that are negatives of query i of image b, in words of the definition."""
    batch, samples = shape
    if mode == "batch":
        return [(c, j) for c in range(batch) for j in range(samples) if (c, j) != (b, i)]
    others = [j for j in range(samples) if j != i]
    if mode == "same_region":
        others = [j for j in others if region[b, j] == region[b, i]]
    elif mode == "other_regions":
        others = [j for j in others if region[b, j] != region[b, i]]
    return [(b, j) for j in others]


def truth(query: Tensor, key: Tensor, mode="image", region=None, temperature=0.07, normalize=False) -> Tensor:
    """[B, S] losses in the inputs' dtype: one F.cross_entropy a query, its positive listed first."""
    if normalize:
        query = query / (query.norm(dim=-1, keepdim=True) + 1e-7)
        key = key / (key.norm(dim=-1, keepdim=True) + 1e-7)
    batch, samples, _ = query.shape
    region = None if region is None else region.tolist()
    region = None if region is None else {(b, i): region[b][i] for b in range(batch) for i in range(samples)}
    losses = []
    for b, i in itertools.product(range(batch), range(samples)):
        pairs = [(b, i), *listed_negatives(mode, region, b, i, (batch, samples))]
        keys = torch.stack([key[c, j] for c, j in pairs])
        logits = keys @ query[b, i] / temperature
        losses.append(F.cross_entropy(logits[None], torch.zeros(1, dtype=torch.int64, device=query.device)))
    return torch.stack(losses).view(batch, samples)


def regions(mode: str, batch: int, samples: int, device: torch.device) -> dict:
    """Region 0, 1 or 2 of each sample, the last sample alone in region 7; nothing for modes without regions."""
    if mode in ("image", "batch"):
        return {}
    region = torch.randint(0, 3, (batch, samples), generator=torch.Generator().manual_seed(5))
    region[:, -1:] = 7
    return {"region": region.to(device)}


def with_grads(function, *inputs: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    """The output, and the gradients of (output · grad).sum() to the inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out) if grad is None else grad)]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(2, 13, 7), (1, 1, 5), (3, 2, 1), (1, 33, 40)])
def test_losses_and_gradients_equal_the_definition(backend, randn, device, shape, mode, normalize):
    query, key, grad = randn(*shape, seed=1), randn(*shape, seed=2), randn(*shape[:2], seed=3)
    extra = regions(mode, *shape[:2], device)
    want = with_grads(lambda q, k: truth(q, k, mode, normalize=normalize, **extra), query, key, grad=grad)
    options = {"negatives": mode, "normalize": normalize, "reduction": "none", **extra}
    got = with_grads(lambda q, k: fastsketch.patch_nce(q, k, **options), query, key, grad=grad)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-11)  # sums of < 100 float64 terms


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0, 30.0])
def test_image_mode_is_cross_entropy_against_the_diagonal(backend, randn, device, temperature):
    query, key = randn(2, 129, 65, seed=1, scale=0.3), randn(2, 129, 65, seed=2, scale=0.3)
    target = torch.arange(129, device=device).expand(2, -1)
    want = with_grads(lambda q, k: F.cross_entropy((q @ k.mT / temperature).mT, target), query, key)
    got = with_grads(lambda q, k: fastsketch.patch_nce(q, k, temperature=temperature), query, key)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [(2, 64, 32), (1, 77, 45)])
def test_error_is_no_more_than_the_naive_formula_s(
    backend, randn, device, assert_as_good_as_naive, dtype, normalize, shape
):
    query, key = (randn(*shape, seed=s, scale=1 if normalize else 0.3).to(dtype) for s in (1, 2))
    target = torch.arange(shape[1], device=device).expand(shape[0], -1)

    def naive(q: Tensor, k: Tensor) -> Tensor:
        if normalize:
            q, k = (x / (x.norm(dim=-1, keepdim=True) + 1e-7) for x in (q, k))
        return F.cross_entropy((q @ k.mT / 0.07).mT, target, reduction="sum")

    want = with_grads(naive, query.double(), key.double())
    poor = with_grads(naive, query, key)
    got = with_grads(lambda q, k: fastsketch.patch_nce(q, k, normalize=normalize, reduction="sum"), query, key)
    assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got[1].dtype == got[2].dtype == dtype
    for g, p, w in zip(got, poor, want, strict=True):
        assert_as_good_as_naive(g, p, w)


def test_half_precision_is_accumulated_in_float32(backend, randn):
    """The loss of bfloat16 inputs equals that of the same values as float32, not a rounded one."""
    query, key = randn(1, 48, 64, seed=1).bfloat16(), randn(1, 48, 64, seed=2).bfloat16()
    half = fastsketch.patch_nce(query, key, normalize=True, reduction="none")
    full = fastsketch.patch_nce(query.float(), key.float(), normalize=True, reduction="none")
    torch.testing.assert_close(half, full, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalize", [False, True])
def test_gradcheck(backend, randn, device, mode, normalize):
    query, key = randn(2, 5, 3, seed=1, grad=True), randn(2, 5, 3, seed=2, grad=True)
    weight = (randn(2, 5, seed=3).abs() + 0.1).requires_grad_()
    options = {"negatives": mode, "normalize": normalize, "temperature": 0.5, **regions(mode, 2, 5, device)}
    for reduction in ("none", "mean"):
        torch.autograd.gradcheck(
            lambda q, k, w, r=reduction: fastsketch.patch_nce(q, k, weight=w, reduction=r, **options),
            (query, key, weight),
        )


def test_only_the_wanted_gradients(backend, randn):
    query, key = randn(2, 9, 4, seed=1), randn(2, 9, 4, seed=2)
    _, both_query, both_key = with_grads(fastsketch.patch_nce, query, key)
    _, alone = with_grads(lambda q: fastsketch.patch_nce(q, key), query)
    torch.testing.assert_close(alone, both_query, rtol=0, atol=0)
    _, alone = with_grads(lambda k: fastsketch.patch_nce(query, k), key)
    torch.testing.assert_close(alone, both_key, rtol=0, atol=0)
    assert not fastsketch.patch_nce(query, key).requires_grad


def test_same_tensor_as_query_and_key(backend, randn):
    x = randn(2, 9, 4)
    _, got = with_grads(lambda x: fastsketch.patch_nce(x, x), x)
    _, want = with_grads(lambda x: truth(x, x).mean(), x)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("key_too", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_second_derivatives(backend, randn, normalize, key_too):
    query, key = randn(2, 4, 3, seed=1, grad=True), randn(2, 4, 3, seed=2, grad=key_too)
    region = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 0]], device=query.device)

    def loss(query, key):
        everywhere = fastsketch.patch_nce(query, key, temperature=0.5, normalize=normalize)
        inside = fastsketch.patch_nce(
            query, key, temperature=0.5, normalize=normalize, negatives="same_region", region=region
        )
        return everywhere + inside

    inputs = [query, key] if key_too else [query]
    torch.autograd.gradgradcheck(lambda *x: loss(*x, *([] if key_too else [key])), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_query_without_negatives_gives_exactly_nothing(backend, randn, device, dtype, normalize, scale):
    query, key = (randn(2, 6, 8, dtype=dtype, seed=s, scale=scale) for s in (1, 2))
    lonely = torch.tensor([[0, 0, 1, 2, 2, 2]], device=device).expand(2, -1)
    alike = torch.zeros(2, 6, dtype=torch.int64, device=device)
    for mode, region, alone in [
        ("same_region", lonely, [2]),
        ("same_region", torch.arange(6, device=device).expand(2, -1), [0, 1, 2, 3, 4, 5]),
        ("other_regions", alike, [0, 1, 2, 3, 4, 5]),
    ]:
        options = {"negatives": mode, "region": region, "normalize": normalize, "reduction": "none"}
        loss, grad_query, grad_key = with_grads(lambda q, k, o=options: fastsketch.patch_nce(q, k, **o), query, key)
        assert (loss[:, alone] == 0).all()
        assert (grad_query[:, alone] == 0).all()
        if len(alone) == 6 or mode == "same_region":
            assert (grad_key[:, alone] == 0).all()
        rest = [i for i in range(6) if i not in alone]
        assert (loss[:, rest] > 0).any() == bool(rest)


@pytest.mark.parametrize("mode", ["image", "batch"])
def test_one_sample_of_one_image_has_no_negative(backend, randn, mode):
    loss, *grads = with_grads(
        lambda q, k: fastsketch.patch_nce(q, k, negatives=mode),
        randn(1, 1, 16, dtype=torch.float32, seed=1),
        randn(1, 1, 16, dtype=torch.float32, seed=2),
    )
    assert loss == 0
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("mode", MODES)
def test_zero_vectors_are_normalised_to_zero(backend, randn, device, dtype, mode):
    query, key = randn(2, 6, 8, seed=1).to(dtype), randn(2, 6, 8, seed=2).to(dtype)
    query[0, 1], key[0, 3], query[1, 2], key[1, 2] = 0, 0, 0, 0
    options = {"negatives": mode, "normalize": True, "reduction": "none", **regions(mode, 2, 6, device)}
    got = with_grads(lambda q, k: fastsketch.patch_nce(q, k, **options), query, key)
    # A gradient of 1e7 is right in float32 but more than float16 can hold: infinite there, never NaN.
    assert not any(x.isnan().any() for x in got)
    if dtype in (torch.float64, torch.float32):
        rest = {name: value for name, value in options.items() if name == "region"}
        want = with_grads(lambda q, k: truth(q, k, mode, normalize=True, **rest), query.double(), key.double())
        for g, w in zip(got, want, strict=True):
            rtol = 1e-9 if dtype == torch.float64 else 1e-4
            torch.testing.assert_close(g.double(), w, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_small_norms_are_normalised_in_float32(backend, randn, dtype):
    """The projected norms at initialisation, 3e-5, are lost when squared in float16 (docs/method.md section 1)."""
    query, key = (randn(1, 16, 32, seed=s, scale=3e-5).to(dtype) for s in (1, 2))
    got = fastsketch.patch_nce(query, key, normalize=True, reduction="none").double()
    want = truth(query.double(), key.double(), normalize=True)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("mode", MODES)
def test_large_logits_stay_finite_and_right(backend, randn, device, dtype, mode):
    """Norms of 100 at temperature 0.01: logits up to a million, whose exponential no dtype holds."""
    query, key = randn(2, 9, 16, seed=1), randn(2, 9, 16, seed=2)
    query, key = (F.normalize(x, dim=-1).mul(100).to(dtype) for x in (query, key))
    extra = regions(mode, 2, 9, device)
    options = {"negatives": mode, "temperature": 0.01, "reduction": "none", **extra}
    got = with_grads(lambda q, k: fastsketch.patch_nce(q, k, **options), query, key)
    want = with_grads(lambda q, k: truth(q, k, mode, temperature=0.01, **extra), query.double(), key.double())
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    torch.testing.assert_close(got[0].double(), want[0], rtol=0, atol=1e6 * 8 * eps)
    for g, w in zip(got[1:], want[1:], strict=True):
        assert g.isfinite().all()
        # A probability may be off by the logit's rounding, about 1e6·eps; a gradient is up to 100/0.01 of it.
        scale = 1e4 * (1e6 * 8 * eps + torch.finfo(dtype).eps)
        assert (g.double() - w).abs().max() <= scale


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", ["float32", "float64", "bfloat16", "zero", None])
def test_weights_and_reductions(backend, randn, reduction, weighted):
    query, key = randn(2, 7, 5, seed=1), randn(2, 7, 5, seed=2)
    weight = None
    if weighted == "zero":
        weight = query.new_zeros(2, 7)
    elif weighted is not None:
        weight = randn(2, 7, seed=3).abs().to(getattr(torch, weighted))
        weight[0, 0] = 0

    def reduced(q: Tensor, k: Tensor) -> Tensor:
        w = torch.ones_like(q[..., 0]) if weight is None else weight.double()
        weighed = truth(q, k) * w
        if reduction == "none":
            return weighed
        if reduction == "sum":
            return weighed.sum()
        return weighed.sum() / w.sum() if w.any() else weighed.sum() * 0

    want = with_grads(reduced, query, key)
    got = with_grads(lambda q, k: fastsketch.patch_nce(q, k, weight=weight, reduction=reduction), query, key)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-11)


def test_weight_two_is_a_query_counted_twice(backend, randn):
    """Multiplicity (docs/method.md section 5): weight 2 weighs as if the query's loss were listed twice."""
    query, key = randn(1, 6, 4, seed=1), randn(1, 6, 4, seed=2)
    each = fastsketch.patch_nce(query, key, reduction="none")[0]
    weight = torch.tensor([[1, 2, 1, 1, 2, 1]], dtype=torch.float64, device=query.device)
    counted = torch.cat([each, each[[1, 4]]]).mean()
    torch.testing.assert_close(fastsketch.patch_nce(query, key, weight=weight), counted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (0, 0, 4)])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_in_gives_zero_out(backend, randn, device, shape, mode):
    query, key = randn(*shape, grad=True), randn(*shape, grad=True)
    region = torch.zeros(shape[:2], dtype=torch.int64, device=device) if "region" in mode else None
    for reduction in ("mean", "sum", "none"):
        loss = fastsketch.patch_nce(query, key, negatives=mode, region=region, reduction=reduction)
        assert loss.shape == (shape[:2] if reduction == "none" else ())
        assert (loss == 0).all()
        grads = torch.autograd.grad(loss.sum(), (query, key))
        assert [g.shape for g in grads] == [shape, shape]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalize", [False, True])
def test_strides_do_not_matter(backend, randn, device, restrided, mode, normalize):
    query, key, grad = randn(2, 7, 5, seed=1), randn(2, 7, 5, seed=2), randn(2, 7, seed=3)
    weight = randn(2, 7, seed=4).abs()
    extra = regions(mode, 2, 7, device)
    options = {"negatives": mode, "normalize": normalize, "reduction": "none"}
    want = with_grads(lambda q, k: fastsketch.patch_nce(q, k, weight=weight, **options, **extra), query, key, grad=grad)
    odd = {name: restrided(value) for name, value in extra.items()}
    got = with_grads(
        lambda q, k: fastsketch.patch_nce(q, k, weight=restrided(weight), **options, **odd),
        restrided(query),
        restrided(key),
        grad=restrided(grad),
    )
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)  # a product may be summed in another order


def test_expanded_inputs_and_gradients(backend, randn, device):
    """Stride 0: one image's key and region for the whole batch, and the gradient that `sum` sends."""
    query, key = randn(3, 6, 4, seed=1), randn(1, 6, 4, seed=2).expand(3, -1, -1)
    region = torch.tensor([[0, 0, 1, 1, 1, 2]], device=device).expand(3, -1)
    options = {"negatives": "same_region", "region": region, "reduction": "none"}
    got = with_grads(lambda q, k: fastsketch.patch_nce(q, k, **options), query, key, grad=key.new_ones(1).expand(3, 6))
    want = with_grads(lambda q, k: truth(q, k, "same_region", region), query, key.contiguous())
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=lambda d: str(d)[6:])
def test_region_dtypes(backend, randn, device, dtype):
    query, key = randn(2, 9, 4, seed=1), randn(2, 9, 4, seed=2)
    region = torch.randint(0, 250, (2, 3), generator=torch.Generator().manual_seed(0)).repeat(1, 3).to(device)
    want = fastsketch.patch_nce(query, key, negatives="same_region", region=region)
    got = fastsketch.patch_nce(query, key, negatives="same_region", region=region.to(dtype))
    torch.testing.assert_close(got, want, rtol=0, atol=0)


Q, K, R = torch.zeros(2, 5, 3), torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "query must be a torch.Tensor, got list", {"query": [1.0]}),
        (TypeError, "query must be one of .* got torch.int64", {"query": Q.long()}),
        (ValueError, r"query must be \[B, S, D\], got shape \[5, 3\]", {"query": Q[0]}),
        (ValueError, r"query must be .* D at least 1, got shape \[2, 5, 0\]", {"query": Q[..., :0], "key": K[..., :0]}),
        (ValueError, r"key must have shape \[2, 5, 3\], got \[2, 4, 3\]", {"key": K[:, :4]}),
        (ValueError, "key must be on cpu, got meta", {"key": K.to("meta")}),
        (TypeError, "key must have query's dtype torch.float32, got torch.float64", {"key": K.double()}),
        (ValueError, "temperature must be positive and finite, got 0", {"temperature": 0.0}),
        (ValueError, r"temperature must be between 2\^-126 and 2\^126, .*got 1e-39", {"temperature": 1e-39}),
        (ValueError, r"temperature must be between 2\^-126 and 2\^126, .*got 1e\+39", {"temperature": 1e39}),
        (ValueError, "temperature must be positive and finite, got nan", {"temperature": float("nan")}),
        (ValueError, "temperature must be positive and finite, got inf", {"temperature": float("inf")}),
        (TypeError, "temperature must be a number, got '0.07'", {"temperature": "0.07"}),
        (TypeError, "temperature must be a number, got None", {"temperature": None}),
        (TypeError, r"temperature must be a number, got array\(\[1\., 1\.\]\)", {"temperature": np.ones(2)}),
        (ValueError, r"negatives must be one of .* got array\(\[1\., 1\.\]\)", {"negatives": np.ones(2)}),
        (TypeError, "query must be dense, got torch.sparse_coo", {"query": Q.to_sparse()}),
        (TypeError, r"temperature must be a number, got a tensor of shape \[2\]", {"temperature": torch.ones(2)}),
        (ValueError, "negatives must be one of image, .* got 'all'", {"negatives": "all"}),
        (ValueError, "reduction must be one of mean, sum, none, got 'max'", {"reduction": "max"}),
        (ValueError, "region must be given for negatives='same_region'", {"negatives": "same_region"}),
        (ValueError, "region must be given for negatives='other_regions'", {"negatives": "other_regions"}),
        (ValueError, "region is not used by negatives='image'", {"region": R}),
        (ValueError, "region is not used by negatives='batch'", {"region": R, "negatives": "batch"}),
        (TypeError, "region must be one of int64", {"region": R.float(), "negatives": "same_region"}),
        (ValueError, r"region must have shape \[2, 5\], got \[5\]", {"region": R[0], "negatives": "same_region"}),
        (TypeError, "weight must be one of float32", {"weight": R}),
        (TypeError, "weight must be a torch.Tensor, got float", {"weight": 1.0}),
        (ValueError, r"weight must have shape \[2, 5\], got \[2, 5, 1\]", {"weight": R.float()[..., None]}),
        (ValueError, "weight must be finite and non-negative, got -1.0 to 0.0", {"weight": torch.eye(5)[:2] - 1}),
        (ValueError, "weight must be finite and non-negative, got .*inf", {"weight": torch.full((2, 5), torch.inf)}),
        (ValueError, "weight must be finite and non-negative, got nan", {"weight": torch.full((2, 5), torch.nan)}),
    ],
)
def test_bad_input_is_named(error, message, arguments):
    with pytest.raises(error, match=message):
        fastsketch.patch_nce(**{"query": Q, "key": K, **arguments})


@pytest.mark.parametrize("shape", [(1, 4, 0), (0, 4, 0), (2, 0, 0)])
@pytest.mark.parametrize("normalize", [False, True])
def test_vectors_of_no_numbers_are_refused(backend, device, shape, normalize):
    query = torch.zeros(shape, device=device, requires_grad=True)
    with pytest.raises(ValueError, match=r"query must be .* with D at least 1"):
        fastsketch.patch_nce(query, query, normalize=normalize)


def test_the_values_of_weights_are_looked_at_where_there_are_any(backend, randn, device):
    query, bad = randn(2, 5, 3), torch.full((2, 5), -1.0, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match="weight must be finite and non-negative"):
        torch.func.grad(lambda q: fastsketch.patch_nce(q, query, weight=bad))(query)
    for weight in (bad.abs(), bad.abs().requires_grad_()):
        torch.func.grad(lambda q, w=weight: fastsketch.patch_nce(q, query, weight=w))(query)
    torch.func.grad(lambda w: fastsketch.patch_nce(query, query, weight=w))(bad.abs())
    torch.func.vmap(lambda w: fastsketch.patch_nce(query, query, weight=w))(bad.abs().expand(3, -1, -1))
    assert fastsketch.patch_nce(query[:0], query[:0], weight=bad[:0]) == 0
    meta = query.to("meta")
    assert fastsketch.patch_nce(meta, meta, weight=bad.to("meta")).is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="values are always checked on a CPU")
def test_no_look_at_weights_on_a_gpu_without_being_asked(monkeypatch):
    monkeypatch.delenv("FASTSKETCH_CHECK")
    query = torch.randn(2, 5, 3, device="cuda")
    fastsketch.patch_nce(query, query, weight=torch.full((2, 5), -1.0, device="cuda"))


@pytest.mark.parametrize("wants_gradient", [False, True])
def test_autocast_leaves_float64_alone(backend, randn, wants_gradient):
    query, key = randn(2, 8, 4, grad=wants_gradient), randn(2, 8, 4, seed=1)
    want = fastsketch.patch_nce(query, key)
    with torch.autocast(query.device.type, torch.bfloat16):
        assert torch.equal(fastsketch.patch_nce(query, key), want)
        with pytest.raises(TypeError, match=r"key must have query's dtype torch\.float64, got torch\.float32"):
            fastsketch.patch_nce(query, key.float())
