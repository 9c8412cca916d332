"""Normalisation of all layers' rows: against the formula in float64, and as tensors of their own."""

import pytest
import torch

from fastsketch.compat.cut import Normalize
from fastsketch.ops.normalization import normalize_layers

KERNELS = ("patch_nce_forward",)


@pytest.mark.parametrize("shape", [(3, 37, 20), (1, 1, 1), (2, 300, 256), (2, 0, 8), (0, 4, 4)])
def test_values_and_gradients(backend, randn, shape):
    x, weight = randn(*shape, grad=True), randn(*shape, seed=1)
    got = normalize_layers(x)
    wanted = [Normalize()(rows) for rows in x]
    assert [y.shape for y in got] == [shape[1:]] * shape[0]
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)
    if shape[0]:
        grads = [
            torch.autograd.grad(sum((y * w).sum() for y, w in zip(layers, weight, strict=True)), x)[0]
            for layers in (got, wanted)
        ]
        torch.testing.assert_close(*grads)


def test_float32_and_small_rows(backend, randn, assert_as_good_as_naive):
    """Projections are as small as 3e-5 at CUT's initialisation."""
    x, weight = randn(2, 50, 64, scale=1e-6), randn(2, 50, 64, seed=1)
    results = []
    for dtype, function in ((torch.float32, normalize_layers), *((d, list) for d in (torch.float32, torch.float64))):
        y = x.to(dtype).requires_grad_()
        layers = function(y) if function is normalize_layers else [Normalize()(rows) for rows in y]
        loss = sum((layer * w.to(dtype)).sum() for layer, w in zip(layers, weight, strict=True))
        results.append((torch.stack(layers), *torch.autograd.grad(loss, y)))
    for got, naive, truth in zip(*results, strict=True):
        assert_as_good_as_naive(got.detach(), naive.detach(), truth.detach())


def test_a_zero_row_and_a_layer_that_is_not_used(backend, randn):
    x = randn(2, 4, 8)
    x[0, 1] = 0
    x.requires_grad_()
    first, second = normalize_layers(x)
    assert (first[1] == 0).all()
    (grad,) = torch.autograd.grad(first.sum(), x)
    assert grad.isfinite().all() and (grad[1] == 0).all()
    second.mul_(2)  # no view: it may be written to
    torch.testing.assert_close(second, 2 * Normalize()(x[1]))


def test_second_derivatives_and_compiling(backend, randn):
    x = randn(2, 3, 5, grad=True)
    torch.autograd.gradgradcheck(lambda y: normalize_layers(y)[1], x)
    compiled = torch.compile(lambda y: normalize_layers(y)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), normalize_layers(x)[0])
