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

    With G = ∂L/∂P ⊙ P, λ and μ solve P1 ⊙ λ + P μ = G 1 and Pᵀ λ + Pᵀ1 ⊙ μ = Gᵀ 1; then
    ∂L/∂cost = (G − P ⊙ (λ 1ᵀ + 1 μᵀ)) / ε. The plan's own sums, P1 and Pᵀ1, are 1 where the scaling has converged;
    where it has not (ε small), ones in their place would make the iterations diverge.
    """
    grad = grad_plan * plan
    row_sums, column_sums = (plan.sum(axis, keepdim=True) for axis in (2, 1))
    row_sums, column_sums = (x.where(x > 0, 1) for x in (row_sums, column_sums.mT))
    of_rows, of_columns = grad.sum(2, keepdim=True), grad.sum(1)[..., None]
    columns = torch.zeros_like(of_columns)
    for _ in range(iterations):
        rows = (of_rows - torch.bmm(plan, columns)) / row_sums
        columns = (of_columns - torch.bmm(plan.mT, rows)) / column_sums
    return (grad - plan * (rows + columns.mT)) / epsilon
