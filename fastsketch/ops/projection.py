"""Projection of all layers' patches in one kernel, where there is one; else the plain formula.

No `torch.library` operator: what a compiler or a transform looks at is the plain formula, which they know how to treat.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import Function

from fastsketch import _backend
from fastsketch.ops.eager import nothing_looks_on
from fastsketch.reference.projection import project_patches as plain_formula

KERNEL = "project_patches_forward"


def _backward_kernel(device: torch.device):
    return _backend.optional_kernel("project_patches_backward", "gather_patches_forward", device)


class ProjectPatches(Function):
    """The kernels as a differentiable function of the patches of L layers and their 4 L parameters."""

    @staticmethod
    def forward(ctx, kernel, layers: int, *tensors: Tensor) -> Tensor:
        """Keep the inputs and the hidden values."""
        projected, hidden = kernel(tensors[:layers], tensors[layers:], True)
        ctx.layers = layers
        ctx.save_for_backward(hidden, *tensors)
        return projected

    @staticmethod
    def backward(ctx, grad_projected: Tensor):
        """By the kernel; by the plain formula where a graph of the gradients is wanted."""
        hidden, *tensors = ctx.saved_tensors
        layers, needed = ctx.layers, ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            projected = plain_formula(tensors[:layers], tensors[layers:])
            wanted = [x for x, need in zip(tensors, needed, strict=True) if need]
            made = iter(torch.autograd.grad(projected, wanted, grad_projected, create_graph=True))
            return None, None, *(next(made) if need else None for need in needed)
        need = any(needed[:layers]), any(needed[layers:])
        kernel = _backward_kernel(grad_projected.device)
        made = iter(kernel(grad_projected, tensors[:layers], hidden, tensors[layers:], *need))
        computed = [need[0]] * layers + [need[1]] * (4 * layers)
        grads = [next(made) if there else None for there in computed]
        return None, None, *(grad if wanted else None for grad, wanted in zip(grads, needed, strict=True))


def project_patches(patches: Sequence[Tensor], parameters: Sequence[Tensor], check: Callable[[], None]) -> Tensor:
    """`fastsketch.reference.projection.project_patches`, by a kernel where one fits.

    `check` raises for arguments that are wrong; a kernel looks at them itself and leaves it to `check` to say so.
    """
    kernel = None
    if patches and nothing_looks_on(*patches, *parameters) and patches[0].dtype in (torch.float32, torch.float64):
        kernel = _backend.optional_kernel(KERNEL, "gather_patches_forward", patches[0].device)
    if kernel is None:
        check()
        return plain_formula(patches, parameters)
    try:
        if torch.is_grad_enabled() and any(x.requires_grad for x in (*patches, *parameters)):
            return ProjectPatches.apply(kernel, len(patches), *patches, *parameters)
        return kernel(patches, parameters, False)[0]
    except (AttributeError, RuntimeError, TypeError):
        check()
        raise
