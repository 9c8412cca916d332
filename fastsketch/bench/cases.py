"""The measured cases of the operators: CUT's data path as a whole, and its parts."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import fastsketch
from fastsketch.bench.baselines import cut
from fastsketch.bench.case import Bar, Case, Recipe, against_eager, random
from fastsketch.bench.layers import BORDERS, DIM, SAMPLES, Features, layer_shapes, mlps, projection, sinks
from fastsketch.bench.networks import CASES as NETWORK_CASES
from fastsketch.bench.networks import CPU_CASES
from fastsketch.bench.selection import CASES as SELECTION_CASES
from fastsketch.compat.cut import PatchNCELoss, PatchSampleF
from fastsketch.nn.losses import MultiLayerPatchNCE
from fastsketch.nn.sampler import PatchSample


def as_positions(ids: Sequence[Tensor], batch: int) -> list[Tensor]:
    """CUT's ids [S], the same for all images, as positions [B, S]."""
    return [i.expand(batch, -1) for i in ids]


def agree(
    features: Features, samples: int, network: torch.nn.Module, prepare: Callable, runs: Sequence[Callable]
) -> None:
    """Check that ways through the loss path have the same loss and gradients, given the same positions."""
    ids = cut.draw_ids(features.query, samples)
    results = []
    for run in runs:
        loss = run(features, prepare(features), ids=ids)
        grads = sorted(features.arrived, key=lambda g: (g.shape, g.flatten()[0].item()))
        results.append((loss, *grads, *(p.grad.clone() for p in network.parameters())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3 if one.is_cuda else 1e-4)


def loss_path(
    batch: int, device: torch.device, side: int = 256, layers: int | None = None, samples: int = SAMPLES
) -> Case:
    """Positions, gather of q and k, projection, normalisation and loss, forward and backward.

    Args:
        batch: B.
        device: where.
        side: of the picture, pixels.
        layers: so many layers of 256×64×64; None: the generator's five.
        samples: S.
    """
    shapes = layer_shapes(side) if layers is None else ((256, 64, 64),) * layers
    borders = BORDERS if layers is None else (0,) * layers
    grid = shapes[-1][1:]
    network, criterion = projection(shapes, device), MultiLayerPatchNCE()
    parts = mlps(network)

    def prepare(features: Features) -> list[list[Tensor]]:
        network.zero_grad()
        return features.boxes()

    def theirs(features: Features, boxes: Any, path: Any = cut.loss_path, ids: Any = None) -> Tensor:
        ids = cut.draw_ids(features.query, samples) if ids is None else ids
        sources = features.sources()
        down = sinks(sources, boxes)
        loss = path(sources, features.key, ids, parts)
        torch.autograd.backward([loss, *down])
        return loss

    def positions(features: Features) -> list[Tensor]:
        index = fastsketch.sample_patches(features.density, samples, region=features.region)
        sample = PatchSample(index, torch.zeros_like(index), None, grid)
        return sample.on([shape[1:] for shape in shapes], borders)

    def ours(features: Features, boxes: Any, ids: Any = None) -> Tensor:
        ids = positions(features) if ids is None else as_positions(ids, batch)
        with torch.no_grad():
            key = network(fastsketch.gather_layers(features.key, ids))
        tapped = [fastsketch.tap_patches(x, i) for x, i in zip(features.sources(), ids, strict=True)]
        down = sinks([x for x, _ in tapped], boxes)
        loss = criterion(network([patches for _, patches in tapped]), key).mean()
        torch.autograd.backward([loss, *down])
        return loss

    def check(features: Features) -> None:
        agree(features, samples, network, prepare, (theirs, ours))

    def make() -> Features:
        return Features(batch, shapes, grid, device)

    bars = (Bar("eager", 8), Bar("compiled", 4))
    return against_eager(make, ours, theirs, cut.loss_path, check, bars, prepare)


def drop_in(batch: int, device: torch.device, side: int = 256, samples: int = SAMPLES) -> Case:
    """CUT's calculate_NCE_loss with nothing changed but the imports: no taps, the keys in a graph that is not used."""
    shapes = layer_shapes(side)
    network = PatchSampleF(use_mlp=True, nc=DIM, init_gain=1.0)
    network.create_mlp([torch.empty(batch, *shape, device=device) for shape in shapes])
    criterion = PatchNCELoss(SimpleNamespace(nce_T=0.07, batch_size=batch))
    parts = [getattr(network, f"mlp_{layer}") for layer in range(len(shapes))]

    def prepare(features: Features) -> list[list[Tensor]]:
        network.zero_grad()
        return features.boxes()

    def theirs(features: Features, boxes: Any, path: Any = cut.loss_path, ids: Any = None) -> Tensor:
        ids = cut.draw_ids(features.query, samples) if ids is None else ids
        loss = path(features.encoded(boxes), features.key, ids, parts)
        loss.backward()
        return loss

    def ours(features: Features, boxes: Any, ids: Any = None) -> Tensor:
        keys, ids = network(features.key, samples, ids)
        queries, _ = network(features.encoded(boxes), samples, ids)
        loss = sum(criterion(q, k).mean() for q, k in zip(queries, keys, strict=True)) / len(keys)
        loss.backward()
        return loss

    def check(features: Features) -> None:
        agree(features, samples, network, prepare, (theirs, ours))

    def make() -> Features:
        return Features(batch, shapes, shapes[-1][1:], device)

    return against_eager(make, ours, theirs, cut.loss_path, check, (), prepare)


def patch_nce(images: int, device: torch.device, samples: int = SAMPLES, memory_bar: float | None = None) -> Case:
    """Normalisation and loss of B·L images' patches, forward and backward to the queries."""

    def make() -> SimpleNamespace:
        query, key = (random(images, samples, DIM, device=device).requires_grad_() for _ in range(2))
        return SimpleNamespace(query=query, key=key)

    def loss(query: Tensor, key: Tensor) -> Tensor:
        q, k = (cut.normalize(x.flatten(0, 1)) for x in (query, key))
        return cut.patch_nce(q, k, images).mean()

    def theirs(inputs: Any, _: Any, function: Any = loss) -> Tensor:
        return torch.autograd.grad(function(inputs.query, inputs.key), inputs.query)[0]

    def ours(inputs: Any, _: Any) -> Tensor:
        value = fastsketch.patch_nce(inputs.query, inputs.key.detach(), normalize=True)
        return torch.autograd.grad(value, inputs.query)[0]

    def check(inputs: Any) -> None:
        # CUT's mask of -10 in place of -inf changes nothing that float32 shows.
        torch.testing.assert_close(ours(inputs, None), theirs(inputs, None), atol=1e-8, rtol=1e-3)

    bar = Bar("eager", 2.5) if memory_bar is None else Bar("eager", memory_bar, "memory")
    return against_eager(make, ours, theirs, loss, check, (bar,))


def tap(batch: int, device: torch.device, side: int = 256) -> Case:
    """Gather with a tap, forward and backward, against index and its backward; five layers."""
    shapes = layer_shapes(side)

    def make() -> Features:
        features = Features(batch, shapes, shapes[-1][1:], device)
        features.ids = [i.to(device) for i in cut.draw_ids(features.query, SAMPLES)]
        features.weights = [
            random(batch, len(i), s[0], device=device) for s, i in zip(shapes, features.ids, strict=True)
        ]
        return features

    def back(features: Features, patches: list[Tensor], down: list[Tensor]) -> None:
        torch.autograd.backward([*patches, *down], [*features.weights, *([None] * len(down))])

    def index_all(layers: Sequence[Tensor], ids: Sequence[Tensor]) -> list[Tensor]:
        return [cut.index_patches(x, i).unflatten(0, (batch, -1)) for x, i in zip(layers, ids, strict=True)]

    def theirs(features: Features, boxes: Any, index: Any = index_all) -> None:
        sources = features.sources()
        down = sinks(sources, boxes)
        back(features, index(sources, features.ids), down)

    def ours(features: Features, boxes: Any) -> None:
        tapped = [fastsketch.tap_patches(x, i) for x, i in zip(features.sources(), features.ids, strict=True)]
        down = sinks([x for x, _ in tapped], boxes)
        back(features, [patches for _, patches in tapped], down)

    def check(features: Features) -> None:
        results = []
        for run in (theirs, ours):
            run(features, features.boxes())
            results.append(sorted(features.arrived, key=lambda g: (g.shape, g.sum().item())))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)

    return against_eager(make, ours, theirs, index_all, check, (Bar("eager", 30),), Features.boxes)


CASES: dict[str, Recipe] = {
    "loss_path B=1": Recipe(loss_path, {"batch": 1}, {"side": 32, "samples": 16}),
    "loss_path B=4": Recipe(loss_path, {"batch": 4}, {"batch": 1, "side": 32, "samples": 16}),
    "drop_in B=1": Recipe(drop_in, {"batch": 1}, {"side": 32, "samples": 16}),
    "drop_in B=4": Recipe(drop_in, {"batch": 4}, {"batch": 1, "side": 32, "samples": 16}),
    "patch_nce B·L=20 S=256": Recipe(patch_nce, {"images": 20}, {"images": 1, "samples": 64}),
    "patch_nce S=4096": Recipe(patch_nce, {"images": 1, "samples": 4096, "memory_bar": 20}, {"samples": 64}),
    "tap B=1": Recipe(tap, {"batch": 1}, {"side": 64}),
    "tap B=4": Recipe(tap, {"batch": 4}, {"batch": 1, "side": 64}),
    **SELECTION_CASES,
    **CPU_CASES,
    **NETWORK_CASES,
}
"""What `fastsketch bench` measures, by name."""
