"""Column means and row entropies of an attention matrix that is never stored (docs/method.md section 2)."""

import torch
from torch import Tensor

from fastsketch.reference.precision import accumulation_dtype

CHUNK = 256
"""Rows of the attention matrix that exist at a time."""


def attention_statistics_forward(
    query: Tensor,  # [B, N, d]
    key: Tensor,  # [B, M, d]
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(received [B, M], entropy [B, N], log-sum-exp [B, N]) of A = softmax_rows(query keyᵀ·scale):
    received_j = mean_i A_ij, entropy_i = -Σ_j A_ij log A_ij.
    """
    dtype = accumulation_dtype(query.dtype)
    q, k = query.to(dtype), key.to(dtype)
    received, entropy, lse = torch.zeros((), dtype=dtype, device=q.device), [], []
    for rows in q.split(CHUNK, dim=1):  # nothing in place: transforms of torch.func see it
        logits = rows @ k.mT * scale
        lse.append(logits.logsumexp(-1))
        log_a = logits - lse[-1][..., None]
        a = log_a.exp()
        received = received + a.sum(1)
        entropy.append(-(a * log_a).sum(-1))
    return received / q.shape[1], torch.cat(entropy, 1), torch.cat(lse, 1)


def attention_statistics_backward(
    grad_received: Tensor,  # [B, M]
    grad_entropy: Tensor,  # [B, N]
    query: Tensor,  # [B, N, d]
    key: Tensor,  # [B, M, d]
    entropy: Tensor,  # [B, N]
    lse: Tensor,  # [B, N]
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Gradients to query and key, in their dtypes.

    With Z the logits: dL/dZ_ij = A_ij·(r_j − Σ_k A_ik r_k) − h_i·A_ij·(log A_ij + entropy_i),
    r = grad_received / N, h = grad_entropy.
    """
    dtype = accumulation_dtype(query.dtype)
    q, k = query.to(dtype), key.to(dtype)
    share = grad_received.to(dtype)[:, None, :] / q.shape[1]
    grad_query, grad_key = torch.empty_like(q), torch.zeros_like(k)
    for start in range(0, q.shape[1], CHUNK):
        rows = slice(start, start + CHUNK)
        log_a = q[:, rows] @ k.mT * scale - lse[:, rows, None]
        a = log_a.exp()
        mean_share = (a * share).sum(-1, keepdim=True)
        through_entropy = grad_entropy[:, rows, None] * (log_a + entropy[:, rows, None])
        grad_logits = a * (share - mean_share - through_entropy) * scale
        grad_query[:, rows] = grad_logits @ k
        grad_key += grad_logits.mT @ q[:, rows]
    return grad_query.to(query.dtype), grad_key.to(key.dtype)
