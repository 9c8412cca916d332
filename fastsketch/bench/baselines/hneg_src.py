"""Semantic relation consistency and the decoupled contrast with hard negatives [L: Jung et al., CVPR 2022]."""

import torch
import torch.nn.functional as F
from torch import Tensor


def relation(query: Tensor, key: Tensor, gamma: float) -> tuple[Tensor, Tensor]:  # [B, S, D] -> scalar, [B, S, S]
    """Divergence of the relations, and the weights of the negatives."""
    query, key = (x / (x.norm(dim=-1, keepdim=True) + 1e-7) for x in (query, key))
    mine, theirs = torch.bmm(query, query.mT), torch.bmm(key, key.mT)
    diagonal = torch.eye(key.shape[1], dtype=torch.bool, device=key.device)[None]
    weight = (theirs.masked_fill(diagonal, -10.0) / gamma).softmax(2)
    weight = weight / weight.amax(2, keepdim=True)
    mine, theirs = mine.softmax(1), theirs.softmax(1)
    middle = ((mine + theirs) / 2).log()
    loss = sum(F.kl_div(middle, x.log(), reduction="sum", log_target=True) for x in (mine, theirs)) / 2
    return loss, weight


def decoupled(query: Tensor, key: Tensor, weight: Tensor, temperature: float) -> Tensor:  # [B, S, D] -> [B·S]
    """The cross-entropy's value with the decoupled form's gradient."""
    positive = (query * key).sum(-1).flatten()[:, None]
    diagonal = torch.eye(key.shape[1], dtype=torch.bool, device=key.device)[None]
    negative = (torch.bmm(query, key.mT) * weight).masked_fill(diagonal, -10.0).flatten(0, 1)
    spread = ((negative - positive) / temperature).logsumexp(1)
    target = torch.zeros(len(negative), dtype=torch.long, device=query.device)
    value = F.cross_entropy(torch.cat((positive, negative), 1) / temperature, target, reduction="none")
    return (spread - spread.detach()).exp().mean() - 1 + value.detach()


def loss(query: Tensor, key: Tensor, *, temperature: float = 0.07, gamma: float = 1.0) -> Tensor:
    """Both, as a training step adds them up for one layer's rows of unit length."""
    key = key.detach()
    divergence, weight = relation(query, key, gamma)
    return divergence + decoupled(query, key, weight, temperature).mean()
