"""The measured cases of 3×3 convolutions on a CPU, forward and backward: layers of the generator at several sizes."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsketch.bench.case import OURS, Case, Contender, Recipe, random
from fastsketch.nn.winograd import winograd_conv2d


def conv3x3(channels: int, filters: int, side: int, device: torch.device, batch: int = 2) -> Case:
    """A convolution and its gradients to input, kernel and bias.

    Args:
        channels, filters: in and out.
        side: of the square maps.
        device: where.
        batch: B; a step draws photo and sketch in one pass.
    """

    def make() -> SimpleNamespace:
        x = random(batch, channels, side, side, device=device).requires_grad_()
        weight = (random(filters, channels, 3, 3, device=device) * 0.02).requires_grad_()
        arriving = random(batch, filters, side, side, device=device)
        return SimpleNamespace(
            given=[x, weight, torch.zeros(filters, device=device, requires_grad=True)], arriving=arriving
        )

    def run(function: Any, inputs: Any) -> tuple[Tensor, ...]:
        out = function(*inputs.given, padding=1)
        return (out, *torch.autograd.grad(out, inputs.given, inputs.arriving))

    def check(inputs: Any) -> None:
        for one, other in zip(run(winograd_conv2d, inputs), run(F.conv2d, inputs), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=5e-5 * other.abs().max().item())

    contenders = {
        OURS: Contender(lambda inputs, _: run(winograd_conv2d, inputs)),
        "framework": Contender(lambda inputs, _: run(F.conv2d, inputs)),
    }
    return Case(make, contenders, check, "framework")


LAYERS = ((256, 256, 64), (256, 256, 32), (128, 256, 128), (64, 128, 256), (64, 64, 20))
"""Channels, filters, side: of 256² and 128² pictures at width 64, and of the demo."""

CASES: dict[str, Recipe] = {
    f"conv3x3 {c}→{f} at {side}²": Recipe(
        conv3x3, {"channels": c, "filters": f, "side": side}, {"channels": 32, "filters": 32, "side": 20}
    )
    for c, f, side in LAYERS
}
"""By name; for a CPU only."""
