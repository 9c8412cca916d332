"""project_and_normalize: against the formula in float64, as tensors of their own, and layers that are not used."""

import pytest
import torch

import fastsketch
from fastsketch.compat.cut import Normalize
from fastsketch.functional import project_and_normalize

KERNELS = ("patch_nce_forward", "gather_layers")


def problem(randn, batch=2, samples=5, dim=12, scale=1.0):
    """Three layers' patches and parameters."""
    widths, hidden = (3, 7, 4), 6
    patches = [randn(batch, samples, c, seed=n, grad=True) for n, c in enumerate(widths)]
    parameters = []
    for n, c in enumerate(widths):
        shapes = ((hidden, c), (hidden,), (dim, hidden), (dim,))
        parameters += [randn(*s, seed=10 * n + i, scale=scale, grad=True) for i, s in enumerate(shapes)]
    return patches, parameters


def formula(patches, parameters):
    return [Normalize()(y.flatten(0, 1)) for y in fastsketch.project_patches(patches, parameters)]


def weighed(layers, randn):
    return sum((y * randn(*y.shape, seed=n)).sum().sin() for n, y in enumerate(layers))


@pytest.mark.parametrize("sizes", [{}, {"batch": 1, "samples": 37, "dim": 1}, {"samples": 0}])
def test_values_and_gradients(backend, randn, sizes):
    patches, parameters = problem(randn, **sizes)
    got, wanted = project_and_normalize(patches, parameters), formula(patches, parameters)
    assert len(got) == 3
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)
    inputs = (*patches, *parameters)
    grads = [torch.autograd.grad(weighed(layers, randn), inputs) for layers in (got, wanted)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        for one, other in zip(project_and_normalize(patches, parameters), wanted, strict=True):
            torch.testing.assert_close(one, other)


def test_float32_and_small_rows(backend, randn, assert_as_good_as_naive):
    """Projections are as small as 3e-5 at CUT's initialisation."""
    patches, parameters = problem(randn, samples=50, scale=1e-3)
    results = []
    for dtype, function in (
        (torch.float32, project_and_normalize),
        (torch.float32, formula),
        (torch.float64, formula),
    ):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (*patches, *parameters)]
        layers = function(inputs[:3], inputs[3:])
        loss = sum((y * randn(*y.shape, seed=n).to(dtype)).sum() for n, y in enumerate(layers))
        results.append((*layers, *torch.autograd.grad(loss, inputs)))
    for got, naive, truth in zip(*results, strict=True):
        assert_as_good_as_naive(got.detach(), naive.detach(), truth.detach())


def test_a_zero_row(backend, randn):
    patches, parameters = problem(randn)
    with torch.no_grad():
        parameters[2].zero_()
        parameters[3].zero_()
    first, second, _ = project_and_normalize(patches, parameters)
    assert (first == 0).all()
    grads = torch.autograd.grad(first.sum(), parameters[:4], retain_graph=True)
    assert all(g.isfinite().all() for g in grads)
    second.mul_(2)  # no view: it may be written to
    torch.testing.assert_close(second, 2 * formula(patches, parameters)[1])


@pytest.mark.parametrize("used", [[0], [1], [2], [0, 2], []])
def test_layers_that_are_not_used(backend, randn, used):
    """They get no gradient, not zeros: zeros times an overflown activation would be NaN."""
    patches, parameters = problem(randn)
    with torch.no_grad():
        for n in {0, 1, 2} - set(used):
            patches[n].fill_(torch.inf)
    results = []
    for function in (project_and_normalize, lambda p, w: [Normalize()(y) for y in each(p, w)]):
        inputs = [x.detach().requires_grad_() for x in (*patches, *parameters)]
        layers = function(inputs[:3], inputs[3:])
        loss = sum((layers[n].square() @ randn(12, seed=n)).sum() for n in used) + inputs[0].new_zeros(())
        if used:
            loss.backward()
        results.append([x.grad for x in inputs])
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.isfinite().all()
            torch.testing.assert_close(one, other)


def each(patches, parameters):
    """Layer by layer, nothing stacked."""
    for n, x in enumerate(patches):
        w1, b1, w2, b2 = parameters[4 * n : 4 * n + 4]
        yield ((x.flatten(0, 1) @ w1.T + b1).relu() @ w2.T + b2).contiguous()


def test_one_tensor_for_two_layers_and_second_derivatives(backend, randn):
    patches, parameters = problem(randn)
    patches, parameters = [patches[1], patches[1] * 2], parameters[4:8] * 2
    inputs = (patches[0], *parameters[:4])

    def first(function):
        loss = weighed(function(patches, parameters), randn)
        return torch.autograd.grad(loss, inputs, create_graph=True)

    grads = [first(function) for function in (project_and_normalize, lambda p, w: [Normalize()(y) for y in each(p, w)])]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    seconds = [torch.autograd.grad(sum(g.square().sum() for g in made), inputs, retain_graph=True) for made in grads]
    for one, other in zip(*seconds, strict=True):
        torch.testing.assert_close(one, other)


def test_compiles_without_a_break(backend, randn):
    patches, parameters = problem(randn)
    compiled = torch.compile(project_and_normalize, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(patches, parameters), formula(patches, parameters), strict=True):
        torch.testing.assert_close(one, other)


def test_bad_input(randn):
    patches, parameters = problem(randn)
    with pytest.raises(ValueError, match="parameters must hold four tensors"):
        project_and_normalize(patches, parameters[:-1])
    with pytest.raises(TypeError, match=r"patches\[1\] must be one of float64"):
        project_and_normalize([patches[0], patches[1].float(), patches[2]], parameters)
