"""The cases pass what is right and catch what is wrong, each kernel in turn."""

from types import ModuleType

import pytest
import torch

from fastsketch import _backend, reference
from fastsketch.reference import features, norm, stencils
from fastsketch.trial.cases import CASES
from fastsketch.trial.verdict import kernels_of

CPU = torch.device("cpu")


def wrong_cases(module, names=()) -> dict[str, str]:
    """What each of these cases (all of them) says against a module."""
    found = {}
    for name in names or CASES:
        try:
            CASES[name].check(module, CPU)
        except AssertionError as error:
            found[name] = str(error)
    return found


NETWORKS = {
    "instance_norm": lambda x, *args: first_like(x, *norm.instance_norm(x.double(), *args)),
    "instance_norm_gradient": lambda grad, x, *args: norm.instance_norm_gradient(grad.double(), x.double(), *args),
    "feature_distance": lambda one, two, epsilon: features.feature_distance(one.double(), two.double(), epsilon),
    "feature_distance_gradient": lambda grad, one, two, epsilon: features.feature_distance_gradient(
        grad.double(), one.double(), two.double(), epsilon
    ),
    "reflection_pad": lambda x, border: stencils.apply(f"reflect {border}", x),
    "reflection_pad_gradient": lambda x, border: stencils.gradient(
        f"reflect {border}", x, *(size - 2 * border for size in x.shape[2:])
    ),
    "blur_downsample": lambda x: stencils.apply("blur_downsample", x),
    "blur_downsample_gradient": lambda x, *size: stencils.gradient("blur_downsample", x, *size),
    "blur_upsample": lambda x: stencils.apply("blur_upsample", x),
    "blur_upsample_gradient": lambda x: stencils.gradient("blur_upsample", x, *(size // 2 for size in x.shape[2:])),
}
"""What networks use, by the formulas."""


def first_like(x, first, *others):
    """Results, the first in the dtype and layout of x."""
    return torch.empty_like(x).copy_(first), *others


def spoilt(kernel: str, spoil) -> ModuleType:
    """The reference with one kernel whose last result is changed."""
    module = ModuleType("spoilt")
    right = {name: getattr(reference, name) for name in _backend.KERNELS} | NETWORKS
    vars(module).update(right)

    def run(*args):
        results = right[kernel](*args)
        last = results[-1] if isinstance(results, (tuple, list)) else results
        changed = spoil(last)
        if isinstance(results, (tuple, list)):
            return type(results)([*results[:-1], changed])
        return changed

    setattr(module, kernel, run)
    return module


def test_every_kernel_has_a_case():
    triton = pytest.importorskip("fastsketch.triton")
    with_cases = {kernel for case in CASES.values() for kernel in case.kernels}
    assert set(_backend.KERNELS) <= with_cases
    assert set(triton.__all__) - with_cases == {"tap_patches_add_"}  # which gather_and_tap tries where it is there


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
def test_what_is_right_passes(implementation):
    module, reason = _backend._load(implementation)
    assert module, reason
    names = kernels_of(_backend.IMPLEMENTATIONS[implementation]).cases
    assert len(names) >= 14
    assert wrong_cases(module, names) == {}


def test_the_formulas_pass():
    assert wrong_cases(spoilt("gather_layers", lambda x: x)) == {}


def one_entry(x):
    """One entry, the last, a hundredth of the largest off (or the next position)."""
    x = x.clone()
    x.flatten()[-1] += x.abs().max() / 100 if x.is_floating_point() else 1
    return x


def not_a_number(x):
    x = x.clone()
    if x.is_floating_point():
        x.flatten()[0] = float("nan")
    else:
        x.flatten()[0] = -1
    return x


@pytest.mark.parametrize("spoil", [one_entry, not_a_number])
@pytest.mark.parametrize("kernel", [*_backend.KERNELS, *NETWORKS])
def test_one_wrong_entry_is_found(kernel, spoil):
    found = wrong_cases(spoilt(kernel, spoil))
    assert found
    with_kernel = {name for name, case in CASES.items() if kernel in case.kernels}
    assert with_kernel & set(found)
    if "forward" not in kernel and kernel != "instance_norm":  # what these save spoils the backward's case too
        assert set(found) <= with_kernel


def test_a_wrong_shape_is_said():
    module = spoilt("patch_nce_backward", lambda grad: grad[:, :-1])
    assert "key's gradient, [2, 256, 256], image: shape (2, 255, 256)" in wrong_cases(module)["patch_nce, float32"]
