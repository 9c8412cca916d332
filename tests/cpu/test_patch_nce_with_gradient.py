"""The operator that makes the queries' gradient in the forward pass, against the one that recomputes."""

import pytest
import torch

from fastsketch.ops.patch_nce import patch_nce_forward
from fastsketch.ops.patch_nce_with_gradient import patch_nce_losses, patch_nce_with_gradient

pytestmark = pytest.mark.usefixtures("cpp")


def arguments(dtype=torch.float32, negatives="same_region", normalize=True):
    query, key = (torch.randn(2, 40, 12, dtype=torch.float64).to(dtype).requires_grad_() for _ in "qk")
    region = None if negatives == "image" else torch.randint(0, 3, (2, 40))
    return query, key, region, 0.07, negatives, normalize


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("negatives", ["image", "same_region", "other_regions"])
def test_same_as_recomputed(negatives, normalize):
    args = arguments(torch.float64, negatives, normalize)
    weight = torch.rand(2, 40, dtype=torch.float64)
    results = []
    for operator in (patch_nce_with_gradient, patch_nce_forward):
        loss = operator(*args)[0]
        results.append((loss, *torch.autograd.grad((loss * weight).sum(), args[:2])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_opcheck(dtype, normalize):
    torch.library.opcheck(patch_nce_with_gradient, arguments(dtype, normalize=normalize))
    gradient = torch.randn(2, 40, 12)
    torch.library.opcheck(
        torch.ops.fastsketch.patch_nce_scale_gradient.default,
        (torch.rand(2, 40), gradient, gradient.to(dtype)),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_chosen_where_a_gradient_is_wanted():
    args = arguments()
    assert "with_gradient" in type(patch_nce_losses(*args).grad_fn).__name__
    assert "with_gradient" not in type(patch_nce_losses(args[0].detach(), *args[1:]).grad_fn).__name__
    with torch.no_grad():
        assert patch_nce_losses(*args).grad_fn is None


def test_second_derivative_is_an_error():
    """Wrong numbers must not come out silently."""
    args = arguments()
    (grad,) = torch.autograd.grad(patch_nce_losses(*args).sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.sum().backward()


def test_backward_twice():
    args = arguments()
    loss = patch_nce_losses(*args).sum()
    first = torch.autograd.grad(loss, args[:2], retain_graph=True)
    second = torch.autograd.grad(loss, args[:2])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
