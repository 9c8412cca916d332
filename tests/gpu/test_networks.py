"""The kernels that networks use on a GPU: each as in its trial, and in whole networks against the framework's."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fastsketch.nn import PatchDiscriminator, ResnetGenerator
from fastsketch.nn.own_kernels import kernel, use_own_kernels
from fastsketch.trial.cases import CASES, check_case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "name", [n for n in CASES if n.startswith(("instance_norm", "feature_distance", "blurs", "padding"))]
)
def test_kernel(name):
    from fastsketch import triton

    check_case(triton, name, CUDA)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_whole_networks(monkeypatch, layout, half):
    """Drawings and scores, and gradients to all weights: as near float64 as the framework's operators come."""
    monkeypatch.setenv("FASTSKETCH_BACKEND", "triton")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert kernel("reflection_pad", CUDA) is not None
    torch.manual_seed(0)
    picture = (torch.rand(2, 3, 128, 96, device=CUDA) * 2 - 1).to(memory_format=layout)
    mask = torch.ones(2, 1, 128, 96, device=CUDA)
    for network, arguments in (
        (ResnetGenerator(3, 1, 32, 5), (picture, mask)),
        (PatchDiscriminator(3, 32), (picture,)),
    ):
        network.to(CUDA, memory_format=layout)
        framework, exact = copy.deepcopy(network), copy.deepcopy(network).double()
        for other in (framework, exact):
            use_own_kernels(other, False)
        arriving = torch.randn_like(network(*arguments))

        def results(one: nn.Module, arguments=arguments, arriving=arriving, exact=exact) -> tuple[Tensor, Tensor]:
            given = [x.double() for x in arguments] if one is exact else arguments
            with torch.autocast("cuda", torch.bfloat16, enabled=half and one is not exact):
                out = one(*given)
            grads = torch.autograd.grad(out, [*one.parameters()], arriving.to(out.dtype), allow_unused=True)
            return out.double(), torch.cat([g.flatten().double() for g in grads if g is not None])

        each = results(network), results(framework), results(exact)
        for got, other, want in zip(*each, strict=True):
            assert (got - want).norm() <= 2 * (other - want).norm() + 1e-6 * want.norm()
