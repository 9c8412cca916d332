"""Gradients of gradients: a graph of a kernel's gradient is the framework's, complete, for penalties of gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastsketch.nn import PatchDiscriminator, ResnetGenerator
from fastsketch.nn.attend import attend
from fastsketch.nn.blur import BlurDownsample, BlurUpsample
from fastsketch.nn.convolution import convolve, use_winograd
from fastsketch.nn.feature_distance import normalized_distance
from fastsketch.nn.instance_norm import InstanceNorm
from fastsketch.nn.max_pool import HalvingMaxPool
from fastsketch.nn.own_kernels import use_own_kernels

TARGET = torch.randn(2, 4, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _framework_s(layer: torch.nn.Module) -> torch.nn.Module:
    use_own_kernels(layer, False)
    return layer


def _distance(x: Tensor, y: Tensor) -> Tensor:
    u, v = (z / (torch.linalg.vector_norm(z, dim=1, keepdim=True) + 1e-3) for z in (x, y))
    return (u - v).square().sum(1).mean((1, 2))


CASES: dict[str, tuple[Callable, Callable, list[tuple[int, ...]]]] = {
    "norm": (InstanceNorm(4), _framework_s(InstanceNorm(4)), [(2, 4, 9, 11)]),
    "norm and ReLU": (InstanceNorm(4, 0.0), _framework_s(InstanceNorm(4, 0.0)), [(2, 4, 9, 11)]),
    "halve": (BlurDownsample(4).double(), _framework_s(BlurDownsample(4)).double(), [(2, 4, 9, 11)]),
    "double": (BlurUpsample(4).double(), _framework_s(BlurUpsample(4)).double(), [(2, 4, 9, 11)]),
    "pool": (HalvingMaxPool(), torch.nn.MaxPool2d(2), [(2, 4, 9, 11)]),
    "distance": (lambda x: normalized_distance(x, TARGET), lambda x: _distance(x, TARGET), [(2, 4, 9, 11)]),
    "3×3": (
        lambda x, w, b: convolve(x, w, b, 1, "reflect"),
        lambda x, w, b: F.conv2d(F.pad(x, (1,) * 4, "reflect"), w, b),
        [(2, 4, 9, 11), (3, 4, 3, 3), (3,)],
    ),
    "4×4": (
        lambda x, w, b: convolve(x, w, b, 2),
        lambda x, w, b: F.conv2d(x, w, b, padding=2),
        [(2, 4, 9, 11), (3, 4, 4, 4), (3,)],
    ),
    "attention": (
        attend,
        lambda q, k, v: v @ (q.mT @ k / q.shape[1] ** 0.5).softmax(-1).mT,
        [(2, 3, 7), (2, 3, 5), (2, 4, 5)],
    ),
}


@pytest.mark.parametrize("needed", ["all", "first"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(name, channels_last, needed):
    """To every input and to the arriving gradient; the latter being a constant must not hide the others."""
    own, framework, shapes = CASES[name]
    torch.manual_seed(0)
    leaves = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    if channels_last:
        leaves = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in leaves]
    count = len(leaves) if needed == "all" else 1
    leaves = [x.requires_grad_(number < count) for number, x in enumerate(leaves)]
    wanted = leaves[:count]
    arriving = torch.randn_like(framework(*leaves), requires_grad=True)

    def run(function: Callable, arrives: Tensor) -> list[Tensor]:
        first = torch.autograd.grad(function(*leaves), wanted, arrives, create_graph=True)
        to = [*wanted, arrives] if arrives.requires_grad else wanted
        penalty = sum(x.square().sum() for x in first)
        assert penalty.requires_grad
        second = torch.autograd.grad(penalty, to, allow_unused=True, materialize_grads=True)
        return [*(x.detach() for x in first), *second]

    constant = [arriving.detach()] if name not in ("halve", "double", "pool") else []  # linear: nothing is left then
    for arrives in (arriving, *constant):
        for one, other in zip(run(own, arrives), run(framework, arrives), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_jacobian_in_one_go_is_that_row_by_row(name):
    own, _, shapes = CASES[name]
    torch.manual_seed(0)
    first, *others = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    at_once, by_row = (
        torch.autograd.functional.jacobian(lambda x: own(x, *others), first, vectorize=vectorize)
        for vectorize in (True, False)
    )
    torch.testing.assert_close(at_once, by_row, rtol=1e-9, atol=1e-12)


def test_distance_of_features_that_are_zero():
    """Where every channel is off a length's own second derivative would be 0 · ∞."""
    features = torch.zeros(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(normalized_distance(features, TARGET[:1, :3, :2, :2]), features, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), features)
    assert first.abs().max() > 0 and second.isfinite().all()


def test_penalty_of_a_judge_s_gradient():
    """R1 [L: Mescheder et al., ICML 2018], to the picture and to the weights."""
    torch.manual_seed(0)
    judge, plain = (PatchDiscriminator(1, 32).double() for _ in range(2))
    plain.load_state_dict(judge.state_dict())
    use_winograd(judge)
    use_own_kernels(plain, False)
    image = torch.rand(1, 1, 48, 48, dtype=torch.float64, requires_grad=True)

    def run(network):
        (gradient,) = torch.autograd.grad(network(image).sum(), image, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [image, *network.parameters()], materialize_grads=True)

    assert any(layer.winograd for layer in judge.modules() if hasattr(layer, "winograd"))
    for one, other in zip(run(judge), run(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_penalty_through_the_generator_and_a_distance_of_features():
    torch.manual_seed(0)
    generator, target = ResnetGenerator(3, 3, 4, 5).double(), torch.rand(1, 3, 32, 32).double()
    photo, mask = torch.rand(1, 3, 32, 32, dtype=torch.float64, requires_grad=True), torch.ones(1, 1, 32, 32).double()

    def run(own: bool):
        use_own_kernels(generator, own)
        loss = normalized_distance(generator(photo, mask), target, own).sum()
        (gradient,) = torch.autograd.grad(loss, photo, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [photo, *generator.parameters()], materialize_grads=True)

    for one, other in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
