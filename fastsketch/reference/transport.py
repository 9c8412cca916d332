"""Entropic optimal transport [L: Cuturi, NeurIPS 2013], MoNCE's weights of negatives [L: Zhan et al., CVPR 2022]."""

import torch
from torch import Tensor


def transport_plan(
    cost: Tensor,  # [B, N, M]
    epsilon: float,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:  # [B, N, M], [B, T, N], [B, T + 1, M]
    """exp(cost/ε), its rows and columns scaled to sum 1 by turns, from factors of 1 for the columns on.

    Returns the plan P, and what the factors of rows and columns were after each of the T iterations, the columns' at
    the start too, over what they are at the end: a_t and b_t, at most √(the dtype's largest number).
    """
    # Each row's and each column's largest entry becomes 1, which the scaling absorbs: nothing overflows, no sum is 0.
    cost = cost - cost.amax(-1, keepdim=True)
    most = cost.amax(-2, keepdim=True)
    kernel = ((cost - most) / epsilon).exp()
    left, right = [], [(most.mT / epsilon).exp()]
    for _ in range(iterations):
        left.append(torch.bmm(kernel, right[-1]).reciprocal())
        right.append(torch.bmm(kernel.mT, left[-1]).reciprocal())
    plan = kernel * left[-1] * right[-1].mT
    limit = torch.finfo(cost.dtype).max ** 0.5
    rows, columns = (torch.cat([x / all_[-1] for x in all_], 2).mT.clamp(max=limit) for all_ in (left, right))
    return plan, rows, columns


def transport_plan_gradient(
    grad_plan: Tensor,  # [B, N, M]
    plan: Tensor,  # [B, N, M]
    rows: Tensor,  # [B, T, N]
    columns: Tensor,  # [B, T + 1, M]
    epsilon: float,
) -> Tensor:  # [B, N, M]
    """Gradient to the cost, through all iterations, from the last to the first, by two products with vectors for each.

    With G = ∂L/∂P ⊙ P and the factors l_t, r_t of rows and columns, λ_t = ∂L/∂ log l_t and μ_t = ∂L/∂ log r_t are
    λ_T = G 1 − P_T μ_T, μ_T = Gᵀ 1; λ_t = −P_t μ_t, μ_{t−1} = −Q_tᵀ λ_t, where P_t = a_t ⊙ P ⊙ b_tᵀ is the plan after
    iteration t, and Q_t = a_t ⊙ P ⊙ b_{t−1}ᵀ that before its columns were scaled. Then
    ∂L/∂cost = (G − Σ_t (P_t ⊙ 1 μ_tᵀ + Q_t ⊙ λ_t 1ᵀ)) / ε.
    """
    grad = grad_plan * plan
    of_columns, of_rows = grad.sum(1), grad.sum(2)
    left, right = [], []
    for t in reversed(range(rows.shape[1])):
        right.append(columns[:, t + 1] * of_columns)
        left.append(rows[:, t])
        of_rows = of_rows - rows[:, t] * torch.bmm(plan, right[-1][..., None]).squeeze(2)
        left.append(rows[:, t] * of_rows)
        right.append(columns[:, t])
        of_columns = -columns[:, t] * torch.bmm(plan.mT, left[-1][..., None]).squeeze(2)
        of_rows = torch.zeros_like(of_rows)
    return (grad - plan * torch.bmm(torch.stack(left, 2), torch.stack(right, 1))) / epsilon
