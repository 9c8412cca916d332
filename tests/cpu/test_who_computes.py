"""Called plainly, each operator goes the fast way: results alone would not tell, as the slow ways agree."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastsketch
from fastsketch.compat.cut import PatchSampleF
from fastsketch.nn import PatchProjection
from fastsketch.nn.attend import attend
from fastsketch.nn.blur import BlurDownsample, BlurUpsample
from fastsketch.nn.convolution import convolve
from fastsketch.nn.feature_distance import normalized_distance
from fastsketch.nn.instance_norm import InstanceNorm
from fastsketch.nn.own_kernels import use_own_kernels

pytestmark = pytest.mark.usefixtures("cpp")


def given(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def mlp() -> list[Tensor]:
    return [given(*shape) for shape in ((6, 4), (6,), (6, 6), (6,))]


INDEX = torch.tensor([[1, 5, 9]])
CASES: dict[str, Callable[[], Tensor]] = {
    "_EagerTap": lambda: fastsketch.tap_patches(given(1, 4, 4, 4) * 1, INDEX)[1],
    "GatherChain": lambda: fastsketch.gather_layers([given(1, 4, 4, 4)], [INDEX], differentiable=True)[0],
    "ProjectPatches": lambda: fastsketch.project_patches([given(1, 3, 4)], mlp()),
    "ProjectAndNormalize": lambda: fastsketch.project_and_normalize([given(1, 3, 4)], mlp())[0],
    "PatchNCE": lambda: fastsketch.patch_nce(given(1, 3, 4), given(1, 3, 4), reduction="none"),
    "_Attend": lambda: attend(given(1, 3, 4), given(1, 3, 5), given(1, 2, 5)),
    "_Downsample": lambda: BlurDownsample(2)(given(1, 2, 6, 6)),
    "_Upsample": lambda: BlurUpsample(2)(given(1, 2, 6, 6)),
    "_InstanceNorm": lambda: InstanceNorm(2)(given(1, 2, 6, 6)),
    "_Convolve": lambda: convolve(given(1, 2, 6, 6), given(2, 2, 3, 3), given(2)),
    "_Distance": lambda: normalized_distance(given(1, 2, 6, 6), torch.randn(1, 2, 6, 6)),
}


def ways(result: Tensor) -> set[str]:
    """Names of the nodes that made it."""
    names, nodes = set(), [result.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(node.name())
        nodes += [before for before, _ in node.next_functions if before is not None]
    return names


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_runs(name):
    assert f"{name}Backward" in ways(CASES[name]())
    if name in ("_EagerTap", "GatherChain"):
        return  # nodes for any implementation
    with fastsketch.use_backend("reference"):
        assert f"{name}Backward" not in ways(CASES[name]())


def test_the_modules_too():
    """With nobody's hooks on them."""
    projection = PatchProjection([4], 6)
    assert "ProjectPatchesBackward" in ways(projection([given(1, 3, 4)]))
    sample = PatchSampleF(use_mlp=True, nc=6)
    assert {"GatherChainBackward", "ProjectAndNormalizeBackward"} <= ways(sample([given(1, 4, 4, 4)], 5)[0][0])


@pytest.mark.parametrize("name", ["_Downsample", "_Upsample", "_InstanceNorm"])
def test_switched_off_it_does_not(name):
    layer = {"_Downsample": BlurDownsample(2), "_Upsample": BlurUpsample(2), "_InstanceNorm": InstanceNorm(2)}[name]
    use_own_kernels(layer, False)
    assert f"{name}Backward" not in ways(layer(given(1, 2, 6, 6)))
