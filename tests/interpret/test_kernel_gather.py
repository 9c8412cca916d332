"""The gather and tap kernels in Triton's interpreter against the reference, and sampling without synchronisation."""

import pytest
import torch
from torch import Tensor

from fastsketch import reference
from fastsketch import triton as kernels

pytestmark = pytest.mark.interpret

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [(2, 5, 40), (2, 70, 6, 7), (1, 3, 3, 4, 5)]  # 40 to 60 positions


def randn(*shape: int, dtype=torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def distinct(batch: int, samples: int, positions: int) -> Tensor:
    generator = torch.Generator().manual_seed(positions)
    return torch.stack([torch.randperm(positions, generator=generator)[:samples] for _ in range(batch)])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", SHAPES, ids=["1d", "2d", "3d"])
def test_gather(shape, dtype):
    features, index = randn(*shape, dtype=dtype), distinct(shape[0], 19, 40)
    got = kernels.gather_patches_forward(features, index)
    assert got.is_contiguous()
    assert torch.equal(got, reference.gather_patches_forward(features, index))


def check_layout(odd: Tensor, grad: Tensor, index: Tensor) -> None:
    """Gather, tap and tap in place in strides that the reference is not given."""
    features = odd.contiguous()
    assert torch.equal(kernels.gather_patches_forward(odd, index), reference.gather_patches_forward(features, index))
    got = kernels.tap_patches_backward(odd, grad, index)
    assert torch.equal(got, reference.tap_patches_backward(features, grad.contiguous(), index))
    assert got.stride() == torch.empty_like(odd).stride()
    if 0 not in odd.stride():  # in place every position must have a value of its own
        assert torch.equal(kernels.tap_patches_add_(odd, grad, index), got)
        assert torch.equal(odd, got)


@pytest.mark.parametrize("shape", SHAPES, ids=["1d", "2d", "3d"])
def test_any_strides(shape, restrided):
    grad = randn(shape[0], 19, shape[1])
    check_layout(restrided(randn(*shape)), restrided(grad), restrided(distinct(shape[0], 19, 40)))


@pytest.mark.parametrize("shape", SHAPES, ids=["1d", "2d", "3d"])
def test_channels_last_and_expanded(shape):
    grad, index = randn(shape[0], 19, shape[1]), distinct(1, 19, 40).expand(shape[0], -1)
    check_layout(randn(*shape).movedim(1, -1).contiguous().movedim(-1, 1), grad, index)
    check_layout(randn(*shape)[:, :1].expand(*shape), torch.ones(()).expand(grad.shape), index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("channels_last", [False, True])
def test_positions_drawn_again_add_up(dtype, channels_last):
    """A third of the entries double, one position twenty times; in order of entry, so bit for bit."""
    index = torch.randint(0, 42, (2, 60), generator=torch.Generator().manual_seed(1))
    index[0, 20:40] = 5
    grad = randn(2, 60, 9, dtype=dtype)
    dense = kernels.gather_patches_backward(grad, index, (6, 7), channels_last)
    want = reference.gather_patches_backward(grad.double(), index, (6, 7), channels_last)
    assert dense.stride() == want.stride()
    # A sum of up to 22 float32 terms, rounded once.
    tolerance = torch.finfo(dtype).eps / 2 + 22 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(dense.double(), want, rtol=tolerance, atol=1e-5 * tolerance + 22 * 1.2e-7)
    assert torch.equal(dense, kernels.gather_patches_backward(grad, index, (6, 7), channels_last))
    base = randn(2, 9, 6, 7, dtype=dtype)
    got = kernels.tap_patches_backward(base, grad, index)
    want = reference.tap_patches_backward(base.double(), grad.double(), index)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=22 * 1.2e-7)


def test_bfloat16_is_added_in_float32():
    base, index = randn(1, 9, 6, 7, dtype=torch.bfloat16), distinct(1, 20, 42)
    grad = randn(1, 20, 9, dtype=torch.bfloat16)
    got = kernels.tap_patches_backward(base, grad, index).double()
    want = reference.tap_patches_backward(base.double(), grad.double(), index)
    torch.testing.assert_close(got, want, rtol=2.0**-7, atol=0)  # the interpreter cuts off where a GPU rounds


def test_positions_outside_read_nan_and_write_nothing():
    features, index = randn(1, 4, 10), torch.tensor([[3, -1, 10, 2**40]])
    patches = kernels.gather_patches_forward(features, index)
    assert torch.equal(patches[0, 0], features[0, :, 3])
    assert patches[0, 1:].isnan().all()
    got = kernels.tap_patches_backward(features, torch.ones(1, 4, 4), index)
    features[0, :, 3] += 1
    assert torch.equal(got, features)


def test_empty_and_float64_go_to_the_reference():
    features = randn(2, 4, 10).double()
    index = distinct(2, 3, 10)
    grad = kernels.gather_patches_forward(features, index)
    want = reference.tap_patches_backward(features, grad, index)
    assert torch.equal(kernels.tap_patches_backward(features, grad, index), want)
    assert torch.equal(kernels.tap_patches_add_(features, grad, index), want)
    none = index[:, :0]
    assert kernels.gather_patches_forward(randn(2, 4, 10), none).shape == (2, 0, 4)
    assert torch.equal(kernels.tap_patches_backward(features.float(), torch.empty(2, 0, 4), none), features.float())


@pytest.mark.parametrize("region_ids", [0, 1, 4, 1024])
@pytest.mark.parametrize("samples", [1, 37, 500])
def test_sampling_chooses_what_the_reference_chooses(region_ids, samples):
    generator = torch.Generator().manual_seed(region_ids)
    density, uniform = torch.rand(3, 500, generator=generator).pow(4), torch.rand(3, 500, generator=generator)
    region = torch.randint(0, region_ids, (3, 500), generator=generator) if region_ids else None
    arguments = density, region, uniform, samples, 1.5, 2.0
    assert torch.equal(kernels.sample_patches(*arguments), reference.sample_patches(*arguments))
