"""The halving pool's kernel against the framework's."""

import pytest
import torch
from torch import nn

from fastsketch.nn.max_pool import HalvingMaxPool, with_halving_pools
from fastsketch.nn.own_kernels import kernel, use_own_kernels

pytestmark = pytest.mark.skipif(kernel("max_pool", torch.device("cpu")) is None, reason="the C++ kernels are not built")

SIZES = [(2, 2), (2, 3), (3, 2), (5, 7), (4, 33), (37, 66), (64, 130)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def _run(pool, x, arriving):
    x = x.detach().requires_grad_()
    out = pool(x)
    return out.detach(), torch.autograd.grad(out, x, arriving)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_value_and_gradient_are_the_framework_s_to_the_bit(size, dtype):
    x = torch.randn(2, 3, *size).to(dtype)
    arriving = torch.randn(2, 3, size[0] // 2, size[1] // 2).to(dtype)
    for given in (x, x.relu(), x.round()):  # with ties: of zeros, and of whole numbers
        got, want = (_run(pool, given, arriving) for pool in (HalvingMaxPool(), nn.MaxPool2d(2)))
        assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_broken_values():
    x = torch.randn(3, 2, 40, 70)
    x[torch.rand(x.shape) < 0.1] = float("nan")
    x[torch.rand(x.shape) < 0.1] = float("inf")
    x[torch.rand(x.shape) < 0.1] = -float("inf")
    arriving = torch.randn(3, 2, 20, 35)
    arriving[0, 0, 0, 0] = float("inf")
    for one, other in zip(_run(HalvingMaxPool(), x, arriving), _run(nn.MaxPool2d(2), x, arriving), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_half_precision_passes(dtype):
    arriving = torch.arange(-(2**15), 2**15).short().view(dtype).reshape(1, 1, 256, 256)
    _, gradient = _run(HalvingMaxPool(), torch.zeros(1, 1, 512, 512, dtype=dtype), arriving)
    kept = gradient[..., ::2, ::2]
    torch.testing.assert_close(kept, arriving, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(kept.signbit()[arriving == 0], arriving.signbit()[arriving == 0])


def test_any_strides():
    x = torch.randn(2, 8, 12, 10).to(memory_format=torch.channels_last)[:, ::2, 1:]
    arriving = torch.randn(1, 1, 1, 1).expand(2, 4, 5, 5)
    want = _run(nn.MaxPool2d(2), x.contiguous(), arriving.contiguous())
    for one, other in zip(_run(HalvingMaxPool(), x, arriving), want, strict=True):
        assert torch.equal(one, other)
    assert HalvingMaxPool()(torch.zeros(0, 4, 6, 6)).shape == (0, 4, 3, 3)


@pytest.mark.parametrize("own_kernel", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_whose_pool_it_is(own_kernel, channels_last):
    pool = HalvingMaxPool()
    use_own_kernels(pool, own_kernel)
    x = torch.randn(2, 3, 8, 6, requires_grad=True)
    out = pool(x.to(memory_format=torch.channels_last) if channels_last else x)
    assert (out.grad_fn.name() == "_MaxPoolBackward") == (own_kernel and not channels_last)


def test_only_plain_halving_pools_are_replaced():
    others = [nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(3, 2), nn.MaxPool2d(2, padding=1), nn.AvgPool2d(2)]
    network = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(kernel_size=2, stride=2), *others)
    kinds = [type(layer) for layer in with_halving_pools(network)]
    assert kinds[:3] == [nn.ReLU, HalvingMaxPool, HalvingMaxPool]
    assert kinds[3:] == [type(layer) for layer in others] and type(network[1]) is nn.MaxPool2d
