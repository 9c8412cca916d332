"""Norms, distances of features, blurs and padding in Triton's interpreter: against formulas, and in whole networks."""

import pytest
import torch
import torch.nn.functional as F

from fastsketch import triton as kernels
from fastsketch.nn import PatchDiscriminator, ResnetGenerator, blur, instance_norm, own_kernels, padding
from fastsketch.nn.own_kernels import use_own_kernels
from fastsketch.reference import features, norm, stencils
from fastsketch.triton.norm import MOST_SHARES

pytestmark = pytest.mark.interpret

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def randn(*shape: int, seed: int = 0, dtype=torch.float32, layout=torch.contiguous_format) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype, memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("shape", [(2, 3, 1, 7), (1, 70, 12, 13), (1, 2, 33, 64)], ids=str)
def test_instance_norm(shape, slope, layout):
    x = 3 * randn(*shape, layout=layout) + 5
    out, mean, scale = kernels.instance_norm(x, slope, 1e-5)
    want = norm.instance_norm(x.double(), slope, 1e-5)
    for got, exact in zip((out, mean, scale), want, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=2e-6)
    assert out.stride() == x.stride()
    z = norm.instance_norm(x.double(), 1.0, 1e-5)[0]
    arriving = randn(*shape, seed=1) * (z.abs() > 1e-4)
    for grad in (arriving, arriving.to(memory_format=torch.channels_last), arriving[:, :1].expand(shape)):
        got = kernels.instance_norm_gradient(grad, x, mean, scale, slope)
        exact = norm.instance_norm_gradient(grad.double(), x.double(), *want[1:], slope)
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=4e-6)
        assert got.stride() == x.stride()


def test_many_shares_and_a_mean_far_from_zero():
    x = randn(1, 1, 8 * MOST_SHARES, 130, layout=torch.channels_last) + 1000
    out, mean, scale = kernels.instance_norm(x, 1.0, 0.0)
    want = norm.instance_norm(x.double(), 1.0, 0.0)
    assert (out - want[0]).abs().max() < 2e-4  # a unit in the last place of 1000 is 6e-5
    torch.testing.assert_close((mean.double(), scale.double()), want[1:], rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_broken_values_stay_in_their_own_map():
    for layout in LAYOUTS:
        x = randn(2, 3, 20, 20, layout=layout)
        x[0, 1, 3, 4], x[1, 2, 0, 0] = float("nan"), float("inf")
        bad = kernels.instance_norm(x, 0.0, 1e-5)[0].isnan().all(3).all(2)
        assert bad.tolist() == [[False, True, False], [False, False, True]]


def test_odd_strides_empty_and_float64():
    x = randn(2, 8, 12, 10).to(memory_format=torch.channels_last)[:, ::2, 1:]
    want = kernels.instance_norm(x.contiguous(), 0.2, 1e-5)
    for got, one in zip(kernels.instance_norm(x, 0.2, 1e-5), want, strict=True):
        assert torch.equal(got, one)
    assert torch.equal(kernels.blur_downsample(x), kernels.blur_downsample(x.contiguous()))
    assert kernels.instance_norm(x[:0], 0.2, 1e-5)[0].shape == (0, 4, 11, 10)
    assert kernels.blur_upsample(x[:0]).shape == (0, 4, 22, 20)
    x = x.double()
    assert torch.equal(kernels.instance_norm(x, 0.2, 1e-5)[0], norm.instance_norm(x, 0.2, 1e-5)[0])
    assert torch.equal(kernels.reflection_pad(x, 2), stencils.apply("reflect 2", x))
    assert torch.equal(kernels.feature_distance(x, -x, 1e-3), features.feature_distance(x, -x, 1e-3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 1, 7), (1, 70, 12, 13), (3, 10, 20, 33)], ids=str)
def test_feature_distance(shape, layout, dtype):
    one = randn(*shape, dtype=dtype, layout=layout).relu()
    one[0, :, 0, 3] = 0
    grad = randn(shape[0], seed=2)
    for two in (
        randn(*shape, seed=1, dtype=dtype),
        randn(*shape, seed=1, dtype=dtype, layout=torch.channels_last),
        randn(*shape[:3], 2 * shape[3], seed=1, dtype=dtype)[..., ::2],
    ):
        wide = one.double(), two.double()
        loss = kernels.feature_distance(one, two, 1e-3)
        torch.testing.assert_close(loss.double(), features.feature_distance(*wide, 1e-3), rtol=1e-6, atol=0)
        got = kernels.feature_distance_gradient(grad, one, two, 1e-3)
        want = features.feature_distance_gradient(grad.double(), *wide, 1e-3)
        assert got.dtype == dtype and got.stride() == one.stride()
        empty = one[:, :1].new_zeros((shape[0], 1, *shape[2:])).bool()
        empty[0, :, 0, 3] = True  # where the gradient is a thousand times the others'
        for part in (empty.expand(shape), ~empty.expand(shape)):
            error, size = (got.double() - want)[part].abs(), want[part].abs()
            assert (error <= torch.finfo(dtype).eps * size + 1e-6 * size.max()).all()
    assert not kernels.feature_distance(one, one, 1e-3).any()


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 9), (1, 70, 13, 6)], ids=str)
@pytest.mark.parametrize("border", [1, 2, 3])
def test_padding_is_the_framework_s(border, shape, layout):
    x = randn(*shape, layout=layout).requires_grad_()
    want = F.pad(x, (border,) * 4, mode="reflect")
    got = kernels.reflection_pad(x.detach(), border)
    assert torch.equal(got, want)
    assert got.is_contiguous(memory_format=layout)
    arriving = randn(*want.shape, seed=1, layout=layout)
    grad = kernels.reflection_pad_gradient(arriving, border)
    torch.testing.assert_close(grad, torch.autograd.grad(want, x, arriving)[0], rtol=1e-6, atol=1e-6)
    assert grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("kind", stencils.KINDS)
def test_matrices_are_the_layers(kind):
    """The formulas of the reference against the framework's operators, in float64."""
    layers = {"blur_downsample": blur.BlurDownsample(3), "blur_upsample": blur.BlurUpsample(3)}
    border = int(kind[-1]) if kind.startswith("reflect") else 0
    layer = layers.get(kind, padding.ReflectionPad(border)).double()
    use_own_kernels(layer, False)
    for size in ((2, 2), (5, 8), (40, 7)):
        if min(size) > border:
            x = randn(2, 3, *size, dtype=torch.float64).requires_grad_()
            want = layer(x)
            torch.testing.assert_close(stencils.apply(kind, x), want, rtol=1e-12, atol=1e-12)
            grad = torch.autograd.grad(want, x, torch.ones_like(want))[0]
            got = stencils.gradient(kind, torch.ones_like(want), *size)
            torch.testing.assert_close(got, grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_whole_networks(monkeypatch, layout):
    """A generator and a discriminator with all of them, as on a GPU: as near float64 as the framework's operators."""
    for module in (own_kernels, blur, instance_norm, padding):
        monkeypatch.setattr(module, "kernel", lambda name, device: getattr(kernels, name, None))
    torch.manual_seed(0)
    picture = randn(1, 3, 32, 32).to(memory_format=layout)
    for network, arguments in (
        (ResnetGenerator(3, 1, 4, 5), (picture, torch.ones(1, 1, 32, 32))),
        (PatchDiscriminator(3, 4), (picture,)),
    ):
        network.double()
        network.to(memory_format=layout)
        results = []
        for own, dtype in ((False, torch.float64), (False, torch.float32), (True, torch.float32)):
            use_own_kernels(network, own)
            network.to(dtype)
            out = network(*(x.to(dtype) for x in arguments))
            grads = torch.autograd.grad(out.square().sum(), [*network.parameters()], allow_unused=True)
            results.append([out, *(g for g in grads if g is not None)])
        size = 0.0
        for exact, framework, got in zip(*results, strict=True):
            assert got.dtype == torch.float32
            # The gradient of a bias in front of a norm is 0: its rounding goes with the weights', which come before it.
            zero = exact.norm() < 1e-12
            size = size if zero else exact.norm()
            allowed = 3 * (framework - exact).norm() + (1e-6 if zero else 1e-4) * size
            assert (got - exact).norm() <= allowed, tuple(exact.shape)
