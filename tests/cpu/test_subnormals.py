"""Kernels take subnormal numbers for 0, which some processors are a hundred times slower with; nobody else does."""

import platform
import subprocess
import sys

import pytest
import torch

from fastsketch.nn.attend import attend
from fastsketch.nn.own_kernels import kernel

TINY = torch.finfo(torch.float32).tiny
pytestmark = pytest.mark.skipif(
    kernel("attend_forward", torch.device("cpu")) is None or platform.machine() not in ("x86_64", "AMD64"),
    reason="the C++ kernels for x86 are not built",
)


def _gradients(scale: float, own_kernel: bool) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    given = [4 * torch.randn(1, width, 96) for width in (8, 8, 32)]
    arriving = scale * torch.randn(1, 32, 96)
    given = [x.requires_grad_() for x in given]
    return torch.autograd.grad(attend(*given, own_kernel=own_kernel), given, arriving)


def test_small_weights_times_small_gradients_are_nothing():
    for scale, exact in ((1e-30, True), (1e-37, False)):
        ours, theirs = _gradients(scale, True), _gradients(scale, False)
        assert any(((x != 0) & (x.abs() < TINY)).any() for x in theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert not ((one != 0) & (one.abs() < TINY)).any()
            if exact:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


def test_behind_a_kernel_subnormal_numbers_are_there_again():
    """On threads too that were started for the kernel, and would begin with the state of the one that starts them."""
    code = """
import torch
from fastsketch.nn.attend import attend
torch.set_num_threads(3)
given = [torch.randn(2, 8, 96).requires_grad_() for _ in range(3)]
torch.autograd.grad(attend(*given), given, torch.randn(2, 8, 96))
half = torch.full((2**20,), torch.finfo(torch.float32).tiny) / 2
assert (half > 0).all() and (half * 2 == torch.finfo(torch.float32).tiny).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
