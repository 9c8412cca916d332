"""Dual attention against its formula, written with explicit loops over matrices in float64."""

import pytest
import torch

from fastsketch.nn import DualAttention, attend
from fastsketch.nn.own_kernels import use_own_kernels


def explicit(attention: DualAttention, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One image [C, H, W]: output and map, with the N×N and C×C matrices written out."""
    flat = x.flatten(1)  # [C, N]
    q, k, v = (
        (branch.weight[:, :, 0, 0] @ flat + branch.bias[:, None])
        for branch in (attention.query, attention.key, attention.value)
    )
    logits = q.T @ k / q.shape[0] ** 0.5
    a = torch.exp(logits - logits.max(1, keepdim=True).values)
    a = a / a.sum(1, keepdim=True)
    spatial = (a @ v.T).T
    gram = flat @ flat.T
    energy = gram.max(1, keepdim=True).values - gram
    e = torch.exp(energy - energy.max(1, keepdim=True).values)
    channel = e / e.sum(1, keepdim=True) @ flat
    out = flat + attention.spatial_gain * spatial + attention.channel_gain * channel
    scores = [variation(a.mean(0).view(1, *x.shape[1:])), variation(channel.view_as(x))]
    scores = [(score - score.min()) / (score.max() - score.min()) for score in scores]
    return out.view_as(x), (scores[0] + scores[1]) / 2


def variation(values: torch.Tensor) -> torch.Tensor:
    """[C, H, W] -> [H, W]: how far each position is from the mean of its 3×3 neighbourhood, inside the picture."""
    _, height, width = values.shape
    result = values.new_empty(height, width)
    for i in range(height):
        for j in range(width):
            around = values[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].flatten(1).mean(1)
            result[i, j] = (values[:, i, j] - around).square().sum().sqrt()
    return result


@pytest.fixture
def attention() -> DualAttention:
    torch.manual_seed(0)
    attention = DualAttention(16).double()
    with torch.no_grad():
        attention.spatial_gain.fill_(0.7)
        attention.channel_gain.fill_(-0.3)
    return attention


def test_against_formula(attention):
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64)
    out, structure = attention(x, return_map=True)
    for b in range(2):
        want_out, want_map = explicit(attention, x[b])
        torch.testing.assert_close(out[b], want_out)
        # The map is computed in float32.
        torch.testing.assert_close(structure[b].double(), want_map, rtol=0, atol=1e-5)


def test_map_is_detached_in_range_and_optional(attention):
    x = torch.randn(1, 16, 4, 4, dtype=torch.float64, requires_grad=True)
    out, structure = attention(x, return_map=True)
    assert out.requires_grad and not structure.requires_grad
    assert structure.min() >= 0 and structure.max() <= 1
    assert attention(x)[1] is None


def test_starts_as_identity():
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(DualAttention(8)(x)[0], x, rtol=0, atol=0)


def test_constant_features_give_a_map_of_zeros():
    _, structure = DualAttention(8)(torch.ones(1, 8, 4, 4), return_map=True)
    assert not structure.any()


def test_the_channels_are_weighed_in_float32_under_autocast():
    """Their products are sums over all positions: rounded to half precision they would decide otherwise."""
    x = torch.randn(1, 16, 24, 24).bfloat16()
    want = DualAttention._channel_branch(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        got = DualAttention._channel_branch(x)
    assert got.dtype == torch.bfloat16
    assert (got.double() - want).norm() < 0.01 * want.norm()
    query = torch.randn(1, 2, 24 * 24).bfloat16()
    of_half = DualAttention._map(query, query, x)
    assert torch.equal(of_half, DualAttention._map(query.float(), query.float(), x.float()))


def test_chunks_without_gradients_change_nothing(attention, monkeypatch):
    x = torch.randn(1, 16, 6, 6, dtype=torch.float64)
    use_own_kernels(attention, False)
    whole = attention(x)[0]
    monkeypatch.setattr(attend, "QUERY_CHUNK", 10)
    with torch.no_grad():
        torch.testing.assert_close(attention(x)[0], whole)


def test_gains_and_branches_learn(attention):
    x = torch.randn(1, 16, 4, 4, dtype=torch.float64)
    attention(x)[0].square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in attention.parameters() if p is not attention.key.bias
    )
