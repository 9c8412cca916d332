"""Projection of all layers' patches in one kernel, and their normalisation in another, where there are any; else the
plain formulas.

No `torch.library` operators: a compiler or a transform gets the plain formula, which they know how to treat.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import Function

from fastsketch import _backend
from fastsketch.ops import formula
from fastsketch.ops.eager import nothing_looks_on, wants_formula
from fastsketch.reference import projection as plain


def _gradients(
    grad: Tensor,  # [l, B, S, D]
    hidden: Tensor,  # [l, B, S, H]
    tensors: Sequence[Tensor],
    needed: Sequence[bool],
    used: Sequence[int],
) -> list[Tensor | None]:
    """Those of the l used ones among the L layers, one after the other, by the kernel; None for what is not needed."""
    layers = len(tensors) // 5
    patches, parameters = list(range(layers)), list(range(layers, len(tensors)))
    if len(used) < layers:
        patches, parameters = list(used), [layers + 4 * n + part for n in used for part in range(4)]
    need = any(needed[n] for n in patches), any(needed[n] for n in parameters)
    kernel = _backend.optional_kernel("project_patches_backward", grad.device)
    made = kernel(grad, [tensors[n] for n in patches], hidden, [tensors[n] for n in parameters], *need)
    there = (patches if need[0] else []) + (parameters if need[1] else [])
    grads: list[Tensor | None] = [None] * len(tensors)
    for n, x in zip(there, made, strict=True):
        grads[n] = x if needed[n] else None
    return grads


class ProjectPatches(Function):
    """The kernels as a differentiable function of the patches of L layers and their 4 L parameters."""

    @staticmethod
    def forward(ctx, kernel, layers: int, *tensors: Tensor) -> Tensor:
        """Keep the inputs and the hidden values."""
        projected, hidden = kernel(tensors[:layers], tensors[layers:], True)
        ctx.save_for_backward(hidden, *tensors)
        return projected

    @staticmethod
    def backward(ctx, grad: Tensor):
        """By the kernel; by the plain formula where a graph of the gradients is wanted."""
        hidden, *tensors = ctx.saved_tensors
        needed, layers = ctx.needs_input_grad[2:], len(hidden)
        if wants_formula(grad):
            run = lambda *x: plain.project_patches(x[:layers], x[layers:])  # noqa: E731
            return None, None, *formula.gradients(run, tensors, needed, grad)
        return None, None, *_gradients(grad, hidden, tensors, needed, range(layers))


class ProjectAndNormalize(Function):
    """The same with each layer normalised, and an output of its own, no view.

    A layer that no loss looks at gets no gradient, and neither do its patches and parameters.
    """

    @staticmethod
    def forward(ctx, kernel, layers: int, *tensors: Tensor):
        """Keep the inputs, the hidden and the projected values."""
        projected, hidden = kernel(tensors[:layers], tensors[layers:], True)
        ctx.save_for_backward(projected, hidden, *tensors)
        ctx.set_materialize_grads(False)
        return tuple(_backend.optional_kernel("normalize_layers", projected.device)(projected.flatten(1, 2)))

    @staticmethod
    def backward(ctx, *grads: Tensor | None):
        """By the kernels; by the plain formula where a graph of the gradients is wanted."""
        projected, hidden, *tensors = ctx.saved_tensors
        needed, layers = ctx.needs_input_grad[2:], len(grads)
        if wants_formula(*grads):
            run = lambda *x: plain.project_and_normalize(x[:layers], x[layers:])  # noqa: E731
            return None, None, *formula.gradients(run, tensors, needed, grads)
        used = [n for n, grad in enumerate(grads) if grad is not None]
        if not used:
            return None, None, *[None] * len(tensors)
        if len(used) < layers:
            projected, hidden = projected[used], hidden[used]
        kernel = _backend.optional_kernel("normalize_layers_gradient", projected.device)
        grad = kernel([grads[n] for n in used], projected.flatten(1, 2)).view_as(projected)
        return None, None, *_gradients(grad, hidden, tensors, needed, used)


def _project(patches: Sequence[Tensor], parameters: Sequence[Tensor], check: Callable[[], None], normalize: bool):
    kernel = None
    first = patches[0] if len(patches) else None
    fits = isinstance(first, Tensor) and first.dtype in (torch.float32, torch.float64)
    if fits and nothing_looks_on(*patches, *parameters):
        kernel = _backend.optional_kernel("project_patches_forward", patches[0].device)
        if normalize and _backend.optional_kernel("normalize_layers", patches[0].device) is None:
            kernel = None
    if kernel is None:
        check()
        run = plain.project_and_normalize if normalize else plain.project_patches
        with torch.autocast(patches[0].device.type if len(patches) else "cpu", enabled=False):
            return run(patches, parameters)
    try:
        if not all(weight.numel() for weight in parameters[::2]):  # a width of 0: kernels read at least one
            check()
        if torch.is_grad_enabled() and any(x.requires_grad for x in (*patches, *parameters)):
            function = ProjectAndNormalize if normalize else ProjectPatches
            return function.apply(kernel, len(patches), *patches, *parameters)
        projected = kernel(patches, parameters, False)[0]
        if not normalize:
            return projected
        return _backend.optional_kernel("normalize_layers", projected.device)(projected.flatten(1, 2))
    except (AttributeError, RuntimeError, TypeError):
        check()
        raise


def project_patches(patches: Sequence[Tensor], parameters: Sequence[Tensor], check: Callable[[], None]) -> Tensor:
    """`fastsketch.reference.projection.project_patches`, by a kernel where one fits.

    `check` raises for arguments that are wrong; a kernel looks at them itself and leaves it to `check` to say so.
    """
    return _project(patches, parameters, check, normalize=False)


def project_and_normalize(
    patches: Sequence[Tensor], parameters: Sequence[Tensor], check: Callable[[], None]
) -> list[Tensor]:
    """`fastsketch.reference.projection.project_and_normalize`, by kernels where they fit; `check` as above."""
    return list(_project(patches, parameters, check, normalize=True))
