"""The attention_statistics kernels in Triton's interpreter against the reference in float64."""

import math

import pytest
import torch
from torch import Tensor

from fastsketch import reference
from fastsketch import triton as kernels

pytestmark = pytest.mark.interpret

EPS = torch.finfo(torch.float32).eps
STORED = {torch.float32: 32 * EPS, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}
"""As in test_kernel_patch_nce.py; float32 twice as wide, gradients through the entropy being differences."""


def inputs(batch, queries, keys, width, dtype=torch.float32, scale=1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries)
    query, key = ((torch.randn(batch, n, width, generator=generator) * scale).to(dtype) for n in (queries, keys))
    grads = (torch.randn(batch, n, generator=generator) for n in (keys, queries))
    return query, key, *grads


def both(module, query, key, grad_received, grad_entropy, scale) -> list[Tensor]:
    received, entropy, lse = module.attention_statistics_forward(query, key, scale)
    backward = module.attention_statistics_backward(grad_received, grad_entropy, query, key, entropy, lse, scale)
    return [received, entropy, lse, *backward]


def check(query, key, grad_received, grad_entropy, scale) -> None:
    got = both(kernels, query, key, grad_received, grad_entropy, scale)
    want = both(reference, query.double(), key.double(), grad_received.double(), grad_entropy.double(), scale)
    for number, (g, w) in enumerate(zip(got, want, strict=True)):
        assert g.shape == w.shape
        assert g.dtype == (query.dtype if number > 2 else torch.float32)
        tolerance = STORED[query.dtype] if number > 2 else 16 * EPS
        size = max(w.abs().max().item(), 0.0 if number > 2 else 1.0)
        error = (g.double() - w).abs().max().item()
        assert error <= tolerance * size, f"output {number}: error {error:.3g}, allowed {tolerance * size:.3g}"


@pytest.mark.parametrize("dtype", STORED, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(
    "shape", [(2, 70, 90, 24), (1, 5, 3, 32), (1, 64, 64, 48), (1, 7, 9, 80), (1, 7, 9, 75)], ids=str
)
def test_equals_the_reference(shape, dtype):
    """Ragged, smaller than a block, exact blocks, rows wider than a tile, also ragged; queries and keys of different
    number.
    """
    check(*inputs(*shape, dtype), scale=shape[-1] ** -0.5)


@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_scale_of_any_sign(scale):
    check(*inputs(1, 20, 30, 16), scale=scale)


def test_any_strides(restrided):
    arguments = inputs(2, 9, 11, 20)
    want = both(kernels, *arguments, 0.3)
    for g, w in zip(both(kernels, *(restrided(x) for x in arguments), 0.3), want, strict=True):
        assert torch.equal(g, w)


def test_expanded_gradients():
    query, key, _, _ = inputs(2, 9, 11, 20)
    check(query, key, torch.ones(()).expand(2, 11), torch.ones(()).expand(2, 9), scale=0.3)


# Rows beside the last, which nothing reads, overflow.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2", "ignore:invalid value encountered in matmul")
def test_far_negative_rows():
    """All logits of every row about -3000: the padding of the last block is at 0, far above them."""
    query = torch.full((1, 7, 16), 15.0) + inputs(1, 7, 9, 16)[0] / 100
    got = both(kernels, query, -query, torch.ones(1, 7), torch.ones(1, 7), 1.0)
    want = both(reference, query.double(), -query.double(), torch.ones(1, 7), torch.ones(1, 7), 1.0)
    rounding = 8 * EPS * 3600
    for g, w in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(g.double(), w, rtol=rounding, atol=rounding)
    assert all(x.isfinite().all() for x in got)


def test_large_logits_and_uniform_rows():
    """A row of one certain key has entropy 0; one of equal keys log M."""
    query, key, _, _ = inputs(1, 8, 40, 16, scale=30.0)
    query[0, 0] = 0
    received, entropy, lse = kernels.attention_statistics_forward(query, key, 1.0)
    rounding = 4 * EPS * lse.abs().max().item()  # of logits of some thousands, hence of their exponentials
    assert received.sum().item() == pytest.approx(1, abs=rounding)
    got = both(kernels, query, key, torch.ones(1, 40), torch.ones(1, 8), 1.0)
    assert all(x.isfinite().all() for x in got)
    assert entropy[0, 0].item() == pytest.approx(math.log(40), rel=4 * EPS)
    assert (entropy >= -16 * EPS).all()


def test_certain_rows_stay_certain_at_logits_of_1e5():
    """The one key of each row receives all of it, to the last digits of 1 and not of the logit."""
    # Whole numbers: their products are exact in whatever order NumPy's BLAS of this processor adds them, so that the
    # passes over rows and over columns find the same logits.
    query, key = ((torch.nn.functional.normalize(x, dim=-1) * 300).round() for x in inputs(2, 9, 9, 8)[:2])
    received, entropy, _ = kernels.attention_statistics_forward(query, key, 1.0)
    exact = (query.double() @ key.double().mT).softmax(-1).mean(1)
    torch.testing.assert_close(received.double(), exact, rtol=0, atol=4 * EPS)
    assert (entropy.abs() <= 4 * EPS).all()


def test_empty_and_float64_go_to_the_reference():
    arguments = [x.double() for x in inputs(1, 5, 6, 4)]
    got, want = both(kernels, *arguments, 0.5), both(reference, *arguments, 0.5)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
