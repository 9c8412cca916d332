"""The patch_nce kernels in Triton's interpreter against the reference in float64.

Known limits of the interpreter: bfloat16 is computed in float32 there (its bfloat16 dot is wrong) and cut off, not
rounded, when stored; tf32 is computed as float32.
"""

import pytest
import torch
from torch import Tensor

from fastsketch import reference
from fastsketch import triton as kernels
from fastsketch.triton import configs

pytestmark = pytest.mark.interpret

EPS = torch.finfo(torch.float32).eps
STORED = {torch.float32: 16 * EPS, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}
"""Error of a stored gradient relative to the largest: sums of 80 products; one rounding; one cut-off."""


def inputs(shape, dtype=torch.float32, scale=1.0, regional=False) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    query, key = ((torch.randn(shape, generator=generator) * scale).to(dtype) for _ in range(2))
    region = torch.randint(0, 3, shape[:2], generator=generator) if regional else None
    return query, key, region, torch.randn(shape[:2], generator=generator)


def both(module, query, key, region, grad, negatives, normalize, temperature=0.07, need=(True, True)) -> list[Tensor]:
    """Loss, log-sum-exp, scales and gradients."""
    forward = module.patch_nce_forward(query, key, region, temperature, negatives, normalize)
    saved = forward[1:]
    return [
        *forward,
        *module.patch_nce_backward(grad, query, key, region, *saved, temperature, negatives, normalize, *need),
    ]


def check(query, key, region, grad, negatives="image", normalize=False, temperature=0.07) -> None:
    got = both(kernels, query, key, region, grad, negatives, normalize, temperature)
    want = both(reference, query.double(), key.double(), region, grad.double(), negatives, normalize, temperature)
    assert got[4].dtype == got[5].dtype == query.dtype
    for number, (g, w) in enumerate(zip(got, want, strict=True)):
        assert g.shape == w.shape
        if not w.numel():
            continue
        # Losses are differences of logits, and probabilities exponentials of such: their error goes by logits' size.
        logits = max(want[1].abs().max().item(), 1.0)
        tolerance = STORED[query.dtype] + 4 * EPS * logits if number > 3 else 8 * EPS * (logits if number < 2 else 1)
        size = 1.0 if number < 2 else w.abs().max().item()
        error = (g.double() - w).abs().max().item()
        assert error <= tolerance * size, f"output {number}: error {error:.3g}, allowed {tolerance * size:.3g}"


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("negatives", kernels.patch_nce.NEGATIVES)
@pytest.mark.parametrize("dtype", STORED, ids=lambda d: str(d)[6:])
def test_equals_the_reference(dtype, negatives, normalize):
    """Ragged in samples (two blocks of 64, the second of 6) and width."""
    check(
        *inputs((1, 70, 45), dtype, 1 if normalize else 0.3, negatives != "image"),
        negatives=negatives,
        normalize=normalize,
    )


@pytest.mark.parametrize(
    "shape",
    [(3, 5, 7), (1, 1, 16), (2, 64, 32), (1, 33, 130), (1, 33, 112), (1, 9, 144), (1, 9, 272)],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_shapes(shape, dtype):
    """Several images, one sample, exact blocks, gradients in several parts; whole rows in a tile of 128 and of 256, and
    rows wider than a tile.
    """
    check(*inputs(shape, dtype), normalize=True)


def test_any_strides(restrided):
    query, key, region, grad = inputs((2, 9, 20), regional=True)
    want = both(kernels, query, key, region, grad, "same_region", True)
    odd = (restrided(x) for x in (query, key, region, grad))
    for g, w in zip(both(kernels, *odd, "same_region", True), want, strict=True):
        assert torch.equal(g, w)


def test_expanded_inputs():
    """Stride 0 along the images, and the gradient that `sum` sends: strides (0, 0)."""
    query, key, region, _ = inputs((2, 9, 20), regional=True)
    key, region = key[:1].expand(2, -1, -1), region[:1].expand(2, -1)
    check(query, key, region, torch.ones(()).expand(2, 9), "other_regions", True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=lambda d: str(d)[6:])
def test_region_dtypes(dtype):
    query, key, region, grad = inputs((1, 9, 16), regional=True)
    want = both(kernels, query, key, region, grad, "same_region", False)
    for g, w in zip(both(kernels, query, key, region.to(dtype), grad, "same_region", False), want, strict=True):
        assert torch.equal(g, w)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_query_without_negatives_gives_exactly_nothing(normalize, scale):
    query, key, _, grad = inputs((1, 6, 8), scale=scale)
    region = torch.tensor([[0, 0, 1, 2, 2, 2]])
    got = both(kernels, query, key, region, grad, "same_region", normalize)
    for of in (got[0], got[4], got[5]):
        assert (of[:, 2] == 0).all()
        assert of.isfinite().all()
    alone = both(kernels, query, key, torch.zeros_like(region), grad, "other_regions", normalize)
    assert all((alone[of] == 0).all() for of in (0, 4, 5))


def test_only_what_is_wanted_is_computed():
    arguments = *inputs((2, 9, 20)), "image", True
    *_, query, key = both(kernels, *arguments)
    *_, alone, none = both(kernels, *arguments, need=(True, False))
    assert torch.equal(alone, query)
    assert none.shape == (0,)
    *_, none, alone = both(kernels, *arguments, need=(False, True))
    assert torch.equal(alone, key)
    assert none.shape == (0,)


def test_norms_beforehand_are_the_norms_inside(monkeypatch):
    """Many samples take their norms from a launch of their own: same result, here on few."""
    arguments = inputs((2, 70, 45))
    inside = both(kernels, *arguments, "image", True)
    monkeypatch.setattr(configs, "NORMS_APART", 16)
    for g, w in zip(both(kernels, *arguments, "image", True), inside, strict=True):
        torch.testing.assert_close(g, w, rtol=8 * EPS, atol=8 * EPS * w.abs().max().item())
    check(*arguments, normalize=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_the_large_tile_of_many_samples(dtype, monkeypatch):
    monkeypatch.setattr(configs, "NORMS_APART", 16)
    query, key, *rest = inputs((1, 150, 80), dtype)
    assert configs.patch_nce_forward_tiles(query)[0].rows == 128
    check(query, key, *rest, normalize=True)


@pytest.mark.parametrize("dtype", STORED, ids=lambda d: str(d)[6:])
def test_small_norms_and_zero_vectors(dtype):
    """Norms at initialisation, 3e-5; vectors of zero, whose inverse norm is 1e7; and large ones beside them."""
    query, key, _, grad = inputs((1, 12, 32), dtype, 3e-5 / 32**0.5)
    query[0, 3], key[0, 3], key[0, 5] = 0, 0, 0
    query[0, 7], key[0, 8] = 1e4, 1e4
    got = both(kernels, query, key, None, grad * 1e-4, "image", True)
    want = both(reference, query.float(), key.float(), None, grad * 1e-4, "image", True)
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)
    for g, w in zip(got[4:], want[4:], strict=True):
        rows = w.norm(dim=-1)
        error = (g.float() - w.to(dtype).float()).norm(dim=-1)
        assert (error <= 3 * STORED[dtype] * rows + torch.finfo(dtype).smallest_normal).all()


def test_large_logits():
    """Logits up to a million: 100·100/0.01."""
    query, key, _, grad = inputs((1, 20, 16))
    query, key = (torch.nn.functional.normalize(x, dim=-1) * 100 for x in (query, key))
    got = both(kernels, query, key, None, grad, "image", False, temperature=0.01)
    want = both(reference, query.double(), key.double(), None, grad, "image", False, temperature=0.01)
    torch.testing.assert_close(got[0].double(), want[0], rtol=0, atol=8 * EPS * 1e6)
    assert all(x.isfinite().all() for x in got)


def test_repeats_bit_for_bit():
    arguments = *inputs((2, 70, 20), regional=True), "same_region", True
    for first, second in zip(both(kernels, *arguments), both(kernels, *arguments), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4)])
def test_empty_and_float64_go_to_the_reference(shape):
    for dtype in (torch.float32, torch.float64):
        query, key, _, grad = inputs(shape, dtype)
        assert [x.shape for x in both(kernels, query, key, None, grad, "image", True)[4:]] == [shape, shape]
    query, key, _, grad = inputs((1, 5, 4), torch.float64)
    got, want = (both(m, query, key, None, grad.double(), "image", True) for m in (kernels, reference))
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
