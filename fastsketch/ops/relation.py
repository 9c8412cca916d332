"""Semantic relation and weighted negatives by kernels where there are some; else by the plain formulas.

Gradients, which are the queries' alone, are made in the forward pass while the matrices are at hand: nothing of [S, S]
but the weights is kept. A graph of the gradients is made by the plain formulas.
"""

from torch import Tensor
from torch.autograd import Function

from fastsketch.ops import formula
from fastsketch.ops.eager import by_kernel, wants_formula
from fastsketch.reference import relation as plain


def relation_weight(key: Tensor, gamma: float) -> Tensor:
    """See `fastsketch.reference.relation`; no gradient."""
    return by_kernel(plain.relation_weight, key.detach(), gamma)


class Relation(Function):
    """Divergences [B] of query and key [B, S, D], float32 or float64, and weights [B, S, S] for γ; a gradient to the
    query alone, of the divergences alone.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        """Keep the gradient."""
        loss, gradient, weight = by_kernel(plain.semantic_relation, query, key, gamma)
        ctx.save_for_backward(query, key, gradient)
        ctx.gamma = gamma
        ctx.mark_non_differentiable(weight)
        return loss, weight

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor):
        """Scale it."""
        query, key, gradient = ctx.saved_tensors
        if wants_formula(grad):

            def losses(query: Tensor) -> Tensor:
                return plain.semantic_relation(query, key, ctx.gamma)[0]

            return *formula.gradients(losses, (query,), (True,), grad), None, None
        return gradient * grad[:, None, None], None, None


class WeightedNCE(Function):
    """Losses [B, S] of query and key [B, S, D] with weights [B, S, S] or None.

    Their gradient is their own, or `decoupled` for each of them the mean of all decoupled losses' [L: Jung et al.].
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, weight: Tensor | None, temperature: float, decoupled: bool) -> Tensor:
        """Keep the gradient."""
        loss, gradient = by_kernel(plain.weighted_nce, query, key, weight, temperature, decoupled)
        ctx.save_for_backward(query, key, weight, gradient)
        ctx.temperature, ctx.decoupled = temperature, decoupled
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Scale it."""
        query, key, weight, gradient = ctx.saved_tensors
        grad = grad.mean().expand_as(grad) if ctx.decoupled else grad
        if wants_formula(grad):

            def losses(query: Tensor) -> Tensor:
                return plain.weighted_nce_losses(query, key, weight, ctx.temperature)[ctx.decoupled]

            return *formula.gradients(losses, (query,), (True,), grad), None, None, None, None
        return gradient * grad[..., None], None, None, None, None
