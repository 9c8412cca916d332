"""The cases of benchmarks/gpu.py: contenders, and the bars they are held to."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fastsketch
from fastsketch import _backend
from fastsketch.bench.baselines import cut
from fastsketch.bench.layers import BORDERS, DIM, LAYERS, SAMPLES
from fastsketch.bench.selection import attention_statistics
from fastsketch.nn import PerceptualLoss, ResnetGenerator
from fastsketch.nn.losses import MultiLayerPatchNCE
from fastsketch.nn.own_kernels import use_own_kernels
from fastsketch.nn.sampler import PatchSample
from fastsketch.weights import random_vgg16_features

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Case:
    """Contenders by name, and bars: (ours, other, least ratio of other's time to ours)."""

    contenders: dict[str, Callable[[], Any]]
    bars: list[tuple[str, str, float]]
    notes: dict[str, Callable[[dict[str, float]], str]] = field(default_factory=dict)


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """`run`, replayed from a CUDA graph; on a CPU, `run`."""
    if DEVICE.type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def loss_path(batch: int, quick: bool) -> Case:
    """Positions, gather of q and k, projection, loss, forward and backward to features and weights; five layers. A
    gradient arrives for each layer from above, as in training.
    """
    layers = [(c, h // 4, w // 4) if quick else (c, h, w) for c, h, w in LAYERS]
    samples = 32 if quick else SAMPLES
    query = [torch.randn(batch, *shape, device=DEVICE, requires_grad=True) for shape in layers]
    key = [torch.randn(batch, *shape, device=DEVICE) for shape in layers]
    arriving = [torch.randn(batch, *shape, device=DEVICE) for shape in layers]
    mlps = nn.ModuleList(nn.Sequential(nn.Linear(s[0], DIM), nn.ReLU(), nn.Linear(DIM, DIM)) for s in layers).to(DEVICE)
    grid = layers[-1][1:]
    density = torch.rand(batch, *grid, device=DEVICE)
    region = torch.randint(0, 4, (batch, *grid), device=DEVICE)
    criterion = MultiLayerPatchNCE()
    leaves = [*query, *mlps.parameters()]

    def back(loss: Tensor, features: list[Tensor]) -> list[Tensor]:
        return [loss, *torch.autograd.grad([loss, *features], leaves, [None, *arriving])]

    def theirs(function: Callable, ids: list[Tensor] | None = None) -> list[Tensor]:
        ids = [i.to(DEVICE) for i in cut.draw_ids(query, samples)] if ids is None else ids
        features = [x.view_as(x) for x in query]
        return back(function(features, key, ids, mlps), features)

    def positions() -> list[Tensor]:
        index = fastsketch.sample_patches(density, samples, region=region)
        return PatchSample(index, torch.zeros_like(index), None, grid).on([s[1:] for s in layers], BORDERS)

    def projected(patches: list[Tensor]) -> Tensor:
        return torch.stack([mlp(x) for mlp, x in zip(mlps, patches, strict=True)])

    def ours(ids: list[Tensor] | None = None) -> list[Tensor]:
        ids = positions() if ids is None else [i.expand(batch, -1) for i in ids]
        with torch.no_grad():
            keys = projected(fastsketch.gather_layers(key, ids))
        tapped = [fastsketch.tap_patches(x, i) for x, i in zip(query, ids, strict=True)]
        return back(criterion(projected([p for _, p in tapped]), keys).mean(), [x for x, _ in tapped])

    fixed = [i.to(DEVICE) for i in cut.draw_ids(query, samples)]
    for one, other in zip(ours(fixed), theirs(cut.loss_path, fixed), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-3)  # the baseline's products may be tf32

    contenders = {"fastsketch": ours, "fastsketch captured": captured(ours)}
    contenders["eager"] = lambda: theirs(cut.loss_path)
    contenders["eager captured"] = captured(lambda: theirs(cut.loss_path, fixed))
    bars = [("fastsketch captured", "eager", 15.0)]
    if not quick:
        compiled = torch.compile(cut.loss_path, fullgraph=True, mode="max-autotune-no-cudagraphs")
        contenders["compiled"] = lambda: theirs(compiled)
        contenders["compiled captured"] = captured(lambda: theirs(compiled, fixed))
        bars += [("fastsketch captured", "compiled", 4.0), ("fastsketch captured", "compiled captured", 3.0)]
    return Case(contenders, bars)


def tap_backward(batch: int, quick: bool) -> Case:
    """The gradients of five layers' patches added in place, against the time to move as many 32-byte sectors."""
    layers = [(c, h // 4, w // 4) if quick else (c, h, w) for c, h, w in LAYERS]
    samples = 32 if quick else SAMPLES
    grads = [torch.randn(batch, *shape, device=DEVICE) for shape in layers]
    patches = [torch.randn(batch, samples, shape[0], device=DEVICE) for shape in layers]
    ids = [torch.stack([i] * batch).to(DEVICE) for i in cut.draw_ids(grads, samples)]
    add = _backend.optional_kernel("tap_patches_add_", DEVICE)

    def ours() -> None:
        for grad, patch, index in zip(grads, patches, ids, strict=True):
            add(grad, patch, index)

    def dense() -> None:
        for grad, patch, index in zip(grads, patches, ids, strict=True):
            flat = torch.zeros_like(grad).flatten(2)
            flat.scatter_(2, index[:, None].expand(-1, grad.shape[1], -1), patch.mT)
            grad.add_(flat.view_as(grad))

    moved = sum(p.numel() * (2 * 32 + 4) for p in patches)

    def floor(medians: dict[str, float]) -> str:
        rate = moved / medians["fastsketch captured"] / 1e12
        return f"{moved / 1e6:.1f} MB in sectors at {rate:.2f} TB/s (bar: 2/3 of the copy rate, where not launch-bound)"

    contenders = {"fastsketch": ours, "fastsketch captured": captured(ours), "dense captured": captured(dense)}
    return Case(contenders, [("fastsketch captured", "dense captured", 1.0)], {"bytes": floor})


def many_negatives(rows: int, quick: bool) -> Case:
    """patch_nce forward with `batch` negatives, bfloat16, against the machine's own matrix product."""
    rows, side = (512, 256) if quick else (rows, 8192)
    query, key = (torch.randn(1, rows, DIM, device=DEVICE).bfloat16() for _ in range(2))
    a, b = (torch.randn(side, side, device=DEVICE).bfloat16() for _ in range(2))

    def rates(medians: dict[str, float]) -> str:
        ours = 2 * rows * rows * DIM / medians["fastsketch"] / 1e12
        product = 2 * side**3 / medians["matmul"] / 1e12
        return f"{ours:.0f} of {product:.0f} TFLOP/s: {ours / product:.2f} (bar 0.50)"

    return Case(
        {"fastsketch": lambda: fastsketch.patch_nce(query, key, normalize=True), "matmul": lambda: a @ b},
        [],
        {"rate": rates},
    )


def sampling(batch: int, quick: bool) -> Case:
    """256 positions in four regions, against torch.multinomial in a loop over images and regions."""
    side = 32 if quick else 256
    density = torch.rand(batch, side, side, device=DEVICE)
    region = torch.randint(0, 4, (batch, side, side), device=DEVICE)
    flat, flat_region = density.flatten(1), region.flatten(1)

    def ours() -> Tensor:
        return fastsketch.sample_patches(density, SAMPLES, region=region)

    def loop() -> list[Tensor]:
        return [
            torch.multinomial(flat[b] * (flat_region[b] == r), SAMPLES // 4) for b in range(batch) for r in range(4)
        ]

    return Case(
        {"fastsketch": ours, "fastsketch captured": captured(ours), "multinomial": loop},
        [("fastsketch", "multinomial", 10.0)],
    )


def attention(positions: int, quick: bool) -> Case:
    """Column means and row entropies, d = 32, against the materialised softmax."""
    case = attention_statistics(256 if quick else positions, DEVICE)
    inputs = case.make()
    case.check(inputs)
    ways = {name: functools.partial(case.contenders[name].run, inputs, None) for name in ("fastsketch", "materialised")}
    return Case(ways, [("fastsketch", "materialised", 3.0)])


def generator(batch: int, quick: bool) -> Case:
    """The generator at 256², forward and backward under bfloat16 autocast: with kernels of its own for norms, blurs and
    padding, and with the framework's, in the layout that these are said to like and in the other one.
    """
    side, width = (32, 4) if quick else (256, 64)
    image, mask = (torch.rand(batch, n, side, side, device=DEVICE) for n in (3, 1))
    weights = ResnetGenerator(3, 1, width).state_dict()
    drawings = {}

    def contender(name: str, own: bool, layout: torch.memory_format) -> Callable[[], Any]:
        network = ResnetGenerator(3, 1, width)
        network.load_state_dict(weights)
        network.to(DEVICE, memory_format=layout)
        use_own_kernels(network, own)
        pictures, masks = (x.contiguous(memory_format=layout) for x in (image, mask))

        def draw() -> Tensor:
            with torch.autocast(DEVICE.type, torch.bfloat16):
                return network(pictures, masks).float()

        drawings[name] = draw().detach()
        return captured(lambda: torch.autograd.grad(draw().square().mean(), [*network.parameters()], allow_unused=True))

    ways = {"fastsketch": True, "framework": False}
    layouts = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
    contenders = {
        f"{way}, {layout}": contender(f"{way}, {layout}", own, its)
        for (way, own), (layout, its) in itertools.product(ways.items(), layouts.items())
    }
    one = drawings["framework, contiguous"]
    for name, other in drawings.items():  # bfloat16, through 23 norms
        error = ((other - one).norm() / one.norm()).item()
        assert error < 0.1, f"{name}: drawings differ by {error:.2g} of their norm"
    return Case(contenders, [])


def perceptual(batch: int, quick: bool) -> Case:
    """The perceptual loss at 256² and its gradient to the drawing, under bfloat16 autocast and channels last: with the
    distance of features as a kernel of its own, and by the framework's operators.
    """
    side = 32 if quick else 256
    drawing, sketch = (2 * torch.rand(batch, 1, side, side, device=DEVICE) - 1 for _ in range(2))
    drawing.requires_grad_()
    features = random_vgg16_features()
    results = {}

    def contender(name: str, own: bool) -> Callable[[], Any]:
        loss = PerceptualLoss(features).to(DEVICE, memory_format=torch.channels_last)
        use_own_kernels(loss, own)

        def value() -> Tensor:
            with torch.autocast(DEVICE.type, torch.bfloat16):
                return loss(drawing, sketch)

        results[name] = value().item(), torch.autograd.grad(value(), drawing)[0]
        return captured(lambda: torch.autograd.grad(value(), drawing))

    contenders = {name: contender(name, name == "fastsketch") for name in ("fastsketch", "framework")}
    (one, gradient), (other, wanted) = results["fastsketch"], results["framework"]
    assert abs(one - other) <= 1e-4 * other, f"losses differ: {one} and {other}"
    error = ((gradient - wanted).norm() / wanted.norm()).item()
    assert error < 0.02, f"gradients differ by {error:.2g} of their norm"  # features' gradients are bfloat16
    return Case(contenders, [])


CASES: dict[str, Callable[[bool], Case]] = {
    "attention_statistics N=4096": lambda quick: attention(4096, quick),
    "sample_patches B=8 N=65536": lambda quick: sampling(8, quick),
    "patch_nce rows=65536 bf16": lambda quick: many_negatives(65536, quick),
    "tap_backward B=1": lambda quick: tap_backward(1, quick),
    "tap_backward B=32": lambda quick: tap_backward(2 if quick else 32, quick),
    "perceptual B=1": lambda quick: perceptual(1, quick),
    "perceptual B=8": lambda quick: perceptual(2 if quick else 8, quick),
    "generator B=2": lambda quick: generator(1 if quick else 2, quick),
    "generator B=16": lambda quick: generator(1 if quick else 16, quick),
    "loss_path B=1": lambda quick: loss_path(1, quick),
    "loss_path B=8": lambda quick: loss_path(2 if quick else 8, quick),
}
