"""Transport plans: against scaling in the log domain, and the gradient through its whole history."""

import pytest
import torch

from fastsketch.ops.transport import ITERATIONS, TransportPlan

KERNELS = ("patch_nce_forward",)


def scaled(cost, epsilon, iterations=ITERATIONS):
    """By turns the logarithms of the rows' and the columns' sums are taken away: the rows come first."""
    log_plan = cost / epsilon
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(2, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True)
    return log_plan.exp()


@pytest.mark.parametrize("shape", [(3, 37, 37), (2, 64, 64), (1, 5, 300), (2, 41, 6), (2, 1, 9), (1, 1, 1)])
@pytest.mark.parametrize("epsilon", [1.0, 0.05])
def test_plan(backend, randn, shape, epsilon):
    cost = randn(*shape, scale=0.5)
    torch.testing.assert_close(TransportPlan.apply(cost, epsilon), scaled(cost, epsilon), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 24, 24), (2, 50, 50), (1, 5, 70), (3, 37, 6), (1, 1, 9), (1, 1, 1)])
def test_gradient_is_that_through_all_iterations(backend, randn, shape):
    cost, weight = randn(*shape, scale=0.3, grad=True), randn(*shape, seed=1)
    (got,) = torch.autograd.grad((TransportPlan.apply(cost, 0.5) * weight).sum(), cost)
    (wanted,) = torch.autograd.grad((scaled(cost, 0.5) * weight).sum(), cost)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.01, 0.002])
def test_gradient_where_the_scaling_has_not_converged(backend, epsilon, dtype, rtol):
    """Costs as MoNCE's: with a small ε fifty iterations are far from the fixed point, and their gradient is another."""
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize
    query = unit(torch.randn(1, 64, 32, generator=generator, dtype=torch.float64), dim=2)
    key = unit(query + 0.3 * torch.randn(1, 64, 32, generator=generator, dtype=torch.float64), dim=2)
    cost = (query @ key.mT).masked_fill(torch.eye(64, dtype=torch.bool), -10.0).to(dtype).requires_grad_()
    weight = torch.rand(1, 64, 64, generator=generator, dtype=torch.float64)
    (got,) = torch.autograd.grad((TransportPlan.apply(cost, epsilon) * weight).sum(), cost)
    exact = cost.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad((scaled(exact, epsilon) * weight).sum(), exact)
    assert (got - wanted).norm() < rtol * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_finite_for_any_epsilon(backend, randn, dtype):
    cost = randn(2, 40, 40, dtype=dtype, grad=True)
    for epsilon in (1e-4, 1e-3, 1e3):
        (grad,) = torch.autograd.grad(TransportPlan.apply(cost, epsilon).square().sum(), cost)
        assert grad.isfinite().all()


def test_in_float32_no_worse_than_the_log_domain(backend, randn, assert_as_good_as_naive):
    cost = randn(2, 100, 100, scale=0.3)
    truth = scaled(cost, 0.5)
    assert_as_good_as_naive(TransportPlan.apply(cost.float(), 0.5), scaled(cost.float(), 0.5), truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entries_far_apart_stay_finite(backend, dtype):
    """A row and a column that no other wants: their entries vanish beside all others."""
    cost = torch.zeros(1, 6, 6, dtype=dtype)
    cost[0, 2], cost[0, :, 4] = -500.0, -900.0
    cost.requires_grad_()
    plan = TransportPlan.apply(cost, 0.5)
    torch.testing.assert_close(plan.sum(1), torch.ones(1, 6, dtype=dtype))
    torch.testing.assert_close(plan, scaled(cost.detach(), 0.5), rtol=1e-4, atol=1e-6)
    (grad,) = torch.autograd.grad(plan.square().sum(), cost)
    assert grad.isfinite().all()


def test_strides_and_the_same_bits_for_any_number_of_threads(backend, randn, restrided, with_threads):
    cost, weight = randn(5, 70, 70, dtype=torch.float32), randn(5, 70, 70, dtype=torch.float32, seed=1)
    runs = []

    def run():
        for x, w in ((cost, weight), (restrided(cost), restrided(weight))):
            x = x.detach().requires_grad_()
            plan = TransportPlan.apply(x, 1.0)
            runs.append((plan, *torch.autograd.grad(plan, x, w)))

    with_threads(run)
    if backend == "cpp":  # the framework's products are not held to it
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_second_derivatives_are_those_through_all_iterations(backend, randn):
    cost, weight = randn(1, 4, 4, grad=True), randn(1, 4, 4, seed=1)

    def penalty(plan):
        (grad,) = torch.autograd.grad((plan * weight).square().sum(), cost, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), cost)[0]

    want = penalty(scaled(cost, 1.0))
    torch.testing.assert_close(penalty(TransportPlan.apply(cost, 1.0)), want, rtol=1e-9, atol=1e-12)


def test_nothing_to_transport(backend):
    assert TransportPlan.apply(torch.zeros(0, 4, 4), 1.0).shape == (0, 4, 4)
