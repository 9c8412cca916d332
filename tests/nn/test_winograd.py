"""Winograd's convolution against the framework's, in float64 and float32, alone and inside the networks."""

import pytest
import torch
import torch.nn.functional as F

from fastsketch._backend import use_backend
from fastsketch.nn import PatchDiscriminator, PerceptualLoss, ResnetGenerator
from fastsketch.nn.convolution import (
    MIN_TILES,
    WinogradConv2d,
    as_winograd,
    convolve,
    use_winograd,
    winograd_is_available,
)
from fastsketch.weights import random_vgg16_features

pytestmark = pytest.mark.skipif(not winograd_is_available(), reason="the C++ kernels are not built")


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [(0, "zeros"), (1, "zeros"), (2, "zeros"), (1, "reflect"), (2, "reflect")])
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 6, 6, 5), (1, 20, 9, 11, 33), (2, 2, 0, 0, 2), (3, 16, 18, 37, 24), (1, 1, 7, 4, 1), (1, 2, 140, 131, 3)],
)
def test_value_and_gradients_in_float64(shape, padding, bias, size):
    batch, channels, height, width, out = shape
    height, width = height or size, width or size  # 0: as the kernel
    x = torch.randn(batch, channels, height, width, dtype=torch.float64, requires_grad=True)
    inputs = [x, torch.randn(out, channels, size, size, dtype=torch.float64, requires_grad=True)]
    if bias:
        inputs.append(torch.randn(out, dtype=torch.float64, requires_grad=True))
    got = convolve(*inputs, padding=padding[0], padding_mode=padding[1])
    padded = F.pad(x, (padding[0],) * 4, mode=padding[1].replace("zeros", "constant"))
    want = F.conv2d(padded, *inputs[1:])
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    arriving = torch.randn_like(want)
    gradients = zip(
        torch.autograd.grad(got, inputs, arriving), torch.autograd.grad(want, inputs, arriving), strict=True
    )
    for a, b in gradients:
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [3, 4])
def test_gradients_by_finite_differences(size):
    shapes = ((1, 2, 7, 6), (3, 2, size, size), (3,))
    inputs = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(convolve, inputs)


def test_any_strides_and_only_the_gradients_asked_for():
    x = torch.randn(2, 8, 12, 10).to(memory_format=torch.channels_last)[:, ::2, 1:]
    weight = torch.randn(3, 4, 3, 3)
    torch.testing.assert_close(convolve(x, weight), F.conv2d(x, weight), rtol=1e-4, atol=1e-4)
    weight.requires_grad_()
    out = convolve(x, weight)
    arriving = torch.randn(1, 1, 1, 1).expand_as(out)
    (got,) = torch.autograd.grad(out, weight, arriving)
    (want,) = torch.autograd.grad(F.conv2d(x, weight), weight, arriving)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [3, 4])
def test_rounding_in_float32_is_that_of_a_few_more_additions(size):
    x, weight = torch.randn(2, 256, 31 + size, 31 + size), torch.randn(256, 256, size, size) * 0.02
    arriving = torch.randn(2, 256, 32, 32)

    def run(convolve, dtype):
        inputs = [value.to(dtype).requires_grad_() for value in (x, weight)]
        out = convolve(*inputs)
        return (out.detach(), *torch.autograd.grad(out, inputs, arriving.to(dtype)))

    for got, truth in zip(run(convolve, torch.float32), run(F.conv2d, torch.float64), strict=True):
        assert (got - truth).abs().max() < 2e-5 * truth.abs().max()
        assert (got - truth).square().mean() < (4e-6) ** 2 * truth.square().mean()


@pytest.mark.parametrize("size", [3, 4])
def test_values_do_not_depend_on_the_number_of_threads(size, with_threads):
    x, weight = torch.randn(2, 64, 40, 27), torch.randn(48, 64, size, size, requires_grad=True)

    def run():
        out = convolve(x, weight, None, 1)
        return out.detach(), *torch.autograd.grad(out.square().sum(), weight)

    results = with_threads(run)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_small_pictures_and_missing_kernels_take_the_frameworks_way():
    layer = WinogradConv2d(64, 64, 3, 1)
    use_winograd(layer)
    direct = torch.nn.Conv2d(64, 64, 3, padding=1)
    direct.load_state_dict(layer.state_dict())
    small, large = torch.randn(1, 64, 4, 4 * MIN_TILES - 4), torch.randn(1, 64, 4, 4 * MIN_TILES)
    assert torch.equal(layer(small), direct(small))
    assert not torch.equal(layer(large), direct(large))
    with use_backend("reference"):
        assert torch.equal(layer(large), direct(large))


def test_a_generator_is_the_same_function_either_way():
    torch.manual_seed(0)
    generator = ResnetGenerator(3, 1, 64, 5).double()
    names = set(generator.state_dict())
    image, mask = torch.rand(1, 3, 36, 32, dtype=torch.float64), torch.ones(1, 1, 36, 32, dtype=torch.float64)

    def run():
        generator.zero_grad()
        out = generator(image, mask)
        out.square().sum().backward()
        return out.detach(), [p.grad.clone() for p in generator.parameters()]

    out, gradients = run()
    use_winograd(generator)
    assert sum(m.winograd for m in generator.modules() if isinstance(m, WinogradConv2d)) == 14
    again, gradients_again = run()
    torch.testing.assert_close(again, out, rtol=1e-9, atol=1e-12)
    for a, b in zip(gradients_again, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    assert set(generator.state_dict()) == names
    use_winograd(generator, False)
    assert torch.equal(generator(image, mask), out)


def test_a_discriminator_is_the_same_function_either_way():
    torch.manual_seed(0)
    judge, image = PatchDiscriminator(1, 32).double(), torch.rand(2, 1, 64, 52, dtype=torch.float64)

    def run():
        out = judge(image)
        return out.detach(), *torch.autograd.grad(out.square().sum(), list(judge.parameters()))

    want = run()
    use_winograd(judge)
    assert sum(m.winograd for m in judge.modules() if isinstance(m, WinogradConv2d)) == 3
    for one, other in zip(run(), want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_half_precision_and_narrow_layers_take_the_direct_way():
    wide, narrow = WinogradConv2d(64, 64), WinogradConv2d(64, 8)
    for layer in (wide, narrow):
        use_winograd(layer)
    assert wide.winograd and not narrow.winograd
    x = torch.randn(1, 64, 26, 26)  # tiles enough to be worth the transforms
    with torch.autocast("cpu", torch.bfloat16):
        assert wide(x).dtype == torch.bfloat16
    for dtype in (torch.bfloat16, torch.float16):
        given = x.to(dtype).requires_grad_()
        out = wide.to(dtype)(given)
        wanted = torch.nn.functional.conv2d(given, wide.weight, wide.bias)
        assert out.dtype == dtype and torch.equal(out, wanted)
        assert torch.autograd.grad(out.sum(), given)[0].dtype == dtype


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="x must be"):
        convolve(torch.zeros(1, 2, 2, 5), torch.zeros(1, 2, 3, 3))
    for weight in ((1, 3, 3, 3), (1, 2, 4, 3), (1, 2, 5, 5), (2, 3, 3)):
        with pytest.raises(ValueError, match="weight must be"):
            convolve(torch.zeros(1, 2, 5, 5), torch.zeros(weight))
    for padding, mode in ((3, "zeros"), (1, "circular")):
        with pytest.raises(ValueError, match="padding must be"):
            convolve(torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 3, 3), None, padding, mode)
    with pytest.raises(ValueError, match=r"bias must be \[4\], got \[3\]"):
        convolve(torch.zeros(1, 2, 5, 5), torch.zeros(4, 2, 3, 3), torch.zeros(3))
    with pytest.raises(TypeError, match="padding must be an int, got bool"):
        convolve(torch.zeros(1, 2, 5, 5), torch.zeros(4, 2, 3, 3), None, True)
    with pytest.raises(TypeError, match=r"weight must have x's dtype torch\.float32, got torch\.float64"):
        convolve(torch.zeros(1, 2, 5, 5), torch.zeros(4, 2, 3, 3).double())
    with pytest.raises(ValueError, match="sides of at least 3"):
        convolve(torch.zeros(1, 2, 5, 2), torch.zeros(1, 2, 3, 3), None, 2, "reflect")
    for size, padding, least in ((3, 0, 3), (3, 1, 1), (4, 1, 2), (7, 2, 3)):
        weight = torch.zeros(1, 2, size, size)
        assert convolve(torch.zeros(1, 2, 9, least), weight, None, padding).shape[3] == 1
        with pytest.raises(ValueError, match=f"sides of at least {least}, got"):
            convolve(torch.zeros(1, 2, 9, least - 1), weight, None, padding)


def test_a_foreign_network_keeps_its_weights_and_its_function():
    torch.manual_seed(0)
    features = random_vgg16_features()[:23].double()
    image, target = (torch.rand(1, 3, 32, 32, dtype=torch.float64) for _ in range(2))
    image.requires_grad_()
    state = {name: value.clone() for name, value in features.state_dict().items()}
    want = PerceptualLoss(features).double()(image, target)
    (want_gradient,) = torch.autograd.grad(want, image)
    loss = PerceptualLoss(as_winograd(features)).double()
    use_winograd(loss)
    # All but the first, which reads three channels.
    assert sum(m.winograd for m in loss.modules() if isinstance(m, WinogradConv2d)) == 9
    assert all(torch.equal(value, state[name]) for name, value in features.state_dict().items())
    got = loss(image, target)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(got, image)
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-5, atol=1e-9)
    strided = as_winograd(torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, stride=2), torch.nn.Conv2d(64, 64, 1)))
    assert not any(isinstance(layer, WinogradConv2d) for layer in strided)
    bare = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    x = torch.randn(1, 3, 6, 7)
    want, (bare,) = bare(x), as_winograd(bare)
    assert isinstance(bare, WinogradConv2d) and torch.equal(bare(x), want)


def test_under_autocast_the_tiles_are_float32():
    layer, x = WinogradConv2d(32, 32, padding=1, padding_mode="reflect"), torch.randn(1, 32, 16, 16)
    use_winograd(layer)
    x = x.bfloat16().float()  # so that nothing is rounded on the way in
    want = layer(x)
    arriving = torch.randn_like(want).bfloat16()
    want_weight, want_x = torch.autograd.grad(layer(x.requires_grad_()), (layer.weight, x), arriving.float())
    rounded = want_x.bfloat16().float()  # on the way back to a bfloat16 input
    for given, expected in ((x, want_x), (x.bfloat16(), rounded)):
        with torch.autocast("cpu", torch.bfloat16):
            got = layer(given)
        assert got.dtype == torch.bfloat16 and torch.equal(got, want.bfloat16())
        weight, back = torch.autograd.grad(got, (layer.weight, x), arriving)
        assert torch.equal(weight, want_weight) and torch.equal(back, expected)
    layer, x = layer.double(), x.detach().double()
    want = layer(x)
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 alone
        assert torch.equal(layer(x), want) and want.dtype == torch.float64
