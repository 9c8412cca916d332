"""Patches of an encoder's layers: the gradient is autograd's own, is written in place only where nothing else can hold
the arriving one, and is never lost.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastsketch
from fastsketch.ops import chain


@pytest.fixture
def added(cpp, monkeypatch):
    """For each gradient that arrived at a hook with something to add: whether it was written in place."""
    how = []

    def find(name, device):
        def add(grad_features, grad_patches, index):
            how.append("in place")
            return cpp.tap_patches_add_(grad_features, grad_patches, index)

        return add

    def copy(*args):
        how.append("copied")
        return cpp.tap_patches_backward(*args)

    monkeypatch.setattr(chain._backend, "optional_kernel", find)
    monkeypatch.setattr(chain, "tap_patches_backward", copy)
    return how


class Encoder(nn.Module):
    """Layers of 4, 6 and 8 channels, each made of the one before."""

    def __init__(self, dims=2):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.convs = nn.ModuleList(conv(a, b, 3, padding=1) for a, b in ((3, 4), (4, 6), (6, 8)))

    def forward(self, x):
        features = []
        for conv in self.convs:
            x = conv(x)
            features.append(x)
            x = x.relu()
        return features


def problem(dims=2, dtype=torch.float64):
    torch.manual_seed(0)
    net, x = Encoder(dims).to(dtype), torch.randn(2, 3, *(5, 6, 4)[:dims], dtype=dtype, requires_grad=True)
    index = [torch.randint(0, x.shape[2:].numel(), (2, 7)) for _ in range(3)]  # some stand twice
    weight = [torch.randn(2, 7, channels, dtype=dtype) for channels in (4, 6, 8)]
    return net, x, index, weight


def late(features, index):
    return fastsketch.gather_layers(features, index, differentiable=True)


def plain(features, index):
    return [
        f.flatten(2).gather(2, i[:, None].expand(-1, f.shape[1], -1)).mT for f, i in zip(features, index, strict=True)
    ]


def total(patches, weight):
    return sum((p * w).sum().sin() for p, w in zip(patches, weight, strict=True))


def gradients(gather, net, x, index, weight, wrap=lambda features: features):
    """Of a backward of everything, in which gradients may be left with hooks."""
    features, inputs = wrap(net(x)), (x, *net.parameters())
    total(gather(features, index), weight).backward()
    grads = [y.grad for y in inputs]
    for y in inputs:
        y.grad = None
    return grads


def close(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gradient_is_that_of_indexing(added, dims, dtype):
    given = problem(dims, dtype)
    close(gradients(late, *given), gradients(plain, *given))
    assert added == ["in place"] * 2  # the last layer gets a dense one


def test_whether_somebody_looks_on_or_not(added, looked_on):
    given = problem()
    for _ in range(2):
        with looked_on():
            late_grads = gradients(late, *given)
        close(late_grads, gradients(plain, *given))
        close(gradients(late, *given), late_grads)
    assert added == ["in place"] * 8


def test_channels_last(added):
    net, x, index, weight = problem()
    given = net.to(memory_format=torch.channels_last), x, index, weight
    close(gradients(late, *given), gradients(plain, *given))


def test_without_the_kernels():
    given = problem()
    with fastsketch.use_backend("reference"):
        close(gradients(late, *given), gradients(plain, *given))


def test_twice_over_the_same_features_and_through_the_same_graph(added):
    net, x, index, weight = problem()
    results = []
    for gather in (late, plain):
        features = net(x)
        one, other = gather(features, index), gather(features, [i.flip(1) for i in index])
        loss = total(one, weight) + total(other, weight).square() + features[1].square().sum()
        parts = [torch.autograd.grad(loss, (x, *net.parameters()), retain_graph=True) for _ in range(2)]
        results.append([*parts[0], *parts[1]])
    close(*results)


def test_layers_that_are_not_used(added):
    """The loss looks at one layer only: the others get no gradient, and nothing is lost."""
    given = problem()
    for used in range(3):

        def only(gather, used=used):
            return lambda features, index: [
                patches if layer == used else patches.detach() for layer, patches in enumerate(gather(features, index))
            ]

        for got, wanted in zip(gradients(only(late), *given), gradients(only(plain), *given), strict=True):
            assert (got is None) == (wanted is None)
            if got is not None:
                close([got], [wanted])


def test_part_of_the_graph(added):
    """Gradients of a layer's own features, and of parameters above some layers, below others."""
    net, x, index, weight = problem()
    for inputs in (
        lambda f: [f[0]],
        lambda f: [f[2]],
        lambda f: [f[1], f[2]],
        lambda f: [f[1], f[0]],
        lambda f: [f[1], x],
        lambda f: [f[1], net.convs[0].weight],
        lambda f: [net.convs[2].weight],
    ):
        results = []
        for gather in (late, plain):
            features = net(x)
            loss = total(gather(features, index), weight)
            results.append(
                [*torch.autograd.grad(loss, inputs(features), retain_graph=True), *torch.autograd.grad(loss, x)]
            )
        close(*results)


def test_a_backward_finds_nothing_that_another_one_left(added):
    """After one to the last layer's weight alone, one that failed half way, and with one inside of another."""
    net, x, index, weight = problem()
    results = []
    for gather in (late, plain):
        made = []
        features = net(x)
        loss = total(gather(features, index), weight)
        made += torch.autograd.grad(loss, net.convs[2].weight, retain_graph=True)
        made += torch.autograd.grad(features[2].square().sum(), (x, *net.parameters()), retain_graph=True)

        fail = features[1].register_hook(lambda grad: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loss.backward(retain_graph=True)
        fail.remove()
        net.zero_grad()
        features[2].square().sum().backward(retain_graph=True)
        made += [p.grad.clone() for p in net.parameters()]

        aside = features[1].square().sum()
        inside = []
        features[2].register_hook(
            lambda grad, aside=aside, inside=inside: inside.extend(
                torch.autograd.grad(aside, net.convs[0].weight, retain_graph=True)
            )
        )
        net.zero_grad()
        loss.backward()
        results.append(made + inside + [p.grad.clone() for p in net.parameters()])
        net.zero_grad()
        x.grad = None
    close(*results)
    assert "in place" in added


def test_second_derivatives(added):
    net, x, index, weight = problem()
    results = []
    for gather in (late, plain):
        loss = total(gather(net(x), index), weight)
        grads = torch.autograd.grad(loss, (x, *net.parameters()), create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), (x, *net.parameters())))
    close(*results)


def test_hooks_see_the_whole_gradient(added):
    """Of a hook set before, of one set after, and of retain_grad, whatever it keeps."""
    net, x, index, weight = problem()
    results = []
    for gather in (late, plain):
        features, seen = net(x), []
        features[0].register_hook(seen.append)
        features[1].retain_grad()
        patches = gather(features, index)
        features[1].register_hook(seen.append)
        total(patches, weight).backward()
        results.append([*seen, features[1].grad])
    close(*results)


class HandDown(torch.autograd.Function):
    """A layer that sends a given tensor back as the gradient."""

    @staticmethod
    def forward(ctx, x, box):
        ctx.box = box
        return x[:, :1] * 1

    @staticmethod
    def backward(ctx, grad):
        return ctx.box.pop(), None


def test_a_gradient_that_is_held_is_copied(added, keep):
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    below = x * 1
    box = [torch.ones(below.shape)]
    held = keep(box[0])
    address, index = box[0].data_ptr(), torch.tensor([[0, 5]])
    patches = late([below, HandDown.apply(below, box)], [index, index])
    sum(p.sum() for p in patches).backward()
    expected = torch.ones(3, 16)
    expected[:, [0, 5]] += 1
    torch.testing.assert_close(x.grad.view(3, 16), expected)
    assert added == ["copied"]
    if isinstance(held, torch.Tensor):
        assert held.data_ptr() == address
        torch.testing.assert_close(held, torch.ones_like(held))


def test_a_gradient_that_a_function_around_the_hook_keeps_is_copied(added, monkeypatch):
    """From Python 3.14 on a call counts no reference of its own to what its caller holds."""
    call, kept, seen = chain.Addition.__call__, [], []

    def around(self, grad):
        seen.append(grad.clone())
        result = call(self, grad)
        kept.append(grad)
        return result

    monkeypatch.setattr(chain.Addition, "__call__", around)
    gradients(late, *problem())
    assert added == ["copied"] * 2
    assert all(map(torch.equal, kept, seen))


def test_a_gradient_shared_with_another_path_is_copied(added):
    """An addition hands the same tensor to both its sides."""
    _, x, index, weight = problem()
    results = []
    for gather in (late, plain):
        other = x * 3  # made first, so that its backward comes last and its gradient waits meanwhile
        below = x * 2
        features = [below, below + other]
        total(gather(features, index[:2]), [weight[0][..., :3]] * 2).backward()
        results.append([x.grad])
        x.grad = None
    close(*results)
    assert added == ["copied"]


def test_layers_side_by_side_leaves_and_constants(added):
    x = [torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=n != 1) for n in range(3)]
    features, index = [x[0] * 1, x[1], x[2]], [torch.randint(0, 16, (2, 5))] * 3
    patches = late(features, index)
    close(
        torch.autograd.grad(sum(p.square().sum() for p in patches), (x[0], x[2])),
        [torch.autograd.grad(plain([y], [i])[0].square().sum(), y)[0] for y, i in ((x[0], index[0]), (x[2], index[2]))],
    )
    assert not added
    assert not any(p.requires_grad for p in late([y.detach() for y in features], index))
    with torch.no_grad():
        assert not any(p.requires_grad for p in late(features, index))


class Stop(torch.autograd.Function):
    """A layer that hands no gradient down."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return None


def test_a_gradient_that_does_not_arrive_is_an_error(added):
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    below, index = x * 1, torch.tensor([[0, 5]])
    patches = late([below, Stop.apply(below)], [index, index])
    with pytest.raises(RuntimeError, match="features: no gradient arrived from the layers above"):
        sum(p.sum() for p in patches).backward()


def test_compiles_without_a_break():
    net, x, index, weight = problem()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: total(late(net(x), index), weight), fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x), (x, *net.parameters()))
    close(got, gradients(plain, net, x, index, weight))


def test_patches_of_an_encoder_whose_last_layers_part(added):
    """Two ends: both get a dense gradient."""
    net, x, index, weight = problem()

    def wrap(features):
        return [features[0], features[1].relu()[:, :4] * 2, F.avg_pool2d(features[0], 1)]

    weight = [weight[0], weight[0] * 2, weight[0] * 3]
    close(
        gradients(late, net, x, index, weight, wrap),
        gradients(plain, net, x, index, weight, wrap),
    )
    assert added == ["in place"]
