"""What a kernel must get right on a GPU before it is used there: small cases, against the reference in float64.

A case takes the module of an implementation (functions named and called as those of `fastsketch.reference`, and of
`fastsketch.triton` what networks use) and a device, and raises AssertionError where a result is wrong. The bounds tell
a broken kernel from a working one; how precise a working one is, the tests say (`tests/gpu`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from fastsketch import reference
from fastsketch.reference import features, norm, stencils

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

BOUND = {torch.float32: 5e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}
"""Error allowed of a gradient, relative to the largest: in float32 13 times, else twice what `tests/gpu` allow."""


@dataclass(frozen=True)
class Case:
    """One thing to get right, and the kernels whose work it shows."""

    name: str
    kernels: tuple[str, ...]
    check: Callable[[ModuleType, torch.device], None]


def _randn(device: torch.device, *shape: int, dtype=torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def _below(high: int, device: torch.device, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(high)).to(device)


def _close(what: str, got: Tensor, want: Tensor, bound: float) -> None:
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, should be {tuple(want.shape)}"
    assert got.isfinite().all(), f"{what}: not finite"
    error, size = (got.double() - want).abs().max().item(), want.abs().max().item()
    assert error <= bound * size, f"{what}: error {error:.3g} of {size:.3g}, allowed {bound:.1g} of it"


def _equal(what: str, got: Tensor, want: Tensor) -> None:
    assert torch.equal(got.to(want.device), want), f"{what}: not the reference's"


def patch_nce(module: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """The method's own width, and others; ragged; norms computed apart; all kinds of negatives."""
    many = (1, 1100, 64 if dtype == torch.float32 else 256)  # in half precision such wide rows have a tile of their own
    regional = [((2, 77, 45), "same_region"), (many, "other_regions")]
    for shape, negatives in [((2, 256, 256), "image"), ((1, 100, 128), "image"), *regional]:
        query, key = (_randn(device, *shape, dtype=dtype, seed=seed) for seed in (1, 2))
        region = None if negatives == "image" else _below(4, device, *shape[:2])
        grad = _randn(device, *shape[:2], seed=3)

        def both(module, q, k, grad, region=region, negatives=negatives):
            loss, *saved = module.patch_nce_forward(q, k, region, 0.07, negatives, True)
            grads = module.patch_nce_backward(grad, q, k, region, *saved, 0.07, negatives, True, True, True)
            return loss, *grads

        results = both(module, query, key, grad), both(reference, query.double(), key.double(), grad.double())
        bounds = BOUND[torch.float32], BOUND[dtype], BOUND[dtype]
        names = "loss", "query's gradient", "key's gradient"
        for what, got, want, bound in zip(names, *results, bounds, strict=True):
            _close(f"{what}, {list(shape)}, {negatives}", got, want, bound)


def attention_statistics(module: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """As many keys as queries, and more."""
    for queries, keys, width in ((1024, 1024, 32), (77, 300, 45)):
        query = _randn(device, 2, queries, width, dtype=dtype, seed=1)
        key = _randn(device, 2, keys, width, dtype=dtype, seed=2)
        grads, scale = (_randn(device, 2, keys, seed=3), _randn(device, 2, queries, seed=4)), width**-0.5

        def both(module, q, k, *grads, scale=scale):
            received, entropy, lse = module.attention_statistics_forward(q, k, scale)
            return received, entropy, *module.attention_statistics_backward(*grads, q, k, entropy, lse, scale)

        want = both(reference, query.double(), key.double(), *(g.double() for g in grads))
        names = "attention received", "entropy", "query's gradient", "key's gradient"
        bounds = *(BOUND[torch.float32],) * 2, *(2 * BOUND[dtype],) * 2
        for what, got, exact, bound in zip(names, both(module, query, key, *grads), want, bounds, strict=True):
            _close(f"{what}, {queries}×{keys}×{width}", got, exact, bound)


def gather_and_tap(
    module: ModuleType, device: torch.device, dtype: torch.dtype, bound: float | None = None, samples: int = 100
) -> None:
    """Both layouts, ragged sizes, positions that stand twice."""
    bound = BOUND[dtype] if bound is None else bound
    index = _below(37 * 41, device, 2, samples)
    index[0, 50:70] = 7
    for channels_last in (False, True):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        features = _randn(device, 2, 130, 37, 41, dtype=dtype).to(memory_format=layout)
        patches = module.gather_patches_forward(features, index)
        _equal("patches", patches, reference.gather_patches_forward(features, index))
        wide = features.double(), patches.double()
        tapped = module.tap_patches_backward(features, patches, index)
        _close("gradient of a tap", tapped, reference.tap_patches_backward(*wide, index), bound)
        assert tapped.stride() == features.stride(), "gradient of a tap: not in the features' layout"
        if add := getattr(module, "tap_patches_add_", None):
            _equal("gradient of a tap in place", add(features.clone(), patches, index), tapped)
        dense = module.gather_patches_backward(patches, index, (37, 41), channels_last)
        exact = reference.gather_patches_backward(wide[1], index, (37, 41), channels_last)
        _close("dense gradient", dense, exact, bound)


def gather_layers(module: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """More layers than a launch takes, of unlike sizes and layouts."""
    layers = [(3, (70, 70)), (16, (64, 64)), (130, (32, 32)), (5, (100,))] * 3
    features = [_randn(device, 2, channels, *size, dtype=dtype, seed=n) for n, (channels, size) in enumerate(layers)]
    features[1] = features[1].to(memory_format=torch.channels_last)
    index = [_below(100, device, 2, 300)] * len(layers)
    wanted = reference.gather_layers(features, index)
    for number, (got, want) in enumerate(zip(module.gather_layers(features, index), wanted, strict=True)):
        _equal(f"patches of layer {number}", got, want)


def place_positions(module: ModuleType, device: torch.device) -> None:
    """One image and several; grids larger and smaller than the positions', with and without borders."""
    for images in (1, 3):
        index, generator = _below(1024, device, images, 300), torch.Generator().manual_seed(images)
        uniform = torch.rand(4, 2, images, 300, generator=generator).to(device)
        arguments = (32, 32), [(70, 70), (64, 64), (32, 32), (8, 8)], [3, 0, 0, 0]
        wanted = reference.place_positions(index, *arguments, uniform)
        for number, (got, want) in enumerate(
            zip(module.place_positions(index, *arguments, uniform), wanted, strict=True)
        ):
            _equal(f"places on grid {number}", got, want)


def sample_patches(module: ModuleType, device: torch.device) -> None:
    """With regions and without, every position, more samples than are sorted at once; the reference's own choice."""
    sizes = (4, 4096, 4, 256), (3, 1000, 0, 100), (2, 64, 9, 64), (1, 20000, 5, 5000)
    for images, positions, regions, samples in sizes:
        generator = torch.Generator().manual_seed(positions)
        density, uniform = torch.rand(2, images, positions, generator=generator).unbind()
        density = density.pow(3)
        region = _below(regions, torch.device("cpu"), images, positions) if regions else None
        want = reference.sample_patches(density, region, uniform, samples, 1.5, 2.0)  # a CPU adds in a fixed order
        there = [x if x is None else x.to(device) for x in (density, region, uniform)]
        _equal(f"positions ({samples} of {positions})", module.sample_patches(*there, samples, 1.5, 2.0), want)


def instance_norm(module: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """Both layouts, also a gradient in the other one; several shares of a map; a mean that is far from zero."""
    for layout, other in (
        (torch.contiguous_format, torch.channels_last),
        (torch.channels_last, torch.contiguous_format),
    ):
        for shape, slope in (((2, 130, 9, 11), 0.2), ((1, 64, 60, 61), 0.0)):
            x = (_randn(device, *shape) + 4).to(dtype, memory_format=layout)
            exact = norm.instance_norm(x.double(), slope, 1e-5)
            z = norm.instance_norm(x.double(), 1.0, 1e-5)[0]
            # Where z is all but 0, rounding decides what the ReLU lets through.
            arriving = (_randn(device, *shape, seed=1) * (z.abs() > 1e-3)).to(dtype, memory_format=other)
            got = module.instance_norm(x, slope, 1e-5)
            names = "map", "mean", "scale"
            for what, one, want, bound in zip(names, got, exact, (BOUND[dtype], 1e-5, 1e-5), strict=True):
                _close(f"{what}, {list(shape)}", one, want, bound)
            grad = module.instance_norm_gradient(arriving, x, *got[1:], slope)
            want = norm.instance_norm_gradient(arriving.double(), x.double(), *exact[1:], slope)
            _close(f"gradient, {list(shape)}", grad, want, 2 * BOUND[dtype])


def _stencil(kind: str, run: Callable, gradient: Callable, device: torch.device, dtype: torch.dtype) -> None:
    """One of `fastsketch.reference.stencils`, in both layouts, of many channels and of few."""
    last = torch.channels_last
    for shape, layout in (((2, 70, 13, 18), torch.contiguous_format), ((2, 70, 13, 18), last), ((1, 3, 40, 9), last)):
        x = _randn(device, *shape, dtype=dtype).to(memory_format=layout)
        got = run(x)
        _close(f"{kind}, {list(shape)}", got, stencils.apply(kind, x.double()), BOUND[dtype])
        arriving = _randn(device, *got.shape, dtype=dtype, seed=1).to(memory_format=layout)
        want = stencils.gradient(kind, arriving.double(), *shape[2:])
        _close(f"gradient of {kind}, {list(shape)}", gradient(arriving, *shape[2:]), want, BOUND[dtype])


def blurs(module: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """Both."""
    _stencil("blur_downsample", module.blur_downsample, module.blur_downsample_gradient, device, dtype)
    _stencil("blur_upsample", module.blur_upsample, lambda grad, *_: module.blur_upsample_gradient(grad), device, dtype)


def padding(module: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """By reflection, of 1 and 3."""
    for border in (1, 3):
        _stencil(
            f"reflect {border}",
            lambda x, border=border: module.reflection_pad(x, border),
            lambda grad, *_, border=border: module.reflection_pad_gradient(grad, border),
            device,
            dtype,
        )


def feature_distance(module: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """Both layouts, also a target in the other one; channels in parts; a position without any feature."""
    for layout in (torch.contiguous_format, torch.channels_last):
        for shape, other in (((2, 130, 9, 11), torch.contiguous_format), ((1, 10, 40, 41), torch.channels_last)):
            one = _randn(device, *shape, dtype=dtype).relu().to(memory_format=layout)
            two = _randn(device, *shape, dtype=dtype, seed=1).relu().to(memory_format=other)
            one[:, :, 0] = 0
            wide, grad = (one.double(), two.double()), _randn(device, shape[0], seed=2)
            loss = features.feature_distance(*wide, 1e-3)
            _close(f"loss, {list(shape)}", module.feature_distance(one, two, 1e-3), loss, BOUND[torch.float32])
            want = features.feature_distance_gradient(grad.double(), *wide, 1e-3)
            got = module.feature_distance_gradient(grad, one, two, 1e-3)
            _close(f"gradient, {list(shape)}", got, want, BOUND[dtype])
            # Where there is no feature the gradient is a thousand times the others'.
            _close(f"gradient elsewhere, {list(shape)}", got[:, :, 1:], want[:, :, 1:], BOUND[dtype])


_TYPED = {
    patch_nce: ("patch_nce_forward", "patch_nce_backward"),
    attention_statistics: ("attention_statistics_forward", "attention_statistics_backward"),
    gather_and_tap: ("gather_patches_forward", "gather_patches_backward", "tap_patches_backward"),
    gather_layers: ("gather_layers",),
    instance_norm: ("instance_norm", "instance_norm_gradient"),
    feature_distance: ("feature_distance", "feature_distance_gradient"),
    blurs: ("blur_downsample", "blur_downsample_gradient", "blur_upsample", "blur_upsample_gradient"),
    padding: ("reflection_pad", "reflection_pad_gradient"),
}
_UNTYPED = {place_positions: ("place_positions",), sample_patches: ("sample_patches",)}


def _cases() -> Iterator[Case]:
    for check, kernels in _UNTYPED.items():
        yield Case(check.__name__, kernels, check)
    for dtype in DTYPES:
        for check, kernels in _TYPED.items():
            yield Case(f"{check.__name__}, {str(dtype)[6:]}", kernels, partial(check, dtype=dtype))


CASES = {case.name: case for case in _cases()}
"""All of them, by name."""


def check_case(module: ModuleType, name: str, device: torch.device) -> None:
    """Try a case of `CASES`.

    Raises:
        AssertionError: what was wrong.
    """
    CASES[name].check(module, device)
