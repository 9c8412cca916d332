"""Transport plans by a kernel where there is one; else by the plain formula, which compilers know how to treat."""

from torch import Tensor
from torch.autograd import Function

from fastsketch.ops import formula
from fastsketch.ops.eager import by_kernel, wants_formula
from fastsketch.reference import transport as plain

ITERATIONS = 50
"""Sinkhorn iterations, as in MoNCE."""


class TransportPlan(Function):
    """The plan [B, N, M] of a cost [B, N, M], float32 or float64.

    Its gradient is that through all iterations, as MoNCE's, without a graph of them: the factors of rows and columns
    are kept, not the matrices. A graph of the gradient is made by the plain formula.
    """

    @staticmethod
    def forward(ctx, cost: Tensor, epsilon: float) -> Tensor:
        """Keep the plan and the factors."""
        plan, rows, columns = by_kernel(plain.transport_plan, cost, epsilon, ITERATIONS)
        ctx.save_for_backward(cost, plan, rows, columns)
        ctx.epsilon = epsilon
        return plan

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Through the iterations, from the last to the first."""
        cost, *kept = ctx.saved_tensors
        if wants_formula(grad):

            def plan(cost: Tensor) -> Tensor:
                return plain.transport_plan(cost, ctx.epsilon, ITERATIONS)[0]

            return formula.gradients(plan, (cost,), (True,), grad)[0], None
        return by_kernel(plain.transport_plan_gradient, grad, *kept, ctx.epsilon), None
