"""Attention without its matrix, against the framework's with it."""

import pytest
import torch

from fastsketch._backend import use_backend
from fastsketch.nn.attend import attend
from fastsketch.nn.own_kernels import kernel

pytestmark = pytest.mark.skipif(
    kernel("attend_forward", torch.device("cpu")) is None, reason="the C++ kernels are not built"
)


def _inputs(images, queries, keys, width, channels, dtype=torch.float64):
    shapes = (images, width, queries), (images, width, keys), (images, channels, keys)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def _run(inputs, arriving=None):
    out = attend(*inputs)
    arriving = torch.ones_like(out) if arriving is None else arriving
    return (out.detach(), *torch.autograd.grad(out, inputs, arriving))


@pytest.mark.parametrize(
    "sizes",  # images, queries, keys, width, channels
    [
        (1, 1, 1, 1, 1),
        (2, 7, 5, 3, 4),
        (1, 100, 37, 32, 20),
        (2, 65, 64, 2, 33),
        (1, 13, 300, 9, 70),
        (1, 800, 700, 4, 8),
        (2, 100, 1600, 3, 20),
    ],
    ids=str,
)
def test_value_and_gradients_in_float64(sizes):
    inputs = _inputs(*sizes)
    arriving = torch.randn(sizes[0], sizes[4], sizes[1], dtype=torch.float64)
    got = _run(inputs, arriving)
    with use_backend("reference"):
        want = _run(inputs, arriving)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["rising", "falling", "nothing but the last", "nothing but the first"])
def test_the_largest_logit_may_come_early_or_late(dtype, way):
    """Keys are taken some at a time: what was summed up is scaled down, or what comes counts for little."""
    query, key, value = (x.detach() for x in _inputs(1, 50, 2500, 4, 6, dtype))
    query[:, 0] = 1
    strength = torch.linspace(-100, 100, 2500, dtype=dtype)
    if "nothing" in way:  # a weight of 0, but for the last third
        strength = torch.where(strength < 33, float("-inf"), strength / 100)
    key[:, 0] = strength.flip(0) if way in ("falling", "nothing but the first") else strength
    want = attend(query.double(), key.double(), value.double(), own_kernel=False)
    got = attend(query, key, value)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5 if dtype == torch.float32 else 1e-12)


def test_gradients_by_finite_differences():
    assert torch.autograd.gradcheck(attend, _inputs(1, 6, 5, 3, 4))


def test_rounding_is_of_the_size_of_the_frameworks():
    inputs = _inputs(2, 1000, 1100, 32, 128, torch.float32)
    arriving = torch.randn(2, 128, 1000)
    truth = _run([x.detach().double().requires_grad_() for x in inputs], arriving.double())
    got = _run(inputs, arriving)
    with use_backend("reference"):
        framework = _run(inputs, arriving)
    for one, other, exact in zip(got, framework, truth, strict=True):
        assert (one - exact).square().mean() <= 1.5**2 * (other - exact).square().mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_at_the_end(dtype):
    inputs = _inputs(1, 50, 40, 8, 24, dtype)
    got = attend(*inputs)
    assert got.dtype == dtype
    want = attend(*(x.float() for x in inputs)).to(dtype)
    if dtype == torch.bfloat16 and kernel("attend_rows_forward", torch.device("cpu")):  # AMX rounds weights too
        torch.testing.assert_close(got, want, rtol=0, atol=2**-7 * want.abs().max().item())
    else:
        assert torch.equal(got, want)
    got.sum().backward()
    assert all(x.grad.dtype == dtype for x in inputs)


def test_large_logits_stay_finite_and_a_broken_one_stays_visible():
    query, key, value = (x.detach() for x in _inputs(1, 20, 30, 4, 3, torch.float32))
    with use_backend("reference"):
        want = attend(100 * query, 100 * key, value)
    torch.testing.assert_close(attend(100 * query, 100 * key, value), want)
    query[0, 1, 7] = float("nan")
    bad = attend(query, key, value).isnan()
    assert bad[:, :, 7].all() and bad.sum() == 3


def test_values_do_not_depend_on_the_number_of_threads(with_threads):
    inputs = _inputs(2, 333, 777, 32, 40, torch.float32)
    arriving = torch.randn(2, 40, 333)
    results = with_threads(lambda: _run(inputs, arriving))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_any_strides():
    inputs = [x.detach().mT.contiguous().mT.requires_grad_() for x in _inputs(2, 40, 30, 8, 12)]
    arriving = torch.randn(1, 1, 1, dtype=torch.float64).expand(2, 12, 40)
    want = _run([x.detach().contiguous().requires_grad_() for x in inputs], arriving)
    for one, other in zip(_run(inputs, arriving), want, strict=True):
        assert torch.equal(one, other)


def test_bad_shapes_are_named():
    for shapes in (
        ((1, 2, 3), (1, 3, 4), (1, 5, 4)),
        ((1, 2, 3), (1, 2, 4), (1, 5, 3)),
        ((2, 2, 3), (1, 2, 4), (1, 5, 4)),
        ((2, 3), (2, 4), (5, 4)),
    ):
        with pytest.raises(ValueError, match="query, key and value must be"):
            attend(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_framework_gets_what_its_fused_kernels_take(monkeypatch, channels_last, grad):
    """Four dimensions, the last contiguous; and it is the formula, in chunks too."""
    handed, sdpa = [], torch.nn.functional.scaled_dot_product_attention

    def noted(*inputs):
        handed.extend(inputs)
        return sdpa(*inputs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    maps = [torch.randn(2, channels, 40, 33, dtype=torch.float64) for channels in (3, 3, 5)]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    query, key, value = (x.to(memory_format=layout).flatten(2) for x in maps)
    with torch.set_grad_enabled(grad):
        got = attend(query, key, value, own_kernel=False)
    assert len(handed) == (3 if grad else 6)
    assert all(x.dim() == 4 and x.stride(-1) == 1 for x in handed)
    want = value @ (query.mT @ key * 3**-0.5).softmax(-1).mT
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    assert got.view(2, 5, 40, 33).shape == (2, 5, 40, 33)
