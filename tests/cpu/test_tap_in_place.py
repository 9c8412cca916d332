"""The tap writes into the arriving gradient where nothing else can hold it, and only there."""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastsketch
from fastsketch.ops import gather

INDEX = torch.tensor([[0, 3, 3, 7], [1, 2, 5, 15]])
SHAPE = (2, 3, 4, 4)


@pytest.fixture
def written(cpp, monkeypatch):
    """Addresses of the gradients that were written in place."""
    addresses = []

    def find(name, device):
        def add(grad_features, grad_patches, index):
            addresses.append(grad_features.data_ptr())
            return cpp.tap_patches_add_(grad_features, grad_patches, index)

        return add

    monkeypatch.setattr(gather._backend, "optional_kernel", find)
    return addresses


def run(downstream, prepare=None, backward=None):
    """Gradient of the features through a tap, and the same by plain operations."""
    torch.manual_seed(0)
    x = torch.randn(SHAPE, requires_grad=True)
    weight = torch.randn(2, 4, 3)
    features, patches = fastsketch.tap_patches(x, INDEX)
    kept = prepare(features) if prepare else None
    outputs = [downstream(features), (patches * weight).sum()]
    if backward:
        backward(outputs)
    else:
        torch.autograd.backward(outputs)

    plain = x.detach().requires_grad_()
    rows = plain.flatten(2).gather(2, INDEX[:, None].expand(-1, 3, -1)).mT
    torch.autograd.backward([downstream(plain), (rows * weight).sum()])
    torch.testing.assert_close(x.grad, plain.grad)
    return kept


class HandDown(torch.autograd.Function):
    """Sends a given tensor back as the gradient."""

    @staticmethod
    def forward(ctx, x, box):
        ctx.box = box
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, grad):
        return ctx.box.pop(), None


@pytest.mark.parametrize(
    "downstream",
    [
        lambda f: (f * 2).sum(),
        lambda f: f.relu().square().sum(),
        lambda f: F.conv2d(f, torch.ones(2, 3, 3, 3)).square().sum(),
        lambda f: F.instance_norm(f).pow(3).sum(),  # its gradient is a view of all of another tensor
        lambda f: F.pad(f, (1, 1, 1, 1), mode="reflect").square().sum(),
        lambda f: (f * 2 + f.relu()).sum(),  # two consumers: the engine's own sum arrives
        lambda f: f[:, :1].square().sum(),
    ],
    ids=["mul", "relu", "conv", "instance_norm", "pad", "two_consumers", "slice"],
)
def test_writes_where_nothing_else_holds_it(written, downstream):
    run(downstream)
    assert len(written) == 1


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_writes_whether_somebody_looks_on_or_not(written, looked_on, order):
    for times, seen in enumerate(order, 1):
        with looked_on() if seen else contextlib.nullcontext():
            run(lambda f: (f * 2).sum())
        assert len(written) == times


@pytest.mark.parametrize("holders", range(1, 5))
def test_copies_what_is_held_after_a_first_use_that_was_looked_on(written, looked_on, holders):
    with looked_on():
        run(lambda f: (f * 2).sum())
    assert len(written) == 1
    kept = []
    run(lambda f: (f * 2).sum(), lambda features: features.register_hook(lambda grad: kept.extend([grad] * holders)))
    assert len(written) == 1
    assert torch.equal(kept[0], torch.full(SHAPE, 2.0))


def test_arriving_memory_is_the_memory_returned(written):
    x = torch.randn(SHAPE, requires_grad=True)
    arrived = []

    class Source(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            arrived.append(grad)

    features, patches = fastsketch.tap_patches(Source.apply(x), INDEX)
    box = [torch.zeros(SHAPE)]
    address = box[0].data_ptr()
    torch.autograd.backward([HandDown.apply(features, box), patches.sum()])
    assert written == [address] and arrived[0].data_ptr() == address


@pytest.mark.parametrize("downstream", [lambda f: (f * 2).sum(), lambda f: F.instance_norm(f).pow(3).sum()])
def test_copies_where_a_hook_keeps_it(written, keep, downstream):
    kept = []
    copies = []

    def hook(grad):
        copies.append(grad.clone())
        kept.append(keep(grad))

    run(downstream, lambda features: features.register_hook(hook))
    assert not written
    if isinstance(kept[0], Tensor) and kept[0].shape == SHAPE:
        assert torch.equal(kept[0], copies[0])


def test_copies_what_a_function_around_the_backward_keeps(written, monkeypatch):
    """From Python 3.14 on a call counts no reference of its own to what its caller holds."""
    backward, kept = gather._EagerTap.backward, []

    def around(ctx, grad_features, grad_patches):
        result = backward(ctx, grad_features, grad_patches)
        kept.append(grad_features)
        return result

    monkeypatch.setattr(gather._EagerTap, "backward", staticmethod(around))
    run(lambda f: (f * 2).sum())
    assert not written
    assert torch.equal(kept[0], torch.full(SHAPE, 2.0))


def test_copies_where_a_hook_keeps_the_base(written):
    kept = []
    run(
        lambda f: F.instance_norm(f).pow(3).sum(),
        lambda features: features.register_hook(lambda grad: kept.append(grad._base)),
    )
    assert not written and kept[0] is not None


def test_retained_gradient_is_the_arriving_one(written):
    def retain(features):
        features.retain_grad()
        return features

    features = run(lambda f: (f * 2).sum(), retain)
    assert torch.equal(features.grad, torch.full(SHAPE, 2.0))


def test_copies_a_gradient_given_by_the_user(written):
    given = torch.ones(SHAPE)
    x = torch.randn(SHAPE, requires_grad=True)
    features, patches = fastsketch.tap_patches(x, INDEX)
    torch.autograd.backward([features, patches.sum()], [given, None])
    assert not written and torch.equal(given, torch.ones(SHAPE))
    assert torch.equal(x.grad.sum(), given.sum() + patches.numel())


def test_copies_a_temporary_given_by_the_user(written):
    x = torch.randn(SHAPE, requires_grad=True)
    features, patches = fastsketch.tap_patches(x, INDEX)
    torch.autograd.backward([features, patches.sum()], [torch.ones(SHAPE), None])
    assert not written


def test_copies_a_gradient_that_its_maker_keeps(written):
    box = [torch.zeros(SHAPE)]
    keep = box[0]
    x = torch.randn(SHAPE, requires_grad=True)
    features, patches = fastsketch.tap_patches(x, INDEX)
    torch.autograd.backward([HandDown.apply(features, box), patches.sum()])
    assert not written and torch.equal(keep, torch.zeros(SHAPE))


def test_copies_foreign_memory(written):
    """A hook may hand in an array's memory: the tensor is nobody else's, the values are."""
    array = np.zeros(SHAPE, np.float32)
    x = torch.randn(SHAPE, requires_grad=True)
    features, patches = fastsketch.tap_patches(x, INDEX)
    features.register_hook(lambda grad: torch.from_numpy(array))
    torch.autograd.backward([(features * 2).sum(), patches.sum()])
    assert not written and not array.any()


def test_copies_shared_memory(written):
    box = [torch.zeros(SHAPE).share_memory_()]
    x = torch.randn(SHAPE, requires_grad=True)
    features, patches = fastsketch.tap_patches(x, INDEX)
    torch.autograd.backward([HandDown.apply(features, box), patches.sum()])
    assert not written


@pytest.mark.parametrize(
    "downstream",
    [
        lambda f: f.sum(),  # one value, expanded
        lambda f: f.mean((2, 3)).square().sum(),
        lambda f: torch.cat([f, f.detach()]).square().sum(),  # a part of a larger gradient
        lambda f: torch.stack([f, f]).square()[0].sum(),
    ],
    ids=["sum", "mean", "cat", "stack"],
)
def test_copies_views_and_expansions(written, downstream):
    run(downstream)


def test_second_consumer_of_the_same_gradient(written):
    """An addition sends one gradient both ways; the other branch must not see the patches."""
    torch.manual_seed(0)
    x, y = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE, requires_grad=True)
    other = y * 1  # made before the tap: it takes its gradient after the tap has
    features, patches = fastsketch.tap_patches(x, INDEX)
    torch.autograd.backward([((features + other) * 2).sum(), patches.sum()])
    assert torch.equal(y.grad, torch.full(SHAPE, 2.0))
    assert x.grad.sum() == 2 * x.numel() + patches.numel()


def test_two_taps_on_one_tensor(written):
    torch.manual_seed(0)
    x = torch.randn(SHAPE, requires_grad=True)
    first, a = fastsketch.tap_patches(x, INDEX)
    second, b = fastsketch.tap_patches(x, INDEX)
    torch.autograd.backward([((first + second) * 2).sum(), a.sum(), 3 * b.sum()])
    plain = torch.zeros(SHAPE).flatten(2).scatter_add(2, INDEX[:, None].expand(-1, 3, -1), torch.full((2, 3, 4), 4.0))
    assert torch.equal(x.grad, plain.view(SHAPE) + 4)


def test_backward_twice(written):
    x = torch.randn(SHAPE, requires_grad=True)
    features, patches = fastsketch.tap_patches(x, INDEX)
    outputs = (features * 2).sum() + patches.sum()
    (first,) = torch.autograd.grad(outputs, x, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(outputs, x)
    assert torch.equal(first, kept) and torch.equal(second, kept)


def test_double_backward_copies(written):
    x = torch.randn(SHAPE, requires_grad=True)
    features, patches = fastsketch.tap_patches(x, INDEX)
    (grad,) = torch.autograd.grad(features.pow(3).sum() + patches.pow(3).sum(), x, create_graph=True)
    assert not written
    (second,) = torch.autograd.grad(grad.sum(), x)
    counts = torch.zeros(SHAPE).flatten(2).scatter_add(2, INDEX[:, None].expand(-1, 3, -1), torch.ones(2, 3, 4))
    torch.testing.assert_close(second, 6 * x * (1 + counts.view(SHAPE)))


def test_compiled_keeps_the_functional_operator(written):
    def loss(x):
        features, patches = fastsketch.tap_patches(x, INDEX)
        return (features * 2).sum() + patches.sum()

    x = torch.randn(SHAPE, requires_grad=True)
    torch.compile(loss, fullgraph=True, backend="aot_eager")(x).backward()
    assert not written
    assert x.grad.sum() == 2 * x.numel() + 2 * 4 * 3


def test_torch_func(written):
    x = torch.randn(SHAPE)

    def loss(x):
        features, patches = fastsketch.tap_patches(x, INDEX)
        return (features * 2).sum() + patches.sum()

    assert torch.func.grad(loss)(x).sum() == 2 * x.numel() + 2 * 4 * 3
