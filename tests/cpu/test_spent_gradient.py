"""patch_nce's gradient of the queries, made in the forward pass and spent by the first backward."""

import pytest
import torch

from fastsketch.ops.patch_nce import patch_nce_forward, patch_nce_losses

pytestmark = pytest.mark.usefixtures("cpp")


def arguments(dtype=torch.float32, negatives="same_region", normalize=True):
    query, key = (torch.randn(2, 40, 12, dtype=torch.float64).to(dtype).requires_grad_() for _ in "qk")
    region = None if negatives == "image" else torch.randint(0, 3, (2, 40))
    return query, key, region, 0.07, negatives, normalize


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("negatives", ["image", "same_region", "other_regions"])
def test_same_as_recomputed(negatives, normalize):
    args = arguments(torch.float64, negatives, normalize)
    weight = torch.rand(2, 40)
    results = []
    for losses in (patch_nce_losses(*args), patch_nce_forward(*args)[0]):
        results.append((losses, *torch.autograd.grad((losses * weight).sum(), args[:2])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_chosen_where_a_gradient_is_wanted():
    args = arguments()
    assert "PatchNCE" in type(patch_nce_losses(*args).grad_fn).__name__
    assert "PatchNCE" not in type(patch_nce_losses(args[0].detach(), *args[1:]).grad_fn).__name__
    with torch.no_grad():
        assert patch_nce_losses(*args).grad_fn is None


def test_a_graph_of_gradients_spends_nothing():
    """They are made by the plain formula, agree with the stored gradient, and leave it for a backward to come."""
    args = arguments(torch.float64)
    losses = patch_nce_losses(*args)
    made = torch.autograd.grad(losses.sum(), args[:2], create_graph=True)
    assert all(grad.requires_grad for grad in made)
    for one, other in zip(torch.autograd.grad(losses.sum(), args[:2]), made, strict=True):
        torch.testing.assert_close(one, other.detach())


def test_backward_again_on_a_retained_graph():
    """The first backward spends the stored gradient; what a second one gets is computed anew, for its own weights."""
    args = arguments(torch.float64)
    losses = patch_nce_losses(*args)
    first = torch.autograd.grad(losses, args[:2], torch.full_like(losses, 3.0), retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(losses, args[:2], torch.ones_like(losses))
    for one, before, other in zip(first, kept, second, strict=True):
        assert torch.equal(one, before)
        torch.testing.assert_close(one, 3 * other, atol=1e-12, rtol=1e-9)


def test_autocast_takes_float32():
    query, key = (torch.randn(1, 8, 4).bfloat16().requires_grad_() for _ in "qk")
    with torch.autocast("cpu", torch.bfloat16):
        loss = patch_nce_losses(query, key, None, 0.07, "image", True)
    assert loss.dtype == torch.float32
    assert torch.autograd.grad(loss.sum(), query)[0].dtype == torch.bfloat16
