"""The cases pass what is right and catch what is wrong, each kernel in turn."""

from types import ModuleType

import pytest
import torch

from fastsketch import _backend, reference
from fastsketch.trial.cases import CASES

CPU = torch.device("cpu")


def wrong_cases(module) -> dict[str, str]:
    """What each case says against a module."""
    found = {}
    for name, case in CASES.items():
        try:
            case.check(module, CPU)
        except AssertionError as error:
            found[name] = str(error)
    return found


def spoilt(kernel: str, spoil) -> ModuleType:
    """The reference with one kernel whose last result is changed."""
    module = ModuleType("spoilt")
    vars(module).update({name: getattr(reference, name) for name in _backend.KERNELS})

    def run(*args):
        results = getattr(reference, kernel)(*args)
        last = results[-1] if isinstance(results, (tuple, list)) else results
        changed = spoil(last)
        if isinstance(results, (tuple, list)):
            return type(results)([*results[:-1], changed])
        return changed

    setattr(module, kernel, run)
    return module


def test_every_kernel_has_a_case():
    assert {kernel for case in CASES.values() for kernel in case.kernels} == set(_backend.KERNELS)


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
def test_what_is_right_passes(implementation):
    module, reason = _backend._load(implementation)
    assert module, reason
    assert wrong_cases(module) == {}


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
@pytest.mark.parametrize("kernel", _backend.KERNELS)
def test_one_wrong_entry_is_found(kernel, spoil):
    found = wrong_cases(spoilt(kernel, spoil))
    assert found
    with_kernel = {name for name, case in CASES.items() if kernel in case.kernels}
    assert with_kernel & set(found)
    if "forward" not in kernel:  # what a forward saves spoils the backward's case too: they are one
        assert set(found) <= with_kernel


def test_a_wrong_shape_is_said():
    module = spoilt("patch_nce_backward", lambda grad: grad[:, :-1])
    assert "key's gradient, [2, 256, 256], image: shape (2, 255, 256)" in wrong_cases(module)["patch_nce, float32"]
