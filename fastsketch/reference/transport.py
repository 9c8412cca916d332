"""Entropic optimal transport [L: Cuturi, NeurIPS 2013], MoNCE's weights of negatives [L: Zhan et al., CVPR 2022]."""

import torch
from torch import Tensor


def transport_plan(
    cost: Tensor,  # [B, N, M]
    epsilon: float,
    iterations: int,
) -> Tensor:  # [B, N, M]
    """exp(cost/ε), its rows and columns scaled to sum 1 by turns, from factors of 1 for the columns on."""
    # Each row's and each column's largest entry becomes 1, which the scaling absorbs: nothing overflows, no sum is 0.
    cost = cost - cost.amax(-1, keepdim=True)
    most = cost.amax(-2, keepdim=True)
    kernel = ((cost - most) / epsilon).exp_()
    right = (most.mT / epsilon).exp_()
    for _ in range(iterations):
        left = torch.bmm(kernel, right).reciprocal_()
        right = torch.bmm(kernel.mT, left).reciprocal_()
    return kernel.mul_(left).mul_(right.mT)


def transport_plan_gradient(
    grad_plan: Tensor,  # [B, N, M]
    plan: Tensor,  # [B, N, M]
    epsilon: float,
    iterations: int,
) -> Tensor:  # [B, N, M]
    """Gradient of the fixed point to the cost, by implicit differentiation.

    With G = ∂L/∂P ⊙ P, λ and μ solve λ + P μ = G 1 and Pᵀ λ + μ = Gᵀ 1; then ∂L/∂cost = (G − P ⊙ (λ 1ᵀ + 1 μᵀ)) / ε.
    """
    grad = grad_plan * plan
    of_rows, of_columns = grad.sum(2, keepdim=True), grad.sum(1)[..., None]
    columns = torch.zeros_like(of_columns)
    for _ in range(iterations):
        rows = of_rows - torch.bmm(plan, columns)
        columns = of_columns - torch.bmm(plan.mT, rows)
    return (grad - plan * (rows + columns.mT)) / epsilon
