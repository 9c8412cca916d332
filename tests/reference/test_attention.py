"""attention_statistics against the materialised softmax matrix, in float64, and its memory."""

import os
import subprocess
import sys

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastsketch
from fastsketch.reference import attention as reference

KERNELS = ("attention_statistics_forward", "attention_statistics_backward")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def naive(query: Tensor, key: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """(received, entropy) from the whole matrix, in the inputs' dtype."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    attention = (query @ key.mT * scale).softmax(-1)
    return attention.mean(1), torch.special.entr(attention).sum(-1)


def with_grads(function, query: Tensor, key: Tensor, grads: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Both outputs, and the gradients of their sum weighed by `grads` to query and key."""
    inputs = [x.detach().requires_grad_() for x in (query, key)]
    outputs = function(*inputs)
    grads = [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, inputs, grads)]


@pytest.mark.parametrize("scale", [None, 1.0, 3.0, -0.7, 0.0])
@pytest.mark.parametrize(
    ("shape", "keys"),
    [((2, 17, 5), 17), ((1, 1, 3), 1), ((3, 9, 8), 31), ((1, 300, 4), 7), ((2, 257, 33), 513)],
    ids=str,
)
def test_values_and_gradients_equal_the_matrix(backend, randn, shape, keys, scale):
    """More rows than a chunk, fewer, and one; as many keys as queries, and not."""
    batch, queries, width = shape
    query, key = randn(*shape, seed=1), randn(batch, keys, width, seed=2)
    grads = (randn(batch, keys, seed=3), randn(batch, queries, seed=4))
    got = with_grads(lambda q, k: fastsketch.attention_statistics(q, k, scale=scale), query, key, grads)
    want = with_grads(lambda q, k: naive(q, k, scale), query, key, grads)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-11)  # sums of some hundred float64 terms


def test_entropy_and_means_by_other_libraries(backend, randn):
    query, key = randn(1, 6, 4, seed=1), randn(1, 9, 4, seed=2)
    attention = torch.softmax(query[0] @ key[0].T / 2, -1).cpu().numpy()
    received, entropy = fastsketch.attention_statistics(query, key)
    assert entropy[0].tolist() == pytest.approx(stats.entropy(attention, axis=1).tolist(), rel=1e-12)
    assert received[0].tolist() == pytest.approx(attention.mean(0).tolist(), rel=1e-12)
    assert received.sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", [(2, 64, 32), (1, 300, 19)])
def test_error_is_no_more_than_the_naive_formula_s(backend, randn, assert_as_good_as_naive, dtype, shape):
    query, key = (randn(*shape, seed=s).to(dtype) for s in (1, 2))
    grads = tuple(randn(*shape[:2], seed=s).to(dtype) for s in (3, 4))
    got = with_grads(fastsketch.attention_statistics, query, key, grads)
    poor = with_grads(naive, query, key, grads)
    want = with_grads(naive, query.double(), key.double(), grads)
    assert got[0].dtype == got[1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got[2].dtype == got[3].dtype == dtype
    for g, p, w in zip(got, poor, want, strict=True):
        # The backward recomputes logit - log-sum-exp: a rounding of numbers up to about 10 in each exponent.
        assert_as_good_as_naive(g, p, w, units=32)


def test_half_precision_is_accumulated_in_float32(backend, randn):
    query, key = (randn(1, 100, 16, seed=s).bfloat16() for s in (1, 2))
    half = fastsketch.attention_statistics(query, key)
    full = fastsketch.attention_statistics(query.float(), key.float())
    for h, f in zip(half, full, strict=True):
        torch.testing.assert_close(h, f, rtol=5e-6, atol=5e-6)


def test_gradcheck(backend, randn):
    query, key = randn(2, 5, 3, seed=1, grad=True), randn(2, 7, 3, seed=2, grad=True)
    for pick in (slice(0, 1), slice(1, 2), slice(0, 2)):
        torch.autograd.gradcheck(lambda q, k, p=pick: fastsketch.attention_statistics(q, k, scale=0.8)[p], (query, key))
    torch.autograd.gradcheck(lambda x: fastsketch.attention_statistics(x, x), query)


def test_only_the_wanted_gradients(backend, randn):
    query, key = randn(2, 9, 4, seed=1), randn(2, 9, 4, seed=2)
    both = [x.clone().requires_grad_() for x in (query, key)]
    for output in (0, 1):
        want = torch.autograd.grad(fastsketch.attention_statistics(*both)[output].square().sum(), both)
        for i in (0, 1):
            inputs = [query, key]
            inputs[i] = both[i]
            (got,) = torch.autograd.grad(fastsketch.attention_statistics(*inputs)[output].square().sum(), both[i])
            torch.testing.assert_close(got, want[i], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_large_logits_stay_finite(backend, randn, dtype):
    """Logits of ±1e5: each row is one-hot, its entropy 0, its gradients finite."""
    query, key = (torch.nn.functional.normalize(randn(2, 9, 8, seed=s), dim=-1).mul(300).to(dtype) for s in (1, 2))
    grads = (torch.ones_like(query[..., 0]), torch.ones_like(query[..., 0]))
    got = with_grads(lambda q, k: fastsketch.attention_statistics(q, k, scale=1.0), query, key, grads)
    assert all(g.isfinite().all() for g in got)
    received, entropy = naive(query.double(), key.double(), 1.0)
    torch.testing.assert_close(got[0].double(), received, rtol=0, atol=1e-5)
    torch.testing.assert_close(got[1].double(), entropy, rtol=0, atol=1e-4)
    assert (got[1] >= 0).all()


def test_equal_keys_share_evenly(backend, randn):
    query, key = randn(2, 50, 4, seed=1), randn(2, 1, 4, seed=2).expand(-1, 20, -1)
    received, entropy = fastsketch.attention_statistics(query, key)
    torch.testing.assert_close(received, torch.full_like(received, 1 / 20), rtol=1e-12, atol=0)
    torch.testing.assert_close(entropy, torch.full_like(entropy, 20).log(), rtol=1e-12, atol=0)


def test_strides_do_not_matter(backend, randn, restrided):
    query, key = randn(2, 7, 5, seed=1), randn(2, 11, 5, seed=2)
    grads = (randn(2, 11, seed=3), randn(2, 7, seed=4))
    want = with_grads(fastsketch.attention_statistics, query, key, grads)
    odd = tuple(restrided(g) for g in grads)
    got = with_grads(fastsketch.attention_statistics, restrided(query), restrided(key), odd)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)  # a product may be summed in another order


def test_projections_of_a_feature_map(backend, randn):
    """As the attention module calls it: [B, d, H, W] seen as [B, N, d]; gradients arrive by `sum` (stride 0)."""
    maps = (randn(2, 4, 5, 6, seed=1), randn(2, 4, 5, 6, seed=2).contiguous(memory_format=torch.channels_last))
    query, key = (x.flatten(2).mT for x in maps)
    ones = torch.ones(1, dtype=torch.float64, device=query.device).expand(2, 30)
    got = with_grads(fastsketch.attention_statistics, query, key, (ones, ones))
    want = with_grads(naive, query, key, (ones, ones))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-12)


def test_no_tensor_of_the_reference_is_the_matrix(randn):
    """The reference itself: no tensor of its forward or backward has N·N elements."""
    queries = 3 * reference.CHUNK
    query, key = randn(1, queries, 8, dtype=torch.float32, seed=1), randn(1, queries, 8, dtype=torch.float32, seed=2)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            tensors = result if isinstance(result, tuple | list) else [result]
            largest = max([largest, *(t.untyped_storage().nbytes() // 4 for t in tensors if isinstance(t, Tensor))])
            return result

    with Watch():
        received, entropy, lse = reference.attention_statistics_forward(query, key, 0.3)
        reference.attention_statistics_backward(received, entropy, query, key, entropy, lse, 0.3)
    assert largest == reference.CHUNK * queries


MEMORY = """
import resource, sys, torch, fastsketch
def run(positions):
    query, key = (torch.randn(1, positions, 8, requires_grad=True) for _ in range(2))
    received, entropy = fastsketch.attention_statistics(query, key)
    (received.square().sum() + entropy.sum()).backward()
with fastsketch.use_backend(sys.argv[1]):
    run(600)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(4_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_the_process_never_holds_the_matrix(backend, device):
    """4,000 positions: the matrix would be 64 MB. The process grows by the few chunks it works in, about 23 MB."""
    if device.type != "cpu":
        pytest.skip("measures the memory of the host")
    # A fixed mmap threshold gives freed blocks back at once, so that the peak is what was held at one time.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", MEMORY, backend]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) < 44 * 1024  # KiB


Q = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "query must be a torch.Tensor, got NoneType", {"query": None}),
        (TypeError, "key must be one of float32.* got torch.int64", {"key": Q.long()}),
        (ValueError, r"query must be \[B, N, d\], not empty, got shape \[5, 3\]", {"query": Q[0]}),
        (ValueError, r"query must be .* not empty, got shape \[2, 0, 3\]", {"query": Q[:, :0]}),
        (ValueError, r"key must be \[B, M, d\], not empty, got shape \[2, 5, 3, 1\]", {"key": Q[..., None]}),
        (ValueError, r"key must be .* not empty, got shape \[2, 0, 3\]", {"key": Q[:, :0]}),
        (ValueError, r"key must have shape \[2, 5, 3\], got \[1, 5, 3\]", {"key": Q[:1]}),
        (ValueError, r"key must have shape \[2, 5, 3\], got \[2, 5, 2\]", {"key": Q[..., 1:]}),
        (ValueError, "key must be on cpu, got meta", {"key": Q.to("meta")}),
        (TypeError, "key must have query's dtype torch.float32, got torch.bfloat16", {"key": Q.bfloat16()}),
        (ValueError, "scale must be finite, got nan", {"scale": float("nan")}),
        (ValueError, "scale must be finite, got inf", {"scale": float("inf")}),
    ],
)
def test_bad_input_is_named(error, message, arguments):
    with pytest.raises(error, match=message):
        fastsketch.attention_statistics(**{"query": Q, "key": Q, **arguments})


def test_second_derivatives(backend, randn):
    query, key = randn(2, 5, 3, seed=1, grad=True), randn(2, 4, 3, seed=2, grad=True)
    torch.autograd.gradgradcheck(fastsketch.attention_statistics, (query, key))
