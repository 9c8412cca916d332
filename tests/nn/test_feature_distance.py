"""Distance of normalised features: the kernel against the formula."""

import pytest
import torch

from fastsketch.nn.feature_distance import normalized_distance
from fastsketch.nn.own_kernels import kernel

pytestmark = pytest.mark.skipif(
    kernel("feature_distance", torch.device("cpu")) is None, reason="the C++ kernels are not built"
)

SHAPES = [(1, 1, 1, 1), (2, 3, 1, 5), (3, 7, 8, 8), (1, 64, 9, 31), (2, 5, 16, 16), (1, 2, 60, 67), (3, 131, 3, 23)]
LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


def _formula(one, other):
    one, other = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-3) for x in (one, other))
    return (one - other).square().sum(1).mean((1, 2))


def _run(function, features, target, arriving):
    features = features.detach().requires_grad_()
    loss = function(features, target)
    return loss.detach(), torch.autograd.grad(loss, features, arriving)[0]


@LAYOUTS
@pytest.mark.parametrize("own_kernel", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient_in_float64(shape, own_kernel, layout):
    features, target = (
        (torch.randn(shape, dtype=torch.float64).relu() + 0.01).to(memory_format=layout) for _ in range(2)
    )
    arriving = torch.rand(shape[0], dtype=torch.float64)
    want = _run(_formula, features, target, arriving)
    got = _run(lambda *given: normalized_distance(*given, own_kernel), features, target, arriving)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@LAYOUTS
def test_gradient_by_finite_differences(layout):
    features, target = (torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=layout) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: normalized_distance(x, target), features.requires_grad_())


@LAYOUTS
def test_float32_is_no_further_from_float64_than_the_framework(layout):
    features, target = ((10 * torch.randn(2, 256, 40, 41).relu()).to(memory_format=layout) for _ in range(2))
    arriving = torch.ones(2)
    truth = _run(_formula, features.double(), target.double(), arriving.double())
    framework = _run(lambda *given: normalized_distance(*given, False), features, target, arriving)
    for got, other, want in zip(_run(normalized_distance, features, target, arriving), framework, truth, strict=True):
        error, allowed = ((x - want).square().mean().sqrt() for x in (got, other))
        assert error <= 1.5 * allowed + 1e-7 * want.abs().max()


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype, layout):
    features, target = ((9 * torch.randn(2, 37, 19, 6).relu()).to(dtype, memory_format=layout) for _ in range(2))
    features[0, :, 0, 0] = 0
    arriving = torch.tensor([1e7, 1e-3])  # whose gradients are in part infinite, and subnormal, in float16
    loss, gradient = _run(normalized_distance, features, target, arriving)
    wide = _run(normalized_distance, features.float(), target.float(), arriving)
    assert loss.dtype == torch.float32 and torch.equal(loss, wide[0])
    assert gradient.dtype == dtype and torch.equal(gradient, wide[1].to(dtype))
    assert dtype != torch.float16 or (gradient.isinf().any() and (gradient[1].abs() < 2**-14).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (1, 64, 1, 1), (1, 1, 6, 7), (1, 8, 1, 7)], ids=str)
def test_maps_are_taken_in_either_layout_and_the_gradient_has_the_features(shape, dtype):
    ways = [torch.contiguous_format, torch.channels_last]
    layouts = [(one, other) for one in ways for other in ways]
    features, target = torch.randn(2, *shape).to(dtype)
    arriving = torch.rand(shape[0])
    want = _run(_formula, features.double(), target.double(), arriving.double())
    for one, other in layouts:
        given = features.to(memory_format=one), target.to(memory_format=other)
        loss, gradient = _run(normalized_distance, *given, arriving)
        assert gradient.stride() == given[0].stride()
        torch.testing.assert_close(loss.double(), want[0], rtol=1e-6, atol=0)
        error = (gradient.double() - want[1]).abs()
        assert (error <= torch.finfo(dtype).eps / 2 * want[1].abs() + 1e-6 * want[1].abs().max()).all()


def test_channels_last_features_are_not_copied():
    features, target = (torch.rand(1, 64, 16, 16).bfloat16().to(memory_format=torch.channels_last) for _ in range(2))
    with torch.profiler.profile() as profile:
        _run(normalized_distance, features, target, torch.ones(1))
    assert not {"aten::copy_", "aten::contiguous", "aten::_to_copy"} & {event.key for event in profile.key_averages()}


@LAYOUTS
def test_like_features_are_at_no_distance_and_none_has_a_gradient(layout):
    features = torch.randn(2, 33, 20, 21).to(memory_format=layout)
    features[:, :, 3] = 0
    loss, gradient = _run(normalized_distance, features, features, torch.ones(2))
    assert not loss.any() and not gradient.any()
    # Nothing on one side: the distance grows with the other's direction, by 1 / ε.
    nothing = torch.zeros(1, 2, 1, 2).to(memory_format=layout)
    loss, gradient = _run(normalized_distance, nothing, nothing + 1, torch.ones(1))
    unit = 1 / (2**0.5 + 1e-3)
    torch.testing.assert_close(loss, torch.tensor([2 * unit**2]))
    torch.testing.assert_close(gradient, torch.full((1, 2, 1, 2), -unit / 1e-3))


@LAYOUTS
def test_a_broken_value_stays_visible_in_its_picture(layout):
    features, target = (torch.randn(3, 4, 9, 9).to(memory_format=layout) for _ in range(2))
    features[1, 2, 3, 4] = float("nan")
    loss, gradient = _run(normalized_distance, features, target, torch.ones(3))
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient[1, :, 3, 4].isnan().all() and gradient.isnan().sum() == 4


@LAYOUTS
def test_repeats_on_any_number_of_threads(with_threads, layout):
    features, target = (torch.randn(2, 20, 61, 57).to(memory_format=layout) for _ in range(2))
    results = with_threads(lambda: _run(normalized_distance, features, target, torch.ones(2)))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


def test_any_strides_and_any_number_of_threads(with_threads):
    features, target = (torch.randn(2, 8, 40, 30).to(memory_format=torch.channels_last)[:, ::2, 1:] for _ in range(2))
    arriving = torch.ones(1).expand(2)
    results = with_threads(lambda: _run(normalized_distance, features, target, arriving))
    results.append(_run(normalized_distance, features.contiguous(), target.contiguous(), arriving.contiguous()))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


def test_a_gradient_of_the_target_is_the_framework_s():
    features, target = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64).requires_grad_().unbind()
    assert all(x.isfinite().all() for x in torch.autograd.grad(normalized_distance(features, target).sum(), target))


def test_what_does_not_belong_together_is_named():
    features = torch.zeros(1, 2, 4, 4)
    for target in (torch.zeros(1, 2, 4, 5), features.double()):
        with pytest.raises(ValueError, match="features and target must be"):
            normalized_distance(features, target)
    with pytest.raises(ValueError, match="features and target must be"):
        normalized_distance(features[0], features[0])
    with pytest.raises(ValueError, match=r"features must have channels and positions, got \[1, 2, 0, 4\]"):
        normalized_distance(features[:, :, :0], features[:, :, :0])


def test_no_pictures_are_no_error():
    features = torch.zeros(0, 2, 4, 4, requires_grad=True)
    assert normalized_distance(features, torch.zeros(0, 2, 4, 4)).shape == (0,)
