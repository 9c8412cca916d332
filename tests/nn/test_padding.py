"""Reflection padding: the framework's where no kernel is, and in the map's dtype."""

import pytest
import torch
import torch.nn.functional as F

from fastsketch.nn.padding import ReflectionPad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("autocast", [False, True])
def test_values_are_moved_and_not_widened(layout, autocast):
    x = torch.randn(2, 5, 6, 7).to(torch.bfloat16, memory_format=layout).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        padded = ReflectionPad(2)(x)
    assert padded.dtype == torch.bfloat16 and padded.is_contiguous(memory_format=layout)
    assert torch.equal(padded, F.pad(x, (2, 2, 2, 2), mode="reflect"))
    arriving = torch.randn(2, 5, 10, 11).to(torch.bfloat16, memory_format=layout)
    (gradient,) = torch.autograd.grad(padded, x, arriving)
    wide = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(F.pad(wide, (2, 2, 2, 2), mode="reflect"), wide, arriving.double())
    assert gradient.dtype == torch.bfloat16 and gradient.is_contiguous(memory_format=layout)
    # Up to four bfloat16 values are added up in bfloat16, one after the other.
    torch.testing.assert_close(gradient.double(), want, rtol=4 * 2**-8, atol=4 * 2**-8)
