"""Semantic relation consistency and contrast with hard negatives [L: Jung et al., CVPR 2022], written plainly."""

import torch
from torch import Tensor

from fastsketch.reference.patch_nce import inverse_norm, through_norm


def _without_diagonal(matrix: Tensor, value: float) -> Tensor:  # [B, S, S]
    return matrix.masked_fill(torch.eye(matrix.shape[1], dtype=torch.bool, device=matrix.device), value)


def _unit(x: Tensor) -> Tensor:  # [B, S, D]
    return x * inverse_norm(x)[..., None]


def _weight(products: Tensor, gamma: float) -> Tensor:  # [B, S, S]
    logits = _without_diagonal(products, -10.0) / gamma
    return (logits - logits.amax(-1, keepdim=True)).exp()


def relation_weight(key: Tensor, gamma: float) -> Tensor:  # [B, S, D] -> [B, S, S]
    """How alike two keys are: softmax_j(k_i·k_j / γ) of the rows divided by (their norm + 1e-7), −10 in place of
    k_i·k_i, divided by the largest of its row.
    """
    key = _unit(key)
    return _weight(key @ key.mT, gamma)


def semantic_relation(query: Tensor, key: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Jensen–Shannon divergence of softmax(q qᵀ) and softmax(k kᵀ), of the rows divided by (their norm + 1e-7), summed
    over each image's [B]; its gradient to `query` [B, S, D], the key being fixed; and `relation_weight` [B, S, S].
    """
    scale = inverse_norm(query)
    unit = query * scale[..., None]
    keys = _unit(key)
    products = keys @ keys.mT
    mine, theirs = (unit @ unit.mT).softmax(-1), products.softmax(-1)
    middle = (mine + theirs) / 2
    apart = (mine / middle).log()
    loss = (mine * apart + theirs * (theirs / middle).log()).sum((1, 2)) / 2
    slope = apart / 2  # ∂loss/∂softmax(q qᵀ)
    logits = mine * (slope - (mine * slope).sum(-1, keepdim=True))
    return loss, through_norm((logits + logits.mT) @ unit, query, scale), _weight(products, gamma)


def _weighted_logits(
    query: Tensor, key: Tensor, weight: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each query's positive [B, S, 1], of its negatives [B, S, S], and the log of the negatives' sum [B, S, 1]."""
    products = query @ key.mT / temperature
    positive = products.diagonal(dim1=1, dim2=2)[..., None]
    negative = _without_diagonal(products if weight is None else products * weight, -torch.inf)
    lowest = torch.full_like(positive, torch.finfo(query.dtype).min)  # without a negative: not −∞
    if query.shape[1] == 1:  # whose second derivative would be NaN
        return positive, negative, lowest
    return positive, negative, negative.logsumexp(-1, keepdim=True).maximum(lowest)


def weighted_nce_losses(
    query: Tensor,  # [B, S, D]
    key: Tensor,  # [B, S, D]
    weight: Tensor | None,  # [B, S, S]
    temperature: float,
) -> tuple[Tensor, Tensor]:  # [B, S] each
    """`patch_nce` with the image's other samples, each negative's product multiplied by its weight (None: 1); and
    decoupled, without the positive in the denominator: log Σ_{j≠i} exp((w_ij q_i·k_j − q_i·k_i) / τ) [L: Yeh et al.,
    ECCV 2022].
    """
    positive, _, spread = _weighted_logits(query, key, weight, temperature)
    return (torch.logaddexp(spread, positive) - positive)[..., 0], (spread - positive)[..., 0]


def weighted_nce(
    query: Tensor,  # [B, S, D]
    key: Tensor,  # [B, S, D]
    weight: Tensor | None,  # [B, S, S]
    temperature: float,
    decoupled: bool,
) -> tuple[Tensor, Tensor]:
    """The first of `weighted_nce_losses` [B, S], and its gradient to `query` [B, S, D] (the second's if `decoupled`);
    the key is fixed.
    """
    positive, negative, spread = _weighted_logits(query, key, weight, temperature)
    total = torch.logaddexp(spread, positive)
    probability = (negative - (spread if decoupled else total)).exp()
    pull = torch.ones_like(total) if decoupled else (spread - total).exp()
    by = probability if weight is None else probability * weight
    return (total - positive)[..., 0], (by @ key - pull * key) / temperature
