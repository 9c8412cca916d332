"""The measured cases of what networks compute, forward and backward: convolutions, blurs, norms, attention,
pools, distances of features, the perceptual loss; and a whole drawing, forward alone.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsketch.bench.case import OURS, Case, Contender, Recipe, random
from fastsketch.nn.attend import attend
from fastsketch.nn.blur import BlurDownsample, BlurUpsample
from fastsketch.nn.convolution import as_winograd, convolve, use_winograd
from fastsketch.nn.feature_distance import normalized_distance
from fastsketch.nn.generator import ResnetGenerator
from fastsketch.nn.instance_norm import InstanceNorm
from fastsketch.nn.losses import PerceptualLoss
from fastsketch.nn.max_pool import HalvingMaxPool
from fastsketch.nn.own_kernels import use_own_kernels
from fastsketch.weights import random_vgg16_features

FRAMEWORK = "framework"


def _against_framework(
    make: Callable[[], SimpleNamespace], ours: Callable[..., Tensor], theirs: Callable[..., Tensor], half: bool = False
) -> Case:
    """Results of `inputs.given` and their gradients for `inputs.arriving`, ours and the framework's."""
    tolerance = 2**-6 if half else 5e-5  # of the largest value; the framework rounds gradients between its operators

    def run(function: Callable[..., Tensor], inputs: Any) -> tuple[Tensor, ...]:
        out = function(*inputs.given)
        return (out, *torch.autograd.grad(out, inputs.given, inputs.arriving))

    def check(inputs: Any) -> None:
        for one, other in zip(run(ours, inputs), run(theirs, inputs), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())

    contenders = {
        OURS: Contender(lambda inputs, _: run(ours, inputs)),
        FRAMEWORK: Contender(lambda inputs, _: run(theirs, inputs)),
    }
    return Case(make, contenders, check, FRAMEWORK)


def _map(*shape: int, device: torch.device, half: bool) -> Tensor:
    """Normal numbers [B, C, H, W]; `half`: in bfloat16 and channels-last, as a step has them with AMX."""
    x = random(*shape, device=device)
    return x.to(torch.bfloat16, memory_format=torch.channels_last) if half else x


def convolution(size: int, channels: int, filters: int, side: int, device: torch.device, batch: int = 2) -> Case:
    """A convolution and its gradients to input, kernel and bias.

    Args:
        size: of the kernel, 3, 4 or 7.
        channels, filters: in and out.
        side: of the square maps.
        device: where.
        batch: B; a step draws photo and sketch in one pass.
    """
    padding = (size - 1) // 2
    after = side + 2 * padding + 1 - size

    def make() -> SimpleNamespace:
        x = random(batch, channels, side, side, device=device).requires_grad_()
        weight = (random(filters, channels, size, size, device=device) * 0.02).requires_grad_()
        arriving = random(batch, filters, after, after, device=device)
        return SimpleNamespace(
            given=[x, weight, torch.zeros(filters, device=device, requires_grad=True)], arriving=arriving
        )

    return _against_framework(
        make, lambda *given: convolve(*given, padding=padding), lambda *given: F.conv2d(*given, padding=padding)
    )


def blur(
    kind: type[BlurDownsample | BlurUpsample], channels: int, side: int, device: torch.device, half: bool = False
) -> Case:
    """A blur that halves or doubles maps, and its gradient; B = 2.

    Args:
        kind: which.
        channels: C.
        side: of the square maps that go in.
        device: where.
        half: bfloat16, channels-last.
    """
    layer, plain = kind(channels).to(device), kind(channels).to(device)
    use_own_kernels(plain, False)

    def make() -> SimpleNamespace:
        x = _map(2, channels, side, side, device=device, half=half).requires_grad_()
        return SimpleNamespace(given=[x], arriving=torch.ones_like(layer(x)))

    return _against_framework(make, layer, plain, half)


def norm(channels: int, side: int, device: torch.device, half: bool = False) -> Case:
    """Instance norm and ReLU, and their gradient; B = 2.

    Args:
        channels: C.
        side: of the square maps.
        device: where.
        half: bfloat16, channels-last.
    """
    layer, plain = InstanceNorm(channels, 0.0), InstanceNorm(channels, 0.0)
    use_own_kernels(plain, False)

    def make() -> SimpleNamespace:
        x, arriving = (_map(2, channels, side, side, device=device, half=half) for _ in range(2))
        x += 0.1 * x.sign()  # nothing so near the mean that rounding decides what the ReLU lets through
        return SimpleNamespace(given=[x.requires_grad_()], arriving=arriving)

    return _against_framework(make, layer, plain, half)


def attention(positions: int, device: torch.device, width: int = 32, channels: int = 256, half: bool = False) -> Case:
    """Attention over the values of two pictures, and its gradients.

    Args:
        positions: queries, and keys, of a picture.
        device: where.
        width: of queries and keys.
        channels: of values.
        half: bfloat16, as it comes of channels-last maps.
    """

    def make() -> SimpleNamespace:
        sizes = (width, width, channels, channels)
        maps = [_map(2, size, positions, 1, device=device, half=half).flatten(2) for size in sizes]
        return SimpleNamespace(given=[x.requires_grad_() for x in maps[:3]], arriving=maps[3])

    return _against_framework(make, attend, lambda *given: attend(*given, own_kernel=False), half)


def distance(channels: int, side: int, device: torch.device, half: bool = False) -> Case:
    """The distance of two pictures' normalised features, and its gradient to the first; B = 1.

    Args:
        channels: C.
        side: of the square maps.
        device: where.
        half: bfloat16, channels-last.
    """
    target = _map(1, channels, side, side, device=device, half=half).relu()

    def make() -> SimpleNamespace:
        features = _map(1, channels, side, side, device=device, half=half).relu().requires_grad_()
        return SimpleNamespace(given=[features], arriving=torch.ones(1, device=device))

    return _against_framework(
        make,
        lambda x: normalized_distance(x, target),
        lambda x: normalized_distance(x, target, own_kernel=False),
        half,
    )


def max_pool(channels: int, side: int, device: torch.device) -> Case:
    """The largest of each 2×2 square, and its gradient; B = 1.

    Args:
        channels: C.
        side: of the square maps.
        device: where.
    """
    layer = HalvingMaxPool()

    def make() -> SimpleNamespace:
        x = random(1, channels, side, side, device=device).requires_grad_()
        return SimpleNamespace(given=[x], arriving=random(1, channels, side // 2, side // 2, device=device))

    return _against_framework(make, layer, nn.MaxPool2d(2))


def perceptual(side: int, device: torch.device) -> Case:
    """The perceptual loss of a drawing and its sketch, and its gradient to the drawing; B = 1, random weights.

    Args:
        side: of the square pictures.
        device: where.
    """
    features = random_vgg16_features()
    plain, loss = PerceptualLoss(copy.deepcopy(features)).to(device), PerceptualLoss(as_winograd(features)).to(device)
    use_own_kernels(plain, False)
    use_winograd(loss)
    sketch = random(1, 1, side, side, device=device).tanh()

    def make() -> SimpleNamespace:
        drawing = random(1, 1, side, side, device=device).tanh().requires_grad_()
        return SimpleNamespace(given=[drawing], arriving=torch.ones((), device=device))

    def check(inputs: Any) -> None:
        value, other = (one(*inputs.given, sketch) for one in (loss, plain))
        torch.testing.assert_close(value, other, rtol=1e-5, atol=0)
        one, exact = (torch.autograd.grad(x, inputs.given)[0] for x in (value, other))
        # Rounding decides what a pool or a ReLU lets through: 0.002 from float64's was seen.
        assert (one - exact).norm() <= 0.01 * exact.norm()

    case = _against_framework(make, lambda x: loss(x, sketch), lambda x: plain(x, sketch))
    return replace(case, check=check)


def drawing(side: int, device: torch.device, width: int = 64) -> Case:
    """A photo drawn by the full method's generator, without gradients, as `fastsketch generate` does; B = 1.

    Args:
        side: of the square picture.
        device: where.
        width: of the generator.
    """
    plain = ResnetGenerator(out_channels=1, width=width, gain=1.0).to(device).eval()
    nn.init.constant_(plain.attention.spatial_gain, 0.5)  # as if trained: what attention makes is seen in the drawing
    generator = copy.deepcopy(plain)
    use_own_kernels(plain, False)
    use_winograd(generator)
    mask = torch.ones(1, 1, side, side, device=device)

    def make() -> SimpleNamespace:
        return SimpleNamespace(photo=random(1, 3, side, side, device=device).tanh(), mask=mask)

    @torch.inference_mode()
    def run(network: nn.Module, inputs: Any) -> Tensor:
        return network(inputs.photo, inputs.mask)

    def check(inputs: Any) -> None:
        torch.testing.assert_close(run(generator, inputs), run(plain, inputs), rtol=0, atol=5e-4)  # 1e-4 was seen

    contenders = {
        OURS: Contender(lambda inputs, _: run(generator, inputs)),
        FRAMEWORK: Contender(lambda inputs, _: run(plain, inputs)),
    }
    return Case(make, contenders, check, FRAMEWORK)


CONVOLUTIONS = (
    (3, 256, 256, 64, 2),
    (3, 256, 256, 32, 2),
    (3, 128, 256, 128, 2),
    (3, 64, 128, 256, 2),
    (3, 64, 64, 20, 2),
    (4, 64, 128, 128, 1),
    (4, 256, 512, 32, 1),
    (7, 4, 64, 256, 2),
    (7, 64, 1, 256, 2),
)
"""Kernel, channels, filters, side, batch: of 256² and 128² pictures at width 64; of the demo; of the discriminator."""

BLURS = {"downsample 128, 256²": (BlurDownsample, 128, 256), "upsample 256, 64²": (BlurUpsample, 256, 64)}
"""Kind, channels, side: of 256² pictures at width 64."""

CASES: dict[str, Recipe] = {
    f"blur {name}": Recipe(blur, {"kind": kind, "channels": channels, "side": side}, {"channels": 3, "side": 20})
    for name, (kind, channels, side) in BLURS.items()
}
CASES |= {
    f"norm and relu {c}, {side}²": Recipe(norm, {"channels": c, "side": side}, {"channels": 3, "side": 20})
    for c, side in ((128, 256), (256, 64))
}
"""By name; for a GPU too."""

CPU_CASES: dict[str, Recipe] = {
    f"conv{k}x{k} {c}→{f} at {side}²": Recipe(
        convolution,
        {"size": k, "channels": c, "filters": f, "side": side, "batch": batch},
        {"channels": 32, "filters": 32, "side": 20},
    )
    for k, c, f, side, batch in CONVOLUTIONS
}
CPU_CASES |= {f"attend N={n}": Recipe(attention, {"positions": n}, {"positions": 40}) for n in (1024, 4096)}
CPU_CASES |= {f"drawing {side}²": Recipe(drawing, {"side": side}, {"side": 32, "width": 4}) for side in (256, 512)}
CPU_CASES |= {
    f"{name} {c}, {side}²": Recipe(case, {"channels": c, "side": side}, {"channels": 3, "side": 20})
    for name, case in (("feature distance", distance), ("max pool", max_pool))
    for c, side in ((64, 256), (256, 64))
}
CPU_CASES["perceptual loss 256²"] = Recipe(perceptual, {"side": 256}, {"side": 32})
CPU_CASES |= {
    f"{name}, channels-last bfloat16": replace(recipe, arguments={**recipe.arguments, "half": True})
    for name, recipe in [*CASES.items(), *CPU_CASES.items()]
    if recipe.build in (blur, norm, distance, attention)
}
"""By name; for a CPU only."""
