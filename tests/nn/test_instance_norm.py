"""Instance norm and ReLU in one kernel, against the framework's operators."""

import pytest
import torch
import torch.nn.functional as F

from fastsketch.nn.instance_norm import InstanceNorm
from fastsketch.nn.own_kernels import kernel

pytestmark = pytest.mark.skipif(
    kernel("instance_norm", torch.device("cpu")) is None, reason="the C++ kernels are not built"
)

SLOPES = [0.0, 0.2, 1.0]
SHAPES = [(1, 1, 1, 2), (2, 3, 1, 7), (3, 2, 5, 5), (1, 5, 16, 33), (2, 2, 120, 131), (2, 37, 9, 11)]
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


def _run(function, x, arriving):
    x = x.detach().requires_grad_()
    out = function(x)
    return out.detach(), torch.autograd.grad(out, x, arriving)[0]


def _formula(x, slope, eps=1e-5):
    z = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + eps).sqrt()
    return torch.where(z > 0, z, slope * z)


@LAYOUTS
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient_in_float64(shape, slope, layout):
    x, arriving = torch.randn(2, *shape, dtype=torch.float64)
    x = (3 * x + 5).contiguous(memory_format=layout)
    layer = InstanceNorm(shape[1], slope)
    want = _run(lambda x: _formula(x, slope), x, arriving)
    for one, other in zip(_run(layer, x, arriving), want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
    layer.own_kernel = False
    for one, other in zip(_run(layer, x, arriving), want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_gradient_by_finite_differences():
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(InstanceNorm(2, 0.2), x)


@LAYOUTS
def test_a_mean_far_from_zero_costs_no_digits(layout):
    x, arriving = torch.randn(2, 1, 4, 200, 200)
    x = (x + 1000).contiguous(memory_format=layout)
    truth = _run(lambda x: _formula(x, 1.0), x.double(), arriving.double())
    for got, want in zip(_run(InstanceNorm(4, 1.0), x, arriving), truth, strict=True):
        assert (got - want).abs().max() < 2e-4  # a unit in the last place of 1000 is 6e-5

    layer = InstanceNorm(4, 1.0)
    layer.own_kernel = False
    framework = _run(layer, x, arriving)
    for got, other, want in zip(_run(InstanceNorm(4, 1.0), x, arriving), framework, truth, strict=True):
        assert (got - want).square().mean() <= 1.5**2 * (other - want).square().mean() + 1e-16


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("slope", SLOPES)
def test_half_precision_is_rounded_once(dtype, slope, layout):
    x, arriving = torch.randn(2, 2, 21, 30, 37).to(dtype)
    x = x.contiguous(memory_format=layout)
    truth = _run(lambda x: _formula(x, slope), x.double(), arriving.double())
    for got, want in zip(_run(InstanceNorm(21, slope), x, arriving), truth, strict=True):
        assert got.dtype == dtype
        assert ((got.double() - want).abs() <= 0.51 * torch.finfo(dtype).eps * want.abs() + 1e-5).all()


@LAYOUTS
def test_broken_values_stay_visible_in_their_own_map(layout):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 3, 20, 20).to(dtype, memory_format=layout)
        x[0, 1, 3, 4] = float("nan")
        x[1, 2, 0, 0] = float("inf")
        bad = InstanceNorm(3, 0.0)(x).isnan().all(3).all(2)
        assert bad.tolist() == [[False, True, False], [False, False, True]]


@LAYOUTS
def test_a_variance_out_of_range_is_broken_and_no_map_of_zeros(layout):
    x = torch.randn(1, 2, 6, 6).contiguous(memory_format=layout)
    x[0, 1] *= 1e25
    assert InstanceNorm(2)(x).isnan().flatten(2).all(2).tolist() == [[False, True]]


def test_behind_a_relu_a_broken_gradient_stops():
    """Where the output is 0: in a vector, and behind the last whole one."""
    x, arriving = torch.rand(1, 1, 5, 7) + 1, torch.randn(1, 1, 5, 7)
    for place in (3, 34):
        x.view(-1)[place], arriving.view(-1)[place] = -1, float("inf")
    assert all(values.isfinite().all() for values in _run(InstanceNorm(1, 0.0), x, arriving))


def test_behind_a_relu_a_broken_gradient_stops_in_channels_last_maps():
    x, arriving = torch.rand(2, 1, 20, 5, 7) + 1
    x[0, :, 2, 3], arriving[0, :, 2, 3] = -1, float("inf")
    layer = InstanceNorm(20, 0.0)
    got = _run(layer, x.contiguous(memory_format=torch.channels_last), arriving)
    assert all(values.isfinite().all() for values in got)


def test_results_have_the_layout_of_the_map_whatever_that_of_the_gradient():
    layer, (x, arriving) = InstanceNorm(5, 0.2), torch.randn(2, 2, 5, 30, 31)
    last = x.contiguous(memory_format=torch.channels_last)
    want = _run(layer, x, arriving)
    for given in (arriving, arriving.contiguous(memory_format=torch.channels_last)):
        for got, other in zip(_run(layer, last, given), want, strict=True):
            assert got.is_contiguous(memory_format=torch.channels_last) and not got.is_contiguous()
            torch.testing.assert_close(got, other, rtol=1e-5, atol=1e-6)
        assert all(got.is_contiguous() for got in _run(layer, x, given))


def test_channels_last_results_do_not_depend_on_the_threads():
    layer, (x, arriving) = InstanceNorm(24, 0.0), torch.randn(2, 2, 24, 70, 70)
    x, before = x.contiguous(memory_format=torch.channels_last), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_run(layer, x, arriving))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_any_strides_and_constant_maps():
    layer, x = InstanceNorm(4, 0.0), torch.randn(2, 8, 12, 10).to(memory_format=torch.channels_last)[:, ::2, 1:]
    arriving = torch.randn(1, 1, 1, 1).expand(x.shape)
    want = _run(layer, x.contiguous(), arriving.contiguous())
    for one, other in zip(_run(layer, x, arriving), want, strict=True):
        assert torch.equal(one, other)
    out, gradient = _run(layer, torch.full((1, 4, 6, 6), 7.0), torch.randn(1, 4, 6, 6))
    assert not out.any() and not gradient.any()
    assert layer(torch.zeros(0, 4, 6, 6)).shape == (0, 4, 6, 6)


def test_under_autocast_the_dtype_is_kept():
    x = torch.randn(1, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            assert InstanceNorm(2, 0.0)(x.to(dtype)).dtype == F.group_norm(x.to(dtype), 2).dtype == dtype


def test_a_wrong_shape_is_named():
    for shape in ((1, 3, 4, 4), (1, 2, 4), (3, 2, 1, 1), (3, 2, 0, 4)):
        with pytest.raises(ValueError, match=r"x must be \[B, 2, H, W\]"):
            InstanceNorm(2)(torch.zeros(shape))
