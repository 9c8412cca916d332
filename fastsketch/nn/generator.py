"""The ResNet generator with taps, a mask channel and dual attention (docs/method.md sections 1, 2 and 6)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastsketch._checks import FLOATING, INTEGER, check_like, check_tensor
from fastsketch.functional import tap_patches
from fastsketch.nn.attention import DualAttention
from fastsketch.nn.blur import BlurDownsample, BlurUpsample
from fastsketch.nn.convolution import DemodulatedConv2d, DirectConv2d, WinogradConv2d
from fastsketch.nn.init import init_weights
from fastsketch.nn.instance_norm import InstanceNorm
from fastsketch.nn.padding import ReflectionPad

INPUT_BORDER = 3
"""Reflection padding before the first convolution: the border of tapped layer 0."""

TAP_LAYERS = (0, 4, 8, 12, 16)
"""CUT's layers."""

Demodulated = Literal["none", "decoder", "blocks"]
"""Where `DemodulatedConv2d` stands in place of convolutions with instance norm; blocks: in blocks and decoder."""

RELU_GAIN = 2**0.5
"""Makes up for what a ReLU takes from noise."""


def _convolution(
    channels: int, out_channels: int, gain: float | None, slope: float, padding_mode: str = "zeros"
) -> list[nn.Module]:
    """A 3×3 convolution with instance norm, or demodulated to this gain; then a ReLU (slope 0) or nothing (1)."""
    if gain is None:
        return [WinogradConv2d(channels, out_channels, 3, 1, padding_mode), InstanceNorm(out_channels, slope)]
    convolution = DemodulatedConv2d(channels, out_channels, 3, 1, padding_mode, gain)
    return [convolution, nn.Identity() if slope else nn.ReLU()]


class ResnetBlock(nn.Module):
    """Two reflection-padded 3×3 convolutions with instance norm, added to their input.

    Args:
        channels: C.
        strength: of what is added, in units of the input, by demodulated convolutions in place of normed ones.
    """

    def __init__(self, channels: int, strength: float | None = None) -> None:
        super().__init__()
        # Identities stand where CUT has layers for padding and ReLU, so that the convolutions keep their numbers.
        half, rest = (
            [nn.Identity(), *_convolution(channels, channels, gain, slope, "reflect")]
            for slope, gain in ((0.0, None if strength is None else RELU_GAIN), (1.0, strength))
        )
        self.conv_block = nn.Sequential(*half, nn.Identity(), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return x + self.conv_block(x)


@dataclass(frozen=True)
class EncoderFeatures:
    """What a forward pass saw on its way.

    Attributes:
        layers: the tapped features, [B, C, H, W] each, part of the pass's graph.
        structure: [B, h, w] in [0, 1], the structure map on the last tapped layer's grid; None without attention.
    """

    layers: list[Tensor]
    structure: Tensor | None

    @property
    def structure_or_zeros(self) -> Tensor:
        """[B, h, w] to sample on: the structure map, or zeros without attention, where all positions are alike."""
        if self.structure is not None:
            return self.structure
        last = self.layers[-1]
        return last.new_zeros((last.shape[0], *last.shape[2:]))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of each tapped layer."""
        return [tuple(layer.shape[2:]) for layer in self.layers]


class ResnetGenerator(nn.Module):
    """Antialiased ResNet generator [L: CUT] with a mask channel [P] and dual attention behind the last tap [P, D].

    The layers stand in `model` under CUT's numbers, so its checkpoints (`model.1.weight` …) load where neither mask
    nor attention is used.

    Args:
        in_channels: of the picture; the encoder also reads generated sketches, expanded to this many channels.
        out_channels: of the sketch.
        width: channels of the first convolution, at least 1.
        blocks: residual blocks, at least those the taps need.
        mask_channel: take a mask as one more input channel.
        attention: put `DualAttention` behind the last tapped layer.
        demodulated: where `DemodulatedConv2d` takes the place of instance norm [D: docs/method.md section 1], under the
            same names: none (as in CUT), the decoder, or the residual blocks too.
        tap_layers: ascending layer numbers to take patches from. Layer 0 is the padded picture, without its mask; a
            norm's number stands for the map behind its ReLU.
        gain: scale of the initial weights, above 0; by default CUT's.

    Attributes:
        architecture: the arguments by name, tap_layers and gain aside: what a file of weights says of its generator.
        frame: (height, width) in whose proportions photos are padded, as in its training (`SketchDataset.frame`); None:
            a square. Kept in the file; it changes nothing here.

    Raises:
        ValueError: a number of channels below 1, too few blocks for the taps, taps that do not ascend, or none that
            `attention` can stand behind, another `demodulated`, or a gain that is not above 0.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        width: int = 64,
        blocks: int = 9,
        *,
        mask_channel: bool = True,
        attention: bool = True,
        demodulated: Demodulated = "none",
        tap_layers: Sequence[int] = TAP_LAYERS,
        gain: float = 0.02,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if blocks < 0:
            raise ValueError(f"blocks must be at least 0, got {blocks}")
        if demodulated not in get_args(Demodulated):
            raise ValueError(f"demodulated must be one of {', '.join(get_args(Demodulated))}, got {demodulated!r}")
        self.architecture = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "width": width,
            "blocks": blocks,
            "mask_channel": mask_channel,
            "attention": attention,
            "demodulated": demodulated,
        }
        self.frame: tuple[int, int] | None = None
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.mask_channel = mask_channel
        self.tap_layers = tuple(tap_layers)
        model: list[nn.Module] = [ReflectionPad(INPUT_BORDER)]
        model += [DirectConv2d(in_channels + mask_channel, width), InstanceNorm(width, 0.0), nn.Identity()]
        for channels in (width, 2 * width):
            model += [WinogradConv2d(channels, 2 * channels, padding=1), InstanceNorm(2 * channels, 0.0), nn.Identity()]
            model.append(BlurDownsample(2 * channels))
        encoder_start = len(model)
        # Of all blocks together about as strong as what comes in.
        strength = max(blocks, 1) ** -0.5 if demodulated == "blocks" else None
        model += [ResnetBlock(4 * width, strength) for _ in range(blocks)]
        last_block = len(model) - 1
        sum_of_blocks = (blocks + 1) ** 0.5 if demodulated == "decoder" else 1.0  # each adds a map of variance 1
        for channels, scale in ((4 * width, 1 / sum_of_blocks), (2 * width, 1.0)):
            gain_here = None if demodulated == "none" else scale * RELU_GAIN
            model.append(BlurUpsample(channels))
            model += [*_convolution(channels, channels // 2, gain_here, 0.0), nn.Identity()]
        model += [nn.Identity(), DirectConv2d(width, out_channels, 3, "reflect"), nn.Tanh()]  # pads as `ResnetBlock`
        self.model = nn.Sequential(*model)

        taps = self.tap_layers
        if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0:
            raise ValueError(f"tap_layers must ascend from 0 or more, got {taps}")
        if taps[-1] > last_block:
            least = taps[-1] - encoder_start + 1
            raise ValueError(f"blocks must be at least {least} for tap_layers {taps}, got {blocks}")
        if attention and taps[-1] < encoder_start:
            raise ValueError(f"attention needs a last tap at {encoder_start} or later, got {taps[-1]}")
        self.attention = DualAttention(4 * width) if attention else None
        init_weights(self, gain)

    @property
    def tap_borders(self) -> list[int]:
        """Cells on each side of each tapped layer that lie outside the picture."""
        return [INPUT_BORDER if layer == 0 else 0 for layer in self.tap_layers]

    @property
    def tap_channels(self) -> list[int]:
        """C of each tapped layer."""
        channels, count = {0: self.in_channels}, self.in_channels
        for number, layer in enumerate(self.model):
            if isinstance(layer, nn.Conv2d):
                count = layer.out_channels
            if number:
                channels[number] = count
        return [channels[layer] for layer in self.tap_layers]

    def _padded_input(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Check and pad the picture (layer 0) and its mask."""
        check_tensor("image", image, FLOATING)
        if image.dim() != 4 or image.shape[1] not in (1, self.in_channels):
            raise ValueError(f"image must be [B, 1 or {self.in_channels}, H, W], got {list(image.shape)}")
        if image.shape[2] % 4 or image.shape[3] % 4 or min(image.shape[2:]) < 8:
            raise ValueError(
                f"image sides must be multiples of 4, at least 8, got {image.shape[2]}×{image.shape[3]}; "
                "fastsketch.training.images.pad_to_frame pads"
            )
        if not self.mask_channel:
            return self.model[0](image.expand(-1, self.in_channels, -1, -1)), None
        wanted = (image.shape[0], 1, *image.shape[2:])
        if mask is None:
            raise ValueError(f"mask must be {list(wanted)} for a generator with a mask channel, got None")
        check_tensor("mask", mask, (*FLOATING, *INTEGER, torch.bool))
        check_like("mask", mask, wanted, image)
        return self.model[0](image.expand(-1, self.in_channels, -1, -1)), self.model[0](mask.to(image.dtype))

    def forward(
        self, image: Tensor, mask: Tensor | None = None, *, return_features: bool = False
    ) -> Tensor | tuple[Tensor, EncoderFeatures]:
        """Translate, and on request show what was seen on the way, in one pass.

        Args:
            image: [B, in_channels or 1, H, W] in [-1, 1], floating; sides multiples of 4.
            mask: [B, 1, H, W] in [0, 1], any dtype, with a mask channel; ignored without.
            return_features: also return the tapped features and the structure map.

        Returns:
            [B, out_channels, H, W] in [-1, 1]; or that and `EncoderFeatures`.

        Raises:
            TypeError: an image or a mask that is no tensor, or an image that is not floating.
            ValueError: a wrong shape or device, or a mask that is missing.
        """
        x, tapped = self._encode(image, mask)
        structure = None
        if self.attention is not None:
            x, structure = self.attention(x, return_map=return_features)
        for layer in self.model[self.tap_layers[-1] + 1 :]:
            x = layer(x)
        return (x, EncoderFeatures(tapped, structure)) if return_features else x

    def encode(self, image: Tensor, mask: Tensor | None = None) -> EncoderFeatures:
        """The features and the structure map that `forward` would return, without drawing the sketch."""
        x, tapped = self._encode(image, mask)
        structure = None if self.attention is None else self.attention(x, return_map=True)[1]
        return EncoderFeatures(tapped, structure)

    def encode_patches(self, image: Tensor, mask: Tensor | None, positions: Sequence[Tensor]) -> list[Tensor]:
        """Patches at known positions, tapped on the way; stops at the last tapped layer.

        Args:
            image: [B, in_channels or 1, H, W] in [-1, 1], a generated sketch say.
            mask: [B, 1, H, W] in [0, 1], with a mask channel.
            positions: one int64 [B, S] a tapped layer, flat on that layer's grid.

        Returns:
            One [B, S, C] a tapped layer.
        """
        if len(positions) != len(self.tap_layers):
            raise ValueError(f"positions must hold {len(self.tap_layers)} tensors, got {len(positions)}")
        patches: list[Tensor] = []

        def tap(x: Tensor) -> Tensor:
            x, patch = tap_patches(x, positions[len(patches)])
            patches.append(patch)
            return x

        self._encode(image, mask, tap)
        return patches

    def _encode(
        self, image: Tensor, mask: Tensor | None, tap: Callable[[Tensor], Tensor] = lambda x: x
    ) -> tuple[Tensor, list[Tensor]]:
        """Run up to the last tapped layer; `tap` may replace each tapped feature map. (last map, all of them)."""
        x, padded_mask = self._padded_input(image, mask)
        tapped = []
        for number, layer in enumerate(self.model[: self.tap_layers[-1] + 1]):
            if number:
                x = layer(x)
            if number in self.tap_layers:
                x = tap(x)
                tapped.append(x)
            if number == 0 and padded_mask is not None:
                x = torch.cat((x, padded_mask), dim=1)
        return x, tapped
