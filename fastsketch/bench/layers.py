"""The features that the loss path works on, and what stands above and below them in a training step."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastsketch.bench.case import random
from fastsketch.nn.projection import PatchProjection

BORDERS = (3, 0, 0, 0, 0)
SAMPLES = DIM = 256


def layer_shapes(side: int = 256) -> tuple[tuple[int, int, int], ...]:
    """(C, H, W) of CUT's generator at layers 0, 4, 8, 12, 16 for a square picture."""
    half, quarter = side // 2, side // 4
    deep = (256, quarter, quarter)
    return ((3, side + 6, side + 6), (128, side, side), (256, half, half), deep, deep)


LAYERS = layer_shapes()


class _Source(torch.autograd.Function):
    """Stands for the layers below: takes the features' gradient over, as a convolution's backward would. To free it is
    their business, so it is kept until the clock has stopped.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, arrived: list[Tensor]) -> Tensor:
        ctx.arrived = arrived
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        ctx.arrived.append(grad)
        return None, None


class _Sink(torch.autograd.Function):
    """Stands for the layers above: hands down a gradient that was made before the clock started, and lets go of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, box: list[Tensor]) -> Tensor:
        ctx.box = box
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.box.pop(), None


class _Between(torch.autograd.Function):
    """Stands for the layers between two that are compared: takes the upper one's gradient over as `_Source` does, and
    hands the lower one a gradient that was made before the clock started, as `_Sink` does.
    """

    @staticmethod
    def forward(ctx: Any, below: Tensor, x: Tensor, arrived: list[Tensor], box: list[Tensor]) -> Tensor:
        ctx.arrived, ctx.box = arrived, box
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.arrived.append(grad)
        return ctx.box.pop(), None, None, None


class Features(SimpleNamespace):
    """Features of a picture pair, a gradient for each layer from above, and a structure map's density and regions.

    Args:
        batch: B.
        shapes: (C, H, W) of each layer.
        grid: (h, w) of the structure map.
        device: where.
    """

    def __init__(self, batch: int, shapes: Any, grid: tuple[int, int], device: torch.device) -> None:
        super().__init__()
        self.query = [random(batch, *shape, device=device).requires_grad_() for shape in shapes]
        self.key = [random(batch, *shape, device=device) for shape in shapes]
        self.from_above = [random(batch, *shape, device=device) for shape in shapes]
        self.density = torch.rand(batch, *grid, device=device)
        self.region = torch.randint(0, 4, (batch, *grid), device=device)
        self.arrived: list[Tensor] = []

    def boxes(self) -> list[list[Tensor]]:
        """A copy of each gradient from above, to be handed down and let go of; forgets what arrived before."""
        self.arrived.clear()
        return [[grad.clone()] for grad in self.from_above]

    def sources(self) -> list[Tensor]:
        """The query features, as if layers below had made them."""
        return [_Source.apply(x, self.arrived) for x in self.query]

    def encoded(self, boxes: list[list[Tensor]]) -> list[Tensor]:
        """The query features, as if an encoder that ends with the last of them had made one from the other."""
        layers = self.sources()[:1]
        for x, box in zip(self.query[1:], boxes, strict=False):
            layers.append(_Between.apply(layers[-1], x, self.arrived, box))
        return layers


def sinks(features: list[Tensor], boxes: list[list[Tensor]]) -> list[Tensor]:
    """Scalars whose backward hands down the gradients in the boxes."""
    return [_Sink.apply(x, box) for x, box in zip(features, boxes, strict=True)]


def projection(shapes: Any, device: torch.device) -> PatchProjection:
    """A projection of these layers with weights of ordinary size."""
    return PatchProjection([shape[0] for shape in shapes], DIM, gain=1.0).to(device)


def mlps(network: PatchProjection) -> list[torch.nn.Module]:
    """Its layers, for those that project one by one."""
    return [getattr(network, f"mlp_{layer}") for layer in range(network.num_layers)]
