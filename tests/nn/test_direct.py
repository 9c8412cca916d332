"""Convolutions of 7×7 against the framework's, alone and inside the generator."""

import pytest
import torch
import torch.nn.functional as F

from fastsketch._backend import use_backend
from fastsketch.nn import ResnetGenerator
from fastsketch.nn.convolution import DirectConv2d, convolve, winograd_is_available

pytestmark = pytest.mark.skipif(not winograd_is_available(), reason="the C++ kernels are not built")

PADDINGS = [(0, "zeros"), (2, "zeros"), (3, "zeros"), (1, "reflect"), (3, "reflect")]
SHAPES = [(1, 1, 7, 7, 1), (2, 3, 9, 70, 5), (1, 8, 40, 33, 1), (2, 4, 12, 8, 9), (1, 2, 7, 150, 3), (1, 3, 77, 64, 2)]


def _framework(x, weight, bias, padding, mode):
    return F.conv2d(F.pad(x, (padding,) * 4, mode=mode.replace("zeros", "constant")), weight, bias)


def _gradients(out, inputs, arriving):
    return (out.detach(), *torch.autograd.grad(out, inputs, arriving))


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_in_float64(shape, padding):
    images, channels, height, width, filters = shape
    shapes = (images, channels, height, width), (filters, channels, 7, 7), (filters,)
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    want = _framework(*inputs, *padding)
    arriving = torch.randn_like(want)
    got = _gradients(convolve(*inputs, *padding), inputs, arriving)
    for one, other in zip(got, _gradients(want, inputs, arriving), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gradients_by_finite_differences():
    shapes = (1, 2, 8, 7), (2, 2, 7, 7), (2,)
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(lambda *given: convolve(*given, 3, "reflect"), inputs)


@pytest.mark.parametrize(("channels", "filters"), [(4, 64), (64, 3), (64, 1)])
def test_rounding_is_of_the_size_of_the_frameworks(channels, filters):
    x, weight = torch.randn(2, channels, 70, 90), torch.randn(filters, channels, 7, 7) * 0.05
    arriving = torch.randn(2, filters, 64, 84)

    def run(function, dtype):
        inputs = [value.to(dtype).requires_grad_() for value in (x, weight)]
        return _gradients(function(*inputs), inputs, arriving.to(dtype))

    got, framework, truth = run(convolve, torch.float32), run(F.conv2d, torch.float32), run(F.conv2d, torch.float64)
    for one, other, exact in zip(got, framework, truth, strict=True):
        assert (one - exact).square().mean() <= 3**2 * (other - exact).square().mean()
        # The longest sums, of 64 · 49 terms in one order: half a unit times the root of their number is 1.7e-6.
        assert (one - exact).square().mean() <= (1.7e-6) ** 2 * exact.square().mean()


def test_values_do_not_depend_on_the_number_of_threads(with_threads):
    x, weight = torch.randn(2, 5, 40, 47, requires_grad=True), torch.randn(7, 5, 7, 7, requires_grad=True)
    arriving = torch.randn(2, 7, 40, 47)
    results = with_threads(lambda: _gradients(convolve(x, weight, None, 3, "reflect"), (x, weight), arriving))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_broken_value_reaches_what_it_should_and_no_more():
    x, weight = torch.randn(1, 2, 20, 30), torch.randn(1, 2, 7, 7)
    x[0, 1, 10, 12] = float("inf")
    with use_backend("reference"):
        want = convolve(x, weight, None, 3)
    got = convolve(x, weight, None, 3)
    assert torch.equal(got.isfinite(), want.isfinite())


def test_the_layer_has_the_frameworks_names_and_function():
    layer, plain = DirectConv2d(3, 5, 3, "reflect"), torch.nn.Conv2d(3, 5, 7, padding=3, padding_mode="reflect")
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)
    layer.own_kernel = False
    assert torch.equal(layer(x), plain(x))
    layer.own_kernel = True
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.bfloat16()(x.bfloat16()), plain.bfloat16()(x.bfloat16()))


def test_a_generator_is_the_same_function_either_way():
    torch.manual_seed(0)
    generator = ResnetGenerator(3, 1, 8, 5).double()
    image, mask = torch.rand(2, 3, 36, 52, dtype=torch.float64), torch.ones(2, 1, 36, 52, dtype=torch.float64)
    layers = [m for m in generator.modules() if isinstance(m, DirectConv2d)]
    assert len(layers) == 2

    def run():
        return _gradients(generator(image, mask), list(generator.parameters()), torch.ones(2, 1, 36, 52).double())

    got = run()
    for layer in layers:
        layer.own_kernel = False
    for one, other in zip(got, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_bad_padding_is_named():
    with pytest.raises(ValueError, match="padding must be 0 to 3"):
        convolve(torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 7, 7), None, 4)
    with pytest.raises(ValueError, match="sides of at least 4"):
        convolve(torch.zeros(1, 1, 3, 9), torch.zeros(1, 1, 7, 7), None, 3, "reflect")
