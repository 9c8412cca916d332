"""Winograd's convolution against the framework's, in float64 and float32, alone and inside the networks."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import vgg16

from fastsketch.nn import PerceptualLoss, ResnetGenerator
from fastsketch.nn.winograd import Conv3x3, as_conv3x3, use_winograd, winograd_conv2d


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(2, 3, 6, 6, 5), (1, 4, 9, 11, 3), (2, 2, 3, 3, 2), (3, 5, 18, 10, 4), (1, 1, 7, 4, 1)]
)
def test_value_and_gradients_in_float64(shape, bias):
    batch, channels, height, width, out = shape
    x = torch.randn(batch, channels, height, width, dtype=torch.float64, requires_grad=True)
    inputs = [x, torch.randn(out, channels, 3, 3, dtype=torch.float64, requires_grad=True)]
    if bias:
        inputs.append(torch.randn(out, dtype=torch.float64, requires_grad=True))
    got, want = winograd_conv2d(*inputs), F.conv2d(*inputs)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    arriving = torch.randn_like(want)
    gradients = zip(
        torch.autograd.grad(got, inputs, arriving), torch.autograd.grad(want, inputs, arriving), strict=True
    )
    for a, b in gradients:
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_gradients_by_finite_differences():
    inputs = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((1, 2, 7, 6), (3, 2, 3, 3), (3,))]
    assert torch.autograd.gradcheck(winograd_conv2d, inputs)


def test_any_strides_and_only_the_gradients_asked_for():
    x = torch.randn(2, 8, 12, 10).to(memory_format=torch.channels_last)[:, ::2, 1:]
    weight = torch.randn(3, 4, 3, 3)
    torch.testing.assert_close(winograd_conv2d(x, weight), F.conv2d(x, weight), rtol=1e-4, atol=1e-4)
    weight.requires_grad_()
    out = winograd_conv2d(x, weight)
    arriving = torch.randn(1, 1, 1, 1).expand_as(out)
    (got,) = torch.autograd.grad(out, weight, arriving)
    (want,) = torch.autograd.grad(F.conv2d(x, weight), weight, arriving)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_rounding_in_float32_is_that_of_a_few_more_additions():
    x, weight = torch.randn(1, 256, 34, 34), torch.randn(256, 256, 3, 3) * 0.02
    truth = F.conv2d(x.double(), weight.double())
    error = (winograd_conv2d(x, weight) - truth).abs().max() / truth.abs().max()
    assert error < 2e-5


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
    assert sum(m.winograd for m in generator.modules() if isinstance(m, Conv3x3)) == 14
    again, gradients_again = run()
    torch.testing.assert_close(again, out, rtol=1e-9, atol=1e-12)
    for a, b in zip(gradients_again, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    assert set(generator.state_dict()) == names
    use_winograd(generator, False)
    assert torch.equal(generator(image, mask), out)


def test_half_precision_and_narrow_layers_take_the_direct_way():
    wide, narrow = Conv3x3(64, 64), Conv3x3(64, 8)
    for layer in (wide, narrow):
        use_winograd(layer)
    assert wide.winograd and not narrow.winograd
    x = torch.randn(1, 64, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert wide(x).dtype == torch.bfloat16
    assert wide.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="x must be"):
        winograd_conv2d(torch.zeros(1, 2, 2, 5), torch.zeros(1, 2, 3, 3))
    with pytest.raises(ValueError, match="weight must be"):
        winograd_conv2d(torch.zeros(1, 2, 5, 5), torch.zeros(1, 3, 3, 3))


def test_a_foreign_network_keeps_its_weights_and_its_function():
    torch.manual_seed(0)
    features = vgg16(weights=None).features[:23].double()
    image, target = (torch.rand(1, 3, 32, 32, dtype=torch.float64) for _ in range(2))
    image.requires_grad_()
    state = {name: value.clone() for name, value in features.state_dict().items()}
    want = PerceptualLoss(features).double()(image, target)
    (want_gradient,) = torch.autograd.grad(want, image)
    loss = PerceptualLoss(as_conv3x3(features)).double()
    use_winograd(loss)
    # All but the first, which reads three channels.
    assert sum(m.winograd for m in loss.modules() if isinstance(m, Conv3x3)) == 9
    assert all(torch.equal(value, state[name]) for name, value in features.state_dict().items())
    got = loss(image, target)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(got, image)
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-5, atol=1e-9)
    strided = as_conv3x3(torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, stride=2), torch.nn.Conv2d(64, 64, 1)))
    assert not any(isinstance(layer, Conv3x3) for layer in strided)
