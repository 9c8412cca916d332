"""What keeps the generator's maps in scale: instance norms as in CUT, or demodulated weights."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fastsketch.errors import FastsketchError
from fastsketch.nn import ResnetGenerator
from fastsketch.nn.convolution import DemodulatedConv2d, use_winograd
from fastsketch.nn.instance_norm import InstanceNorm
from fastsketch.training.checkpoint import load_generator, save_generator


def layer(gain: float = 1.0, channels: tuple[int, int] = (6, 4), **options) -> DemodulatedConv2d:
    torch.manual_seed(0)
    return DemodulatedConv2d(*channels, padding=1, gain=gain, **options).double()


def generator(demodulated: str, blocks: int = 9, **options) -> ResnetGenerator:
    torch.manual_seed(0)
    return ResnetGenerator(3, 1, 8, blocks, demodulated=demodulated, gain=1.0, **options)


WHERE = ("none", "decoder", "blocks")


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_value_and_gradients_are_those_of_the_formula(mode):
    conv = layer(gain=1.5, padding_mode=mode)
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64, requires_grad=True)
    norms = (torch.linalg.vector_norm(conv.weight.flatten(1), dim=1).square() + 1e-8).sqrt()
    weight = 1.5 * conv.weight / norms[:, None, None, None]
    padded = F.pad(x, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    want, got = F.conv2d(padded, weight, conv.bias), conv(x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    arriving, inputs = torch.randn_like(want), (x, *conv.parameters())
    for a, b in zip(*(torch.autograd.grad(out, inputs, arriving) for out in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_weights_scale_does_not_matter():
    conv, x = layer(), torch.randn(1, 6, 8, 8, dtype=torch.float64)
    want = conv(x)
    for factor in (0.1, 1e3):
        with torch.no_grad():
            conv.weight.mul_(factor)
        torch.testing.assert_close(conv(x), want, rtol=1e-4, atol=1e-6)
        (gradient,) = torch.autograd.grad(conv(x).square().sum(), conv.weight)
        along = (gradient * conv.weight).sum() / (gradient.norm() * conv.weight.norm())
        assert abs(along) < 1e-3  # none along the weights themselves


def test_weights_of_nothing_give_the_bias_and_a_finite_gradient():
    conv, x = layer(), torch.randn(1, 6, 8, 8, dtype=torch.float64)
    torch.nn.init.zeros_(conv.weight)
    out = conv(x)
    assert torch.equal(out, conv.bias[None, :, None, None].expand_as(out))
    assert torch.autograd.grad(out.sum(), conv.weight)[0].isfinite().all()


def test_noise_comes_out_as_strong_as_gain_says():
    conv = layer(gain=2**0.5, channels=(64, 64))
    x = 3 * torch.randn(1, 64, 64, 64, dtype=torch.float64)
    out = torch.relu(conv(x) - conv.bias[None, :, None, None])
    torch.testing.assert_close(out.square().mean().sqrt(), x.square().mean().sqrt(), rtol=0.05, atol=0)


def test_winograds_way_is_the_same_function():
    conv = layer(channels=(32, 32))
    x = torch.randn(1, 32, 16, 16, dtype=torch.float64, requires_grad=True)
    inputs = (x, *conv.parameters())

    def run():
        out = conv(x)
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    want = run()
    use_winograd(conv)
    assert not torch.equal(conv(x), want[0])  # by that way indeed
    for a, b in zip(run(), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("where", WHERE)
def test_how_far_a_cell_of_the_last_block_is_seen(where):
    """By an instance norm in all places; by demodulated weights where convolutions carry it."""
    net = generator(where, 5).double()
    decoder = net.model[17:]
    x = torch.randn(1, 32, 16, 16, dtype=torch.float64)
    changed = x.clone()
    changed[..., 0, 0] += 100
    apart = (decoder(changed) - decoder(x))[0, 0] != 0
    assert apart[:4, :4].all()
    assert apart[32:, 32:].all() == apart[32:, 32:].any() == (where == "none")


@pytest.mark.parametrize("blocks", [5, 9])
@pytest.mark.parametrize("where", WHERE)
def test_first_drawings_are_neither_flat_nor_saturated(where, blocks):
    net = generator(where, blocks)
    smooth = F.interpolate(torch.rand(1, 3, 8, 8) * 2 - 1, size=(64, 64), mode="bilinear")  # as photos are
    before_tanh = torch.atanh(net(smooth, torch.ones(1, 1, 64, 64)).double().clamp(-1 + 1e-7, 1 - 1e-7))
    assert 0.3 < before_tanh.square().mean().sqrt() < 3


@pytest.mark.parametrize(
    ("where", "layers"), [("decoder", {"22", "26"}), ("blocks", {"22", "26", *map(str, range(12, 21))})]
)
def test_names_are_the_same_and_only_these_layers_differ(where, layers):
    ours, cuts = generator(where, attention=False), generator("none", attention=False)
    assert list(ours.state_dict()) == list(cuts.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), cuts.parameters(), strict=True))
    names = [name for name, part in ours.model.named_modules() if isinstance(part, DemodulatedConv2d)]
    assert {name.split(".")[0] for name in names} == layers
    assert len(names) == 2 + 2 * (len(layers) - 2)
    behind = {str(int(layer) + 1) for layer in layers} | layers
    for name, part in ours.model.named_modules():
        assert not (isinstance(part, InstanceNorm) and name.split(".")[0] in behind)


def test_blocks_together_add_about_what_comes_in():
    blocks = generator("blocks", attention=False).model[12:21]
    x = torch.randn(1, 32, 64, 64)
    with torch.no_grad():
        strength = blocks(x).square().mean().sqrt() / x.square().mean().sqrt()
    assert 1.2 < strength < 2.2  # (1 + 1/9)⁹ ≈ 1.6², were all uncorrelated


def test_a_saved_generator_keeps_its_norm(tmp_path):
    """One of before there was a choice has instance norms alone."""
    image, mask = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    for where in WHERE:
        net, path = generator(where).eval(), tmp_path / f"{where}.safetensors"
        save_generator(path, net)
        again = load_generator(path)
        use_winograd(again, False)
        assert again.architecture["demodulated"] == where
        assert torch.equal(again(image, mask), net(image, mask))
    about = {name: value for name, value in net.architecture.items() if name != "demodulated"}
    save_file(load_file(path), path, {"fastsketch": json.dumps(about)})
    assert load_generator(path).architecture["demodulated"] == "none"
    save_file(load_file(path), path, {"fastsketch": json.dumps({**about, "demodulated": "encoder"})})
    with pytest.raises(FastsketchError, match=r"demodulated must be one of none, decoder, blocks, got 'encoder'"):
        load_generator(path)
