"""MoNCE's weighted patch loss [L: Zhan et al., CVPR 2022]."""

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 50


def transport_plan(cost: Tensor, epsilon: float) -> Tensor:  # [B, S, S]
    """Entropic optimal transport of keys to queries: exp(cost/ε), scaled by turns to unit rows and columns."""
    kernel = torch.exp(cost / epsilon)
    left, right = (kernel.new_ones(kernel.shape[:2]) for _ in range(2))
    for _ in range(ITERATIONS):
        left = 1 / torch.bmm(kernel, right[..., None])[..., 0]
        right = 1 / torch.bmm(left[:, None], kernel)[:, 0]
    return left[..., None] * (kernel * right[:, None])


def loss(
    query: Tensor,  # [B, S, D]
    key: Tensor,  # [B, S, D]
    *,
    temperature: float = 0.07,
    epsilon: float = 1.0,
    weight: float = 1.0,
    hard: bool = True,
) -> Tensor:  # [B, S]
    """Cross-entropy whose negatives are weighted by the plan, through all of whose iterations the gradient goes."""
    key = key.detach()
    products = torch.bmm(query, key.mT)
    samples = query.shape[1]
    diagonal = torch.eye(samples, dtype=torch.bool, device=query.device)[None]
    cost = (products if hard else 1 - products).masked_fill(diagonal, -10.0)
    factor = transport_plan(cost, epsilon) * (samples - 1) * weight + 1e-8
    positive = (query * key).sum(-1, keepdim=True)
    negative = (products + factor.log() * temperature).masked_fill(diagonal, -10.0)
    logits = torch.cat((positive, negative), dim=-1).flatten(0, 1) / temperature
    target = torch.zeros(logits.shape[0], dtype=torch.long, device=query.device)
    return F.cross_entropy(logits, target, reduction="none").view(query.shape[:2])
