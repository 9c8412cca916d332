"""Semantic relation and weighted negatives: against autograd through their formulas, in every implementation."""

import pytest
import torch
import torch.nn.functional as F

from fastsketch.ops.relation import Relation, WeightedNCE, relation_weight

KERNELS = ("patch_nce_forward",)
SHAPES = [(2, 33, 8), (1, 130, 20), (3, 16, 5), (2, 2, 3), (1, 300, 64)]


def unit(x):
    return x / (x.norm(dim=2, keepdim=True) + 1e-7)


def divergence(query, key):
    """½ KL(p ‖ m) + ½ KL(q ‖ m), as torch's kl_div has it."""
    p, q = ((x @ x.mT).softmax(2) for x in (unit(query), unit(key)))
    middle = ((p + q) / 2).log()
    return (F.kl_div(middle, p, reduction="none") + F.kl_div(middle, q, reduction="none")).sum((1, 2)) / 2


def weights(key, gamma):
    eye = torch.eye(key.shape[1], dtype=torch.bool)
    key = unit(key)
    soft = ((key @ key.mT).masked_fill(eye, -10.0) / gamma).softmax(2)
    return soft / soft.amax(2, keepdim=True)


def weighted(query, key, weight, temperature):
    """(loss, decoupled loss) of each query."""
    products = query @ key.mT
    positive = products.diagonal(dim1=1, dim2=2)[..., None]
    negative = (products if weight is None else products * weight).clone()
    negative.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    both = torch.cat((positive, negative), 2) / temperature
    return both.logsumexp(2) - both[..., 0], ((negative - positive) / temperature).logsumexp(2)


@pytest.fixture
def rows(randn):
    def make(shape, dtype=torch.float64):
        query, key = (randn(*shape, dtype=dtype, seed=seed) for seed in (0, 1))
        return query.requires_grad_(), key

    return make


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gamma", [1.0, 0.05, 50.0])
def test_weights(backend, rows, shape, gamma):
    query, key = rows(shape)
    for got in (relation_weight(key, gamma), Relation.apply(query, key, gamma)[1]):
        torch.testing.assert_close(got, weights(key, gamma), rtol=1e-11, atol=1e-14)
        assert not got.requires_grad


@pytest.mark.parametrize("shape", SHAPES)
def test_relation_loss(backend, rows, shape):
    query, key = rows(shape)
    each = torch.linspace(0.5, 2, shape[0], dtype=torch.float64)
    got, wanted = Relation.apply(query, key, 1.0)[0], divergence(query, key)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-14)
    for one, other in zip(*(torch.autograd.grad((x * each).sum(), query) for x in (got, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


def test_equal_relations_diverge_by_nothing(backend, rows):
    query, _ = rows((2, 20, 6))
    loss = Relation.apply(query, query.detach(), 1.0)[0]
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), query)[0], torch.zeros_like(query), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("with_weight", [False, True])
def test_weighted_loss(backend, rows, shape, decoupled, with_weight):
    query, key = (0.5 * unit(x) for x in rows(shape))
    query = query.detach().requires_grad_()
    weight = weights(key, 0.5) if with_weight else None
    each = torch.linspace(0.5, 2, shape[0] * shape[1], dtype=torch.float64).view(shape[:2])
    got = WeightedNCE.apply(query, key, weight, 0.07, decoupled)
    loss, apart = weighted(query, key, weight, 0.07)
    torch.testing.assert_close(got, loss, rtol=1e-11, atol=1e-13)
    (one,) = torch.autograd.grad((got * each).sum(), query)
    wanted = apart.mean() * each.sum() if decoupled else (loss * each).sum()
    (other,) = torch.autograd.grad(wanted, query)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_single_sample_has_no_negative(backend, rows, decoupled):
    query, key = rows((2, 1, 4))
    loss = WeightedNCE.apply(query, key, None, 0.5, decoupled)
    assert torch.equal(loss, torch.zeros_like(loss))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), query)[0], -2 * key if decoupled else 0 * key)


def test_in_float32_no_worse_than_the_formula(backend, rows, assert_as_good_as_naive):
    query, key = (unit(x).detach() for x in rows((2, 256, 64)))
    query.requires_grad_()
    small = query.detach().float().requires_grad_()
    results = []
    for of in (lambda q, k: Relation.apply(q, k, 1.0)[0], divergence):
        loss = of(small, key.float())
        results.append([loss, *torch.autograd.grad(loss.sum(), small)])
    loss = divergence(query, key)
    for got, naive, truth in zip(*results, [loss, *torch.autograd.grad(loss.sum(), query)], strict=True):
        assert_as_good_as_naive(got, naive, truth)
    weight = weights(key, 1.0)
    got = WeightedNCE.apply(small, key.float(), weight.float(), 0.07, False)
    naive, _ = weighted(small, key.float(), weight.float(), 0.07)
    truth, _ = weighted(query, key, weight, 0.07)
    assert_as_good_as_naive(got, naive, truth)
    grads = [torch.autograd.grad(x.sum(), of)[0] for x, of in ((got, small), (naive, small), (truth, query))]
    assert_as_good_as_naive(*grads)


def test_a_zero_vector(backend, rows):
    query, key = (x.detach().clone() for x in rows((2, 9, 4)))
    query[0, 2] = key[1, 3] = 0
    query.requires_grad_()
    loss, weight = Relation.apply(query, key, 1.0)
    torch.testing.assert_close(loss, divergence(query, key))
    torch.testing.assert_close(weight, weights(key, 1.0))
    assert torch.autograd.grad(loss.sum(), query)[0].isfinite().all()


def test_what_is_not_a_number_shows(backend, rows):
    query, key = rows((2, 20, 8))
    broken = query.detach().clone()
    broken[0, 3, 2] = float("nan")
    broken.requires_grad_()
    for loss in (Relation.apply(broken, key, 1.0)[0], WeightedNCE.apply(broken, key, None, 0.07, True)[:, 3]):
        assert loss[0].isnan() and loss[1].isfinite()
        assert torch.autograd.grad(loss.sum(), broken)[0][0, 3].isnan().any()


def test_the_same_bits_for_any_number_of_threads(backend, rows, restrided, with_threads):
    query, key = rows((5, 100, 64), torch.float32)
    weight, runs = relation_weight(key, 1.0), []

    def run():
        for change in (lambda x: x, restrided):
            q, k = change(query.detach()).requires_grad_(), change(key)
            losses = Relation.apply(q, k, 1.0)[0], WeightedNCE.apply(q, k, change(weight), 0.07, True)
            grads = [torch.autograd.grad(loss.sum(), q)[0] for loss in losses]
            runs.append((*losses, *grads, relation_weight(k, 1.0)))

    with_threads(run)
    if backend == "cpp":  # the framework's products are not held to it
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("decoupled", [None, False, True])
def test_second_derivative(backend, rows, decoupled):
    query, key = rows((2, 6, 3))
    weight = weights(key, 1.0)
    if decoupled is None:
        got, wanted = Relation.apply(query, key, 1.0)[0], divergence(query, key)
    else:
        got = WeightedNCE.apply(query, key, weight, 0.5, decoupled)
        wanted = weighted(query, key, weight, 0.5)[decoupled]
    results = []
    for loss in (got, wanted):
        (grad,) = torch.autograd.grad(loss.sum(), query, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), query)[0])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
def test_second_derivative_of_a_single_sample(backend, rows, decoupled):
    query, key = rows((2, 1, 3))
    for weight in (None, weights(key, 1.0)):
        loss = WeightedNCE.apply(query, key, weight, 0.5, decoupled)
        (grad,) = torch.autograd.grad(loss.sum(), query, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum() + query.sum(), query)
        assert torch.equal(second, torch.ones_like(second))


def test_no_images(backend):
    empty = torch.zeros(0, 4, 3, requires_grad=True)
    assert Relation.apply(empty, empty, 1.0)[0].shape == (0,)
    assert WeightedNCE.apply(empty, empty, None, 0.07, True).shape == (0, 4)
    assert relation_weight(empty, 1.0).shape == (0, 4, 4)
