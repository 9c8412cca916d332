"""The measured cases of choosing positions and weighing negatives: sampling, attention, QS-Attn, MoNCE, Hneg_SRC."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import fastsketch
from fastsketch.bench.baselines import attention, hneg_src, monce, sampling
from fastsketch.bench.case import OURS, Bar, Case, Contender, Recipe, against_eager, random
from fastsketch.bench.layers import DIM, SAMPLES
from fastsketch.compat.hneg_src import PatchHDCELoss, SRC_Loss
from fastsketch.compat.monce import MoNCELoss
from fastsketch.compat.qs_attn import select_queries


def sample_patches(batch: int, device: torch.device, side: int = 256, regions: int = 4) -> Case:
    """Distinct positions in proportion to a density, shared out over regions.

    The baselines are torch.multinomial: once an image and region with the quotas given, and once an image without
    regions, which is less than what is asked for.
    """
    share = [[SAMPLES // regions] * regions] * batch

    def make() -> SimpleNamespace:
        density = torch.rand(batch, side, side, device=device)
        region = torch.randint(0, regions, density.shape, device=device)
        return SimpleNamespace(density=density, region=region)

    def ours(inputs: Any, _: Any = None) -> Tensor:
        return fastsketch.sample_patches(inputs.density, SAMPLES, region=inputs.region)

    def reference(inputs: Any, _: Any = None) -> Tensor:
        with fastsketch.use_backend("reference"):
            return fastsketch.sample_patches(inputs.density, SAMPLES, region=inputs.region)

    def per_region(inputs: Any, _: Any, function: Any = sampling.per_region) -> Tensor:
        return function(inputs.density.flatten(1), inputs.region.flatten(1), share)

    compiled = torch.compile(sampling.per_region)

    def check(inputs: Any) -> None:
        seed = torch.initial_seed()
        drawn = []
        for function in (ours, reference):
            torch.manual_seed(1)
            drawn.append(function(inputs))
        torch.manual_seed(seed)
        assert torch.equal(*drawn)
        theirs = per_region(inputs, None)
        for index in (drawn[0], theirs):
            assert index.shape == (batch, SAMPLES)
            assert all(row.unique().numel() == SAMPLES for row in index)
        picked = inputs.region.flatten(1).gather(1, theirs)
        assert all(row.bincount().tolist() == share[0] for row in picked)

    return Case(
        make=make,
        contenders={
            OURS: Contender(ours),
            "per region": Contender(per_region),
            "per region compiled": Contender(lambda inputs, _: per_region(inputs, _, compiled), compiled=True),
            "no regions": Contender(lambda inputs, _: torch.multinomial(inputs.density.flatten(1), SAMPLES)),
            "reference": Contender(reference),
        },
        check=check,
        baseline="per region",
        bars=(Bar("reference", 5), Bar("no regions", 1)),
    )


def attention_statistics(positions: int, device: torch.device, dim: int = 32) -> Case:
    """Column means and row entropies of an attention matrix."""

    def make() -> SimpleNamespace:
        query, key = (random(1, positions, dim, device=device) for _ in range(2))
        return SimpleNamespace(query=query, key=key)

    compiled = torch.compile(attention.statistics, fullgraph=True)

    def check(inputs: Any) -> None:
        exact = attention.statistics(inputs.query.double(), inputs.key.double())
        got = fastsketch.attention_statistics(inputs.query, inputs.key)
        loose = device.type == "cuda"  # tensor cores round the products
        for one, other in zip(got, exact, strict=True):
            torch.testing.assert_close(one.double(), other, atol=1e-6 if loose else 1e-8, rtol=1e-4 if loose else 3e-6)

    return Case(
        make=make,
        contenders={
            OURS: Contender(lambda inputs, _: fastsketch.attention_statistics(inputs.query, inputs.key)),
            "materialised": Contender(lambda inputs, _: attention.statistics(inputs.query, inputs.key)),
            "compiled": Contender(lambda inputs, _: compiled(inputs.query, inputs.key), compiled=True),
        },
        check=check,
        baseline="materialised",
        bars=(Bar("materialised", 1), Bar("materialised", 50, "memory")),
    )


def qs_attn(batch: int, device: torch.device, side: int = 64, channels: int = 256) -> Case:
    """QS-Attn's choice of queries on a layer, and their routed features, forward and backward."""

    def make() -> SimpleNamespace:
        features = 0.25 * random(batch, channels, side, side, device=device)
        return SimpleNamespace(features=features.requires_grad_())

    def routed(features: Tensor) -> Tensor:
        tokens = features.flatten(2).mT
        return attention.select_queries(tokens, SAMPLES)[1] @ tokens

    def theirs(inputs: Any, _: Any, function: Any = routed) -> Tensor:
        return torch.autograd.grad(function(inputs.features).square().sum(), inputs.features)[0]

    def ours(inputs: Any, _: Any) -> Tensor:
        rows = select_queries(inputs.features, SAMPLES)[1] @ inputs.features.flatten(2).mT
        return torch.autograd.grad(rows.square().sum(), inputs.features)[0]

    loose = device.type == "cuda"  # there a kernel on tensor cores chooses, and none has been seen yet

    def check(inputs: Any) -> None:
        tokens = inputs.features.detach().flatten(2).mT
        index, rows = select_queries(inputs.features, SAMPLES)
        theirs_index, theirs_rows = attention.select_queries(tokens, SAMPLES)
        entropy, expected = (torch.special.entr(x.double()).sum(-1) for x in (rows, theirs_rows))
        # Sums near 1 are rounded, and rounding decides at the edge: 3e-6 apart at most in 16 draws.
        atol, rtol = (1e-4, 1e-4) if loose else (1e-5, 1e-5)
        torch.testing.assert_close(entropy.sort(1).values, expected.sort(1).values, atol=atol, rtol=rtol)
        common = torch.isin(index[0], theirs_index[0])
        assert common.float().mean() > 0.99
        order = theirs_index[0].argsort()
        place = order[torch.searchsorted(theirs_index[0][order], index[0][common])]
        # Either is within 1.3e-5 of float64, entry by entry.
        atol, rtol = (1e-5, 1e-3) if loose else (1e-9, 1e-4)
        torch.testing.assert_close(rows[0][common], theirs_rows[0][place], atol=atol, rtol=rtol)

    return against_eager(make, ours, theirs, routed, check)


def monce_loss(images: int, device: torch.device, samples: int = SAMPLES) -> Case:
    """MoNCE's weighted loss of B·L images' patches, forward and backward through the transport plan."""
    options = SimpleNamespace(nce_T=0.07, batch_size=images, num_patches=samples, eps=1.0)
    options.cost_type, options.neg_term_weight = "hard", 1.0
    criterion = MoNCELoss(options)

    def make() -> SimpleNamespace:
        query, key = (torch.nn.functional.normalize(random(images, samples, DIM, device=device), dim=-1) for _ in "qk")
        return SimpleNamespace(query=query.requires_grad_(), key=key)

    def theirs(inputs: Any, _: Any, function: Any = monce.loss) -> Tensor:
        return torch.autograd.grad(function(inputs.query, inputs.key).mean(), inputs.query)[0]

    def ours(inputs: Any, _: Any) -> Tensor:
        loss = criterion(inputs.query.flatten(0, 1), inputs.key.flatten(0, 1))
        return torch.autograd.grad(loss.mean(), inputs.query)[0]

    def check(inputs: Any) -> None:
        # On a CPU the largest difference of 72 draws took a third of this; no GPU has been seen yet.
        atol, rtol = (1e-7, 1e-2) if device.type == "cuda" else (5e-8, 1e-5)
        torch.testing.assert_close(ours(inputs, None), theirs(inputs, None), atol=atol, rtol=rtol)

    return against_eager(make, ours, theirs, monce.loss, check)


def hneg_src_loss(layers: int, device: torch.device, samples: int = SAMPLES) -> Case:
    """Relation consistency and hard negatives of an image's patches, a layer at a time, forward and backward."""
    options = SimpleNamespace(nce_T=0.07, batch_size=1, HDCE_gamma=1.0, use_curriculum=False)
    relation, contrast = SRC_Loss(options), PatchHDCELoss(options)

    def make() -> SimpleNamespace:
        query, key = (torch.nn.functional.normalize(random(layers, samples, DIM, device=device), dim=-1) for _ in "qk")
        return SimpleNamespace(query=query.requires_grad_(), key=key)

    def theirs(inputs: Any, _: Any, function: Any = hneg_src.loss) -> Tensor:
        pairs = zip(inputs.query.split(1), inputs.key.split(1), strict=True)
        return torch.autograd.grad(sum(function(q, k) for q, k in pairs), inputs.query)[0]

    def ours(inputs: Any, _: Any) -> Tensor:
        total = 0.0
        for query, key in zip(inputs.query, inputs.key, strict=True):
            divergence, weight = relation(query, key)
            total = total + divergence + contrast(query, key, weight).mean()
        return torch.autograd.grad(total, inputs.query)[0]

    def check(inputs: Any) -> None:
        wanted = theirs(SimpleNamespace(query=inputs.query.double(), key=inputs.key.double()), None)
        # On a CPU both are within 1e-6 of the gradient's size; no GPU has been seen yet.
        atol = (1e-2 if device.type == "cuda" else 1e-5) * wanted.abs().max().item()
        for got in (ours(inputs, None), theirs(inputs, None)):
            torch.testing.assert_close(got.double(), wanted, atol=atol, rtol=0)

    return against_eager(make, ours, theirs, hneg_src.loss, check)


CASES: dict[str, Recipe] = {
    "sample_patches B=4": Recipe(sample_patches, {"batch": 4}, {"batch": 1, "side": 32}),
    "attention_statistics N=4096": Recipe(attention_statistics, {"positions": 4096}, {"positions": 64}),
    "qs_attn 256×64×64": Recipe(qs_attn, {"batch": 1}, {"side": 16}),
    "monce B·L=5 S=256": Recipe(monce_loss, {"images": 5}, {"images": 1, "samples": 32}),
    "hneg_src L=5 S=256": Recipe(hneg_src_loss, {"layers": 5}, {"layers": 1, "samples": 32}),
}
