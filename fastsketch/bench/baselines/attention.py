"""The materialised softmax, and QS-Attn's selection of queries by it [L: Hu et al., CVPR 2022]."""

import torch
from torch import Tensor


def statistics(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Column means [B, M] and row entropies [B, N] of softmax(q kᵀ/√d); q [B, N, d], k [B, M, d]."""
    log_a = torch.log_softmax(query @ key.mT * query.shape[-1] ** -0.5, -1)
    a = log_a.exp()
    return a.mean(1), -(a * log_a).sum(-1)


def select_queries(features: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """QS-Attn's global attention: (positions [B, S], their attention rows [B, S, N]) of features [B, N, C].

    All rows of softmax(F Fᵀ) are made, −log of them, the rows' entropies, a full sort; the S of lowest are kept.
    """
    attention = torch.bmm(features, features.mT).softmax(2)
    surprise = -torch.log(attention)
    surprise = torch.where(surprise.isinf(), torch.zeros_like(surprise), surprise)
    entropy = (attention * surprise).sum(2)
    index = entropy.sort(1).indices[:, :samples]
    batch = torch.arange(features.shape[0], device=features.device)[:, None]
    return index, attention[batch, index]
