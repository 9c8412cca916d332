"""Checkpoints of CUT's generator load into fastsketch's, against the generator evaluated from its checkpoint."""

import torch
import torch.nn.functional as F

from fastsketch.nn import ResnetGenerator


def cut_generator_state(width):
    """A netG checkpoint of resnet_9blocks by CUT's names: layer numbers, instance norms without parameters."""

    def blur(row, gain, channels):
        row = torch.tensor(row)
        return (gain * torch.outer(row, row) / row.sum() ** 2).repeat(channels, 1, 1, 1)

    convolutions = {1: (3, width, 7), 4: (width, 2 * width, 3), 8: (2 * width, 4 * width, 3)}
    convolutions |= {f"{n}.conv_block.{i}": (4 * width, 4 * width, 3) for n in range(12, 21) for i in (1, 5)}
    convolutions |= {22: (4 * width, 2 * width, 3), 26: (2 * width, width, 3), 30: (width, 3, 7)}
    state = {}
    for name, (fan_in, fan_out, side) in convolutions.items():
        state[f"model.{name}.weight"] = torch.randn(fan_out, fan_in, side, side) * (fan_in * side**2) ** -0.5
        state[f"model.{name}.bias"] = torch.randn(fan_out)
    for number, channels in ((7, 2 * width), (11, 4 * width)):
        state[f"model.{number}.filt"] = blur([1.0, 2.0, 1.0], 1, channels)
    for number, channels in ((21, 4 * width), (25, 2 * width)):
        state[f"model.{number}.filt"] = blur([1.0, 3.0, 3.0, 1.0], 4, channels)
    return state


def cut_generate(state, x):
    """CUT's generator evaluated from its checkpoint."""

    def conv(x, name, pad=0, mode="constant"):
        pad = F.pad(x, [pad] * 4, mode=mode)
        return F.conv2d(pad, state[f"model.{name}.weight"], state[f"model.{name}.bias"])

    x = F.instance_norm(conv(x, 1, 3, "reflect")).relu()
    for number in (4, 8):
        x = F.instance_norm(conv(x, number, 1)).relu()
        x = F.conv2d(F.pad(x, [1] * 4, "reflect"), state[f"model.{number + 3}.filt"], stride=2, groups=x.shape[1])
    for number in range(12, 21):
        y = F.instance_norm(conv(x, f"{number}.conv_block.1", 1, "reflect")).relu()
        x = x + F.instance_norm(conv(y, f"{number}.conv_block.5", 1, "reflect"))
    for number in (21, 25):
        padded = F.pad(x, [1] * 4, "replicate")
        x = F.conv_transpose2d(padded, state[f"model.{number}.filt"], stride=2, padding=2, groups=x.shape[1])
        x = F.instance_norm(conv(x[:, :, 1:-1, 1:-1], number + 1, 1)).relu()
    return conv(x, 30, 3, "reflect").tanh()


def test_old_generator_checkpoints_load():
    torch.manual_seed(0)
    state = cut_generator_state(4)
    netg = ResnetGenerator(in_channels=3, out_channels=3, width=4, blocks=9, attention=False, mask_channel=False)
    netg.load_state_dict(state, strict=True)
    assert netg.state_dict().keys() == state.keys()  # and CUT loads ours
    x = torch.rand(2, 3, 32, 24) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(netg(x), cut_generate(state, x), rtol=1e-4, atol=1e-5)
