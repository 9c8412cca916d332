"""Attention in bfloat16 by AMX's products, against the formula in float64."""

import pytest
import torch

from fastsketch.nn.attend import attend
from fastsketch.nn.own_kernels import kernel

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(kernel("attend_rows_forward", CPU) is None, reason="no AMX, or not in use")

SIZES = [  # images, queries, keys, width, channels
    (1, 1, 1, 1, 1),
    (2, 7, 5, 3, 4),
    (1, 100, 37, 32, 20),
    (2, 65, 64, 2, 33),
    (1, 64, 512, 32, 64),
    (1, 13, 600, 9, 70),
    (1, 800, 700, 4, 8),
    (2, 1000, 1100, 40, 130),
]


def _inputs(images, queries, keys, width, channels):
    shapes = (images, width, queries), (images, width, keys), (images, channels, keys)
    return [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]


def _formula(query, key, value):
    return value @ (query.mT @ key / query.shape[1] ** 0.5).softmax(-1).mT


def _all(function, inputs, arriving):
    out = function(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, arriving.to(out.dtype))


def _exact(inputs, arriving):
    return _all(_formula, [x.detach().double().requires_grad_() for x in inputs], arriving)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_value_and_gradients(sizes):
    """To three roundings to bfloat16, of 2^-9 at most each: weights or slopes, what they meet, and the result."""
    inputs, arriving = _inputs(*sizes), torch.randn(sizes[0], sizes[4], sizes[1]).bfloat16()
    for got, want in zip(_all(attend, inputs, arriving), _exact(inputs, arriving), strict=True):
        assert got.dtype == torch.bfloat16 and got.shape == want.shape
        assert (got.double() - want).norm() <= 3 * 2**-9 * want.norm()


def test_log_sum_exp_is_of_float32():
    query, key, value = (x.detach().mT.contiguous() for x in _inputs(2, 65, 600, 32, 4))
    lse = kernel("attend_rows_forward", CPU)(query, key, value, 0.5)[1]
    want = (query.double() @ key.double().mT * 0.5).logsumexp(-1)
    torch.testing.assert_close(lse.double(), want, rtol=1e-6, atol=2e-6)


def test_weights_are_rounded_to_the_nearest():
    """Values of 1 give 1: weights cut off in place of rounded would give 0.997. And so for sums over queries."""
    query, key, value = _inputs(1, 900, 700, 16, 40)
    assert (attend(query, key, torch.ones_like(value)) == 1).all()
    arriving = torch.ones(1, 40, 900).bfloat16()
    got, want = (f([query, key, value], arriving)[3] for f in (lambda *a: _all(attend, *a), _exact))
    assert ((got.double() - want) / want).mean().abs() < 2e-4


@pytest.mark.parametrize("channels_last", [False, True])
def test_any_strides(channels_last):
    inputs, arriving = _inputs(2, 40, 30, 8, 12), torch.randn(1, 1, 1).bfloat16().expand(2, 12, 40)
    want = _all(attend, inputs, arriving.clone())
    if channels_last:
        inputs = [x.detach().mT.contiguous().mT.requires_grad_() for x in inputs]
    for one, other in zip(_all(attend, inputs, arriving), want, strict=True):
        assert torch.equal(one, other)


def test_values_do_not_depend_on_the_number_of_threads(with_threads):
    inputs, arriving = _inputs(2, 333, 1777, 32, 40), torch.randn(2, 40, 333).bfloat16()
    results = with_threads(lambda: _all(attend, inputs, arriving), counts=(1, 2, 3, 9))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_large_logits_stay_finite_and_a_broken_one_stays_visible():
    query, key, value = (x.detach() for x in _inputs(1, 20, 30, 4, 3))
    got = attend(300 * query, 300 * key, value)
    want = _formula(300 * query.double(), 300 * key.double(), value.double())
    torch.testing.assert_close(got.double(), want, rtol=0.02, atol=0.02)
    query[0, 1, 7] = float("nan")
    bad = attend(query, key, value).isnan()
    assert bad[:, :, 7].all() and bad.sum() == 3
    value[0, 2, 5] = float("inf")
    assert not attend(key, key, value)[0, 2].isfinite().any()


def test_very_negative_logits_of_few_keys():
    """A kernel that fills up to whole tiles must not take what is not there for a key of logit 0."""
    query, key, value = (x.detach() for x in _inputs(1, 9, 5, 4, 6))
    query[:, 0], key[:, 0] = -500, 1  # logits of about -250
    inputs, arriving = [x.requires_grad_() for x in (query, key, 10 * value)], torch.randn(1, 6, 9).bfloat16()
    for got, want in zip(_all(attend, inputs, arriving), _exact(inputs, arriving), strict=True):
        if want.shape == key.shape or want.shape == query.shape:
            got, want = got[:, 1:], want[:, 1:]  # in the first the gradients are rounding of what cancels out
        assert (got.double() - want).norm() <= 3 * 2**-9 * want.norm()


def test_a_weight_of_nearly_1_leaves_small_gradients():
    """They are differences from the result, which must not have been rounded to bfloat16 first."""
    query, key, value = (x.detach() for x in _inputs(1, 9, 40, 8, 16))
    key[:, :, 0], key[:, :, 1:] = 1, key[:, :, 1:] / 8
    inputs = [x.requires_grad_() for x in (3 * query.abs() + 1, key, value)]
    arriving = torch.randn(1, 16, 9).bfloat16()
    got, want = _all(attend, inputs, arriving)[1], _exact(inputs, arriving)[1]
    assert (got.double() - want).norm() <= 0.02 * want.norm()


def test_logits_of_minus_infinity_are_weights_of_0():
    """In all keys of a tile, too."""
    query, key, value = (x.detach() for x in _inputs(1, 3, 600, 2, 4))
    query, key = 1e30 * (query.abs() + 1), 1e-30 * key
    key[:, :, :550] = -torch.finfo(torch.bfloat16).max
    got = attend(query, key, value)
    assert got.isfinite().all() and torch.equal(got, attend(query, key[:, :, 550:], value[:, :, 550:]))


def test_nothing_to_attend_for():
    inputs = _inputs(2, 0, 30, 4, 3)
    got = _all(attend, inputs, torch.zeros(2, 3, 0))
    assert [tuple(x.shape) for x in got] == [(2, 3, 0), (2, 4, 0), (2, 4, 30), (2, 3, 30)]
    assert not any(x.any() for x in got)


def test_a_graph_of_the_gradient():
    inputs, arriving = _inputs(1, 20, 15, 4, 6), torch.randn(1, 6, 20).bfloat16()

    def penalty(function, inputs):
        grads = torch.autograd.grad(function(*inputs), inputs, arriving.to(inputs[0].dtype), create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs)

    got, want = penalty(attend, inputs), penalty(_formula, [x.detach().double().requires_grad_() for x in inputs])
    for one, other in zip(got, want, strict=True):
        assert (one.double() - other).norm() <= 0.02 * other.norm()


def test_the_framework_s_own_products_are_what_they_were():
    """oneDNN's kernels find their tiles configured as they left them, on every thread."""
    a, b = torch.randn(2, 512, 512).bfloat16().unbind()
    convolution = torch.nn.Conv2d(64, 64, 3).bfloat16().to(memory_format=torch.channels_last)
    maps = torch.randn(2, 64, 30, 30).bfloat16().to(memory_format=torch.channels_last)
    want = a @ b, convolution(maps)
    for sizes in SIZES[2:5]:
        _all(attend, _inputs(*sizes), torch.randn(sizes[0], sizes[4], sizes[1]))
        assert torch.equal(a @ b, want[0]) and torch.equal(convolution(maps), want[1])


def test_wrong_calls_are_refused():
    query, key, value = (x.detach().mT.contiguous() for x in _inputs(1, 20, 30, 4, 3))
    forward = torch.ops.fastsketch_C.attend_rows_forward
    for wrong in (
        (query.float(), key, value),
        (query, key[:, :, :3], value),
        (query, key, value[:, :29]),
        (query, key[:, :0], value[:, :0]),
        (query[0], key, value),
        (query, key.mT.contiguous().mT, value),
    ):
        with pytest.raises(RuntimeError, match="must"):
            forward(*wrong, 0.5)
