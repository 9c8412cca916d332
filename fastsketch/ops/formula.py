"""Gradients of a plain formula, where a graph of them is wanted: a kernel's own cannot be differentiated again."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def transposed(formula: Callable[[Tensor], Tensor], shape: Sequence[int], grad_output: Tensor) -> Tensor:
    """The gradient of a linear formula to its input, of this shape, whose values do not matter."""
    anywhere = torch.zeros(shape, dtype=grad_output.dtype, device=grad_output.device, requires_grad=True)
    (gradient,) = gradients(formula, (anywhere,), (True,), grad_output)
    return gradient


def gradients(
    formula: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
    grad_outputs: Tensor | Sequence[Tensor | None],
) -> list[Tensor | None]:
    """To each of the needed inputs, for those of the formula's outputs that have a gradient.

    Taken at aliases of the inputs: one tensor may stand for two of them, or be made of another one.
    """
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        aliases = [x.view_as(x) if need else x for x, need in zip(inputs, needed, strict=True)]
        outputs = formula(*aliases)
    if isinstance(outputs, Tensor):
        outputs, grad_outputs = [outputs], [grad_outputs]
    used = [n for n, grad in enumerate(grad_outputs) if grad is not None]
    wanted = [x for x, need in zip(aliases, needed, strict=True) if need]
    if not used or not wanted:
        return [None] * len(inputs)
    grads = [grad_outputs[n] for n in used]
    made = torch.autograd.grad(
        [outputs[n] for n in used], wanted, grads, create_graph=torch.is_grad_enabled(), allow_unused=True
    )
    there = iter(made)
    return [next(there) if need else None for need in needed]
