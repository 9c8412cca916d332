"""Transport plans by a kernel where there is one; else by the plain formula, which compilers know how to treat."""

from torch import Tensor
from torch.autograd import Function

from fastsketch.ops.eager import by_kernel, wants_formula
from fastsketch.reference import transport as plain

ITERATIONS = 50
"""Sinkhorn iterations, as in MoNCE; as many solve for the gradient."""


class TransportPlan(Function):
    """The plan [B, N, M] of a cost [B, N, M], float32 or float64; its gradient is that of its fixed point.

    Where the iterations have converged this is the gradient through all of them, which MoNCE takes, without a graph. A
    graph of the gradient is made by the plain formula.
    """

    @staticmethod
    def forward(ctx, cost: Tensor, epsilon: float) -> Tensor:
        """Keep the plan."""
        plan = by_kernel(plain.transport_plan, cost, epsilon, ITERATIONS)
        ctx.save_for_backward(plan)
        ctx.epsilon = epsilon
        return plan

    @staticmethod
    def backward(ctx, grad: Tensor):
        """By the iterations that solve for it."""
        (plan,) = ctx.saved_tensors
        if wants_formula(grad):
            return plain.transport_plan_gradient(grad, plan, ctx.epsilon, ITERATIONS), None
        return by_kernel(plain.transport_plan_gradient, grad, plan, ctx.epsilon, ITERATIONS), None
