"""The blurs' kernels against the framework's convolutions."""

import copy

import pytest
import torch

from fastsketch._backend import use_backend
from fastsketch.nn.blur import BlurDownsample, BlurUpsample
from fastsketch.nn.own_kernels import kernel

pytestmark = pytest.mark.skipif(
    kernel("blur_downsample", torch.device("cpu")) is None, reason="the C++ kernels are not built"
)

BLURS = [BlurDownsample, BlurUpsample]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
SIZES = [(2, 2), (2, 3), (3, 2), (3, 3), (4, 5), (7, 4), (37, 66), (64, 131)]


def _run(blur, x, arriving=None):
    x = x.detach().requires_grad_()
    out = blur(x)
    arriving = torch.ones_like(out) if arriving is None else arriving
    return out.detach(), torch.autograd.grad(out, x, arriving)[0]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", BLURS)
def test_value_and_gradient_in_float64(kind, size, layout):
    for batch, channels in (3, 5), (1, 19):
        blur, x = kind(channels).double(), torch.randn(batch, channels, *size, dtype=torch.float64)
        x = x.to(memory_format=layout)
        arriving = torch.randn_like(blur(x))
        got = _run(blur, x, arriving)
        with use_backend("reference"):
            want = _run(blur, x, arriving)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arriving_layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", BLURS)
def test_keeps_the_layout(kind, layout, arriving_layout, dtype):
    blur, x = kind(6), torch.randn(2, 6, 9, 5).to(dtype, memory_format=layout)
    arriving = torch.randn(blur(x).shape).to(dtype)
    want = _run(blur, x, arriving.to(memory_format=layout))
    got = _run(blur, x, arriving.to(memory_format=arriving_layout))
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == dtype and one.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", BLURS)
def test_threads_change_nothing(kind, layout):
    blur, x = kind(16), torch.randn(1, 16, 120, 90).to(memory_format=layout)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs.append(_run(blur, x))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", BLURS)
def test_gradient_by_finite_differences(kind):
    blur = kind(2).double()
    assert torch.autograd.gradcheck(blur, torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", BLURS)
def test_rounded_once(kind, layout, dtype):
    """The result is that of float64, rounded to the dtype: sums are in float32, weights exact."""
    x = torch.randn(2, 33, 19, 40).to(dtype, memory_format=layout)
    arriving = torch.randn(kind(33)(x).shape).to(dtype)
    truth = _run(kind(33).double(), x.double(), arriving.double())
    for got, want in zip(_run(kind(33), x, arriving), truth, strict=True):
        assert got.dtype == dtype
        error = (got.double() - want).abs()
        unit = torch.finfo(dtype).eps
        assert (error <= (0.51 if dtype != torch.float32 else 3) * unit * want.abs() + 4e-7).all()


@pytest.mark.parametrize("kind", BLURS)
def test_any_strides_and_nothing_kept(kind):
    blur, x = kind(4), torch.randn(2, 8, 12, 10).to(memory_format=torch.channels_last)[:, ::2, 1:]
    want = _run(blur, x.contiguous())
    for one, other in zip(_run(blur, x), want, strict=True):
        assert torch.equal(one, other)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        blur(x.requires_grad_())
    assert not kept
    with pytest.raises(RuntimeError, match="input must be contiguous or channels-last"):
        torch.ops.fastsketch_C.blur_downsample(x)
    assert blur(torch.zeros(0, 4, 6, 6)).shape[0] == 0


@pytest.mark.parametrize("name", ["cpp", "reference"])
@pytest.mark.parametrize("kind", BLURS)
def test_either_way_takes_the_same_maps(kind, name):
    blur, least = kind(4), {BlurDownsample: 2, BlurUpsample: 1}[kind]
    with use_backend(name):
        for dtype in (torch.float64, torch.bfloat16):
            assert blur(torch.ones(2, 4, 6, 5, dtype=dtype)).dtype == dtype
        for shape in ((1, 8, 6, 6), (4, 6, 6), (1, 4, 6, least - 1), (1, 2, 6, 6)):
            with pytest.raises(ValueError, match=rf"x must be \[B, 4, H, W\], sides at least {least}, got"):
                blur(torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", BLURS)
def test_a_broken_value_stays_visible_and_where_it_is(kind, layout, dtype):
    x = torch.randn(2, 19, 7, 8).to(dtype, memory_format=layout)
    arriving = torch.randn(kind(19)(x).shape).to(dtype, memory_format=layout)
    for row, column in ((3, 2), (0, 0), (-1, -1)):
        broken, grad = x.clone(), arriving.clone()
        broken[1, 4, row, column] = grad[0, 17, row, column] = float("nan")
        got = _run(kind(19), broken, grad)
        with use_backend("reference"):
            want = _run(kind(19).double(), broken.double(), grad.double())
        for one, other in zip(got, want, strict=True):
            assert torch.equal(one.isnan(), other.isnan())


@pytest.mark.parametrize("kind", BLURS)
def test_only_the_binomial_kernel_is_loaded(kind):
    blur = kind(3)
    state = copy.deepcopy(blur.state_dict())
    kind(3).load_state_dict(state)
    kind(3).double().load_state_dict(state)
    state["filt"][1] *= 2
    with pytest.raises(RuntimeError, match="filt must be the binomial kernel"):
        blur.load_state_dict(state)
