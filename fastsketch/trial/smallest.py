"""The smallest Triton kernel: where it does not run, no other can, and nobody learns anything about the others."""

import torch
import triton
import triton.language as tl


@triton.jit
def ones_kernel(x, BLOCK: tl.constexpr):
    """x [BLOCK] becomes 1."""
    tl.store(x + tl.arange(0, BLOCK), 1.0)


def check(device: torch.device) -> None:
    """Run it.

    Raises:
        RuntimeError: it ran, and did nothing.
    """
    x = torch.zeros(16, device=device)
    ones_kernel[(1,)](x, BLOCK=16)
    if x.sum().item() != 16:
        raise RuntimeError("Triton's smallest kernel gives wrong numbers")
