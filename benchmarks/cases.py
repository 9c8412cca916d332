"""The measured cases: inputs, contenders, and the bars they are held to.

A case builds its inputs once and gives contenders; each contender has an untimed preparation, whose result the timed
function takes. `check` compares the contenders' results before anything is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fastsketch
from benchmarks import baselines
from fastsketch.nn.losses import MultiLayerPatchNCE
from fastsketch.nn.sampler import place_positions

LAYERS = ((3, 262, 262), (128, 256, 256), (256, 128, 128), (256, 64, 64), (256, 64, 64))
"""Features of CUT's generator at 256², taken at layers 0, 4, 8, 12, 16."""

BORDERS = (3, 0, 0, 0, 0)
SAMPLES = DIM = 256


@dataclass(frozen=True)
class Contender:
    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Bar:
    """`ours` must be at least `ratio` times as fast as (or need at most 1/ratio of the memory of) `other`."""

    other: str
    ratio: float
    ours: str = "fastsketch"


@dataclass(frozen=True)
class Case:
    contenders: dict[str, Contender]
    check: Callable[[], None]
    bars: list[Bar] = field(default_factory=list)


class _Source(torch.autograd.Function):
    """Stands for the layers below: takes the features' gradient over, as a convolution's backward would. To free it is
    their business, so it is kept until the clock has stopped.
    """

    @staticmethod
    def forward(ctx, x, arrived):
        ctx.arrived = arrived
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ctx.arrived.append(grad)
        return None, None


class _Sink(torch.autograd.Function):
    """Stands for the layers above: hands down a gradient that was made before the clock started, and lets go of it."""

    @staticmethod
    def forward(ctx, x, box):
        ctx.box = box
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, grad):
        return ctx.box.pop(), None


class _Layers:
    """Features of a picture pair, an arriving gradient for each layer, and projection weights."""

    def __init__(self, batch: int) -> None:
        self.query = [torch.randn(batch, *shape).requires_grad_() for shape in LAYERS]
        self.key = [torch.randn(batch, *shape) for shape in LAYERS]
        self.downstream = [torch.randn(batch, *shape) for shape in LAYERS]
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(shape[0], DIM), nn.ReLU(), nn.Linear(DIM, DIM)) for shape in LAYERS
        )
        self.density = torch.rand(batch, 64, 64)
        self.region = torch.randint(0, 4, (batch, 64, 64))
        self.arrived: list[Tensor] = []

    def boxes(self) -> list[list[Tensor]]:
        self.mlps.zero_grad()
        self.arrived.clear()
        return [[grad.clone()] for grad in self.downstream]

    def sources(self) -> list[Tensor]:
        return [_Source.apply(x, self.arrived) for x in self.query]

    def projected(self, patches: list[Tensor]) -> Tensor:  # [L, B, S, D]
        return torch.stack([mlp(x) for mlp, x in zip(self.mlps, patches, strict=True)])


def loss_path(batch: int) -> Case:
    """Positions, gather of q and k, projection, normalisation and loss, forward and backward."""
    layers = _Layers(batch)
    criterion = MultiLayerPatchNCE()
    compiled = torch.compile(baselines.loss_path, fullgraph=True)

    def cut(boxes, function, ids=None):
        ids = baselines.draw_ids(layers.query, SAMPLES) if ids is None else ids
        features = layers.sources()
        down = [_Sink.apply(x, box) for x, box in zip(features, boxes, strict=True)]
        loss = function(features, layers.key, ids, layers.mlps)
        torch.autograd.backward([loss, *down])
        return loss

    def positions() -> list[Tensor]:
        index = fastsketch.sample_patches(layers.density, SAMPLES, region=layers.region)
        sizes = [shape[1:] for shape in LAYERS]
        return [
            index if size == (64, 64) else place_positions(index, (64, 64), size, border=border)
            for size, border in zip(sizes, BORDERS, strict=True)
        ]

    def ours(boxes, ids=None):
        ids = positions() if ids is None else ids
        with torch.no_grad():
            keys = [fastsketch.gather_patches(x, i) for x, i in zip(layers.key, ids, strict=True)]
            key = layers.projected(keys)
        down, queries = [], []
        for x, i, box in zip(layers.sources(), ids, boxes, strict=True):
            x, patches = fastsketch.tap_patches(x, i)
            queries.append(patches)
            down.append(_Sink.apply(x, box))
        loss = criterion(layers.projected(queries), key).mean()
        torch.autograd.backward([loss, *down])
        return loss

    def check() -> None:
        ids = baselines.draw_ids(layers.query, SAMPLES)
        results = []
        for run in (lambda boxes: cut(boxes, baselines.loss_path, ids), lambda boxes: ours(boxes, ids)):
            loss = run(layers.boxes())
            grads = sorted(layers.arrived, key=lambda g: (g.shape, g.flatten()[0].item()))
            results.append((loss, *grads, *(p.grad.clone() for p in layers.mlps.parameters())))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

    return Case(
        {
            "fastsketch": Contender(ours, layers.boxes),
            "eager": Contender(lambda boxes: cut(boxes, baselines.loss_path), layers.boxes),
            "compiled": Contender(lambda boxes: cut(boxes, compiled), layers.boxes),
        },
        check,
        [Bar("eager", 8), Bar("compiled", 4)],
    )


def patch_nce(images: int, samples: int) -> Case:
    """Normalisation and loss of B·L images' patches, forward and backward."""
    query = torch.randn(images, samples, DIM, requires_grad=True)
    key = torch.randn(images, samples, DIM, requires_grad=True)

    def eager(_):
        q, k = (baselines.normalize(x.flatten(0, 1)) for x in (query, key))
        return torch.autograd.grad(baselines.patch_nce(q, k, images).mean(), query)[0]

    def ours(_):
        loss = fastsketch.patch_nce(query, key.detach(), normalize=True)
        return torch.autograd.grad(loss, query)[0]

    def check() -> None:
        # CUT's mask of -10 in place of -inf changes nothing that float32 shows.
        torch.testing.assert_close(ours(None), eager(None), atol=1e-9, rtol=1e-3)

    return Case({"fastsketch": Contender(ours), "eager": Contender(eager)}, check, [Bar("eager", 2.5)])


def tap(batch: int) -> Case:
    """Gather with a tap, forward and backward, against index and its backward; five layers."""
    layers = _Layers(batch)
    ids = baselines.draw_ids(layers.query, SAMPLES)
    weights = [torch.randn(batch, SAMPLES, shape[0]) for shape in LAYERS]

    def eager(boxes):
        features = layers.sources()
        down = [_Sink.apply(x, box) for x, box in zip(features, boxes, strict=True)]
        patches = [baselines.index_patches(x, i).view_as(w) for x, i, w in zip(features, ids, weights, strict=True)]
        torch.autograd.backward([*patches, *down], [*weights, *([None] * len(down))])

    def ours(boxes):
        tapped = [fastsketch.tap_patches(x, i) for x, i in zip(layers.sources(), ids, strict=True)]
        down = [_Sink.apply(x, box) for (x, _), box in zip(tapped, boxes, strict=True)]
        torch.autograd.backward([*(p for _, p in tapped), *down], [*weights, *([None] * len(down))])

    def check() -> None:
        results = []
        for run in (eager, ours):
            run(layers.boxes())
            results.append(sorted(layers.arrived, key=lambda g: (g.shape, g.sum().item())))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)

    contenders = {"fastsketch": Contender(ours, layers.boxes), "eager": Contender(eager, layers.boxes)}
    return Case(contenders, check, [Bar("eager", 30)])


def sample_patches() -> Case:
    """Positions of four images, 256×256, four regions, S = 256."""
    density = torch.rand(4, 256, 256)
    region = torch.randint(0, 4, (4, 256, 256))
    weights = density.flatten(1)

    def ours(_):
        return fastsketch.sample_patches(density, SAMPLES, region=region)

    def reference(_):
        with fastsketch.use_backend("reference"):
            return fastsketch.sample_patches(density, SAMPLES, region=region)

    def check() -> None:
        for seed in range(3):
            torch.manual_seed(seed)
            one = ours(None)
            torch.manual_seed(seed)
            assert torch.equal(one, reference(None))

    return Case(
        {
            "fastsketch": Contender(ours),
            "reference": Contender(reference),
            "multinomial": Contender(lambda _: torch.multinomial(weights, SAMPLES)),
        },
        check,
        [Bar("reference", 5), Bar("multinomial", 1)],
    )


def attention_statistics(positions: int = 4096) -> Case:
    """Column means and row entropies of an attention matrix, d = 32."""
    query, key = torch.randn(1, positions, 32), torch.randn(1, positions, 32)

    def check() -> None:
        exact = baselines.attention_statistics(query.double(), key.double())
        for one, other in zip(fastsketch.attention_statistics(query, key), exact, strict=True):
            torch.testing.assert_close(one.double(), other, atol=1e-8, rtol=3e-6)

    return Case(
        {
            "fastsketch": Contender(lambda _: fastsketch.attention_statistics(query, key)),
            "materialised": Contender(lambda _: baselines.attention_statistics(query, key)),
        },
        check,
        [Bar("materialised", 1)],
    )


CASES: dict[str, Callable[[], Case]] = {
    "loss_path B=1": lambda: loss_path(1),
    "loss_path B=4": lambda: loss_path(4),
    "patch_nce B·L=20 S=256": lambda: patch_nce(20, 256),
    "tap B=1": lambda: tap(1),
    "tap B=4": lambda: tap(4),
    "sample_patches B=4": sample_patches,
    "attention_statistics N=4096": attention_statistics,
}

MEMORY_CASES: dict[str, tuple[Callable[[], Case], Bar]] = {
    "patch_nce S=4096": (lambda: patch_nce(1, 4096), Bar("eager", 20)),
    "attention_statistics N=4096": (attention_statistics, Bar("materialised", 50)),
}
