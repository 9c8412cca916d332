"""Patch contrastive loss (docs/method.md section 5) [L: Park et al., ECCV 2020], written plainly."""

import torch
from torch import Tensor

from fastsketch.reference.precision import EPSILON, accumulation_dtype


def inverse_norm(x: Tensor) -> Tensor:  # [B, S, D] -> [B, S]
    """Of each row, `EPSILON` added to the norm."""
    return 1 / (torch.linalg.vector_norm(x, dim=-1) + EPSILON)


def _kept(region: Tensor | None, negatives: str, size: int, device: torch.device) -> Tensor:
    """Which pairs (i, j) enter the denominator: the diagonal and the negatives of i. [B or 1, S, S]"""
    diagonal = torch.eye(size, dtype=torch.bool, device=device)
    if negatives == "image":
        return torch.ones_like(diagonal)[None]
    same = region[:, :, None] == region[:, None, :]
    return (same if negatives == "same_region" else ~same) | diagonal


def patch_nce_forward(
    query: Tensor,  # [B, S, D]
    key: Tensor,  # [B, S, D]
    region: Tensor | None,  # [B, S] integer
    temperature: float,
    negatives: str,  # "image" | "same_region" | "other_regions"
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, log-sum-exps and, with `normalize`, the inverse norms of query and key, each [B, S] in the
    accumulation dtype (inverse norms are [0] without `normalize`).
    """
    dtype = accumulation_dtype(query.dtype)
    q, k = query.to(dtype), key.to(dtype)
    query_scale, key_scale = q.new_empty(0), q.new_empty(0)  # two tensors: outputs must not share memory
    if normalize:
        query_scale, key_scale = inverse_norm(q), inverse_norm(k)
        q, k = q * query_scale[..., None], k * key_scale[..., None]
    logits = q @ k.mT / temperature
    kept = _kept(region, negatives, query.shape[1], query.device)
    lse = logits.masked_fill(~kept, -torch.inf).logsumexp(-1)
    loss = lse - logits.diagonal(dim1=1, dim2=2)
    return loss, lse, query_scale, key_scale


def through_norm(grad: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """Gradient of x·scale, scale = 1/(|x| + eps), to x; a zero vector's norm has gradient 0."""
    norm = torch.linalg.vector_norm(x, dim=-1)
    along = (grad * x).sum(-1) * scale.square() / norm
    along = torch.where(norm > 0, along, 0)
    return grad * scale[..., None] - x * along[..., None]


def patch_nce_backward(
    grad_loss: Tensor,  # [B, S]
    query: Tensor,  # [B, S, D]
    key: Tensor,  # [B, S, D]
    region: Tensor | None,  # [B, S]
    lse: Tensor,  # [B, S]
    query_scale: Tensor,  # [B, S] or [0]
    key_scale: Tensor,  # [B, S] or [0]
    temperature: float,
    negatives: str,
    normalize: bool,
    need_query: bool,
    need_key: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients to query and key in their dtypes; [0] where not needed."""
    dtype = accumulation_dtype(query.dtype)
    q, k = query.to(dtype), key.to(dtype)
    q_hat = q * query_scale[..., None] if normalize else q
    k_hat = k * key_scale[..., None] if normalize else k
    kept = _kept(region, negatives, query.shape[1], query.device)
    logits = q_hat @ k_hat.mT / temperature
    probability = torch.where(kept, (logits - lse[..., None]).exp(), 0)
    probability.diagonal(dim1=1, dim2=2).sub_(1)
    grad_logits = probability * (grad_loss.to(dtype) / temperature)[..., None]

    grad_query, grad_key = query.new_empty(0), key.new_empty(0)
    if need_query:
        grad_query = grad_logits @ k_hat
        if normalize:
            grad_query = through_norm(grad_query, q, query_scale)
        grad_query = grad_query.to(query.dtype)
    if need_key:
        grad_key = grad_logits.mT @ q_hat
        if normalize:
            grad_key = through_norm(grad_key, k, key_scale)
        grad_key = grad_key.to(key.dtype)
    return grad_query, grad_key
