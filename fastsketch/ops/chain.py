"""Patches of the layers of one network, whose features go from layer to layer: no dense gradient, and no tap.

A layer whose features lead to another one of the list gets a gradient from there in any backward of everything that
the patches of all layers start: they come from one node, which gives the last layer a gradient. So the node need not
make a dense gradient for the others. It leaves the patches' gradients with a hook on the features, which adds them to
the arriving one at S positions. Features get their gradient only when every user of them has run: autograd's own rule
keeps the order.

In a backward to given inputs all gradients are dense: there a node may not run, or its gradient be taken before the
hook.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import Node

from fastsketch import _backend
from fastsketch.ops import exclusive
from fastsketch.ops.eager import nothing_looks_on
from fastsketch.ops.gather import gather_patches_backward, gather_without_gradient, tap_patches_backward
from fastsketch.reference.layout import is_channels_last

_backward_pass = torch._C._current_graph_task_id


class Addition:
    """A hook on features: adds what the same backward pass has left here to the gradient that arrives."""

    __torch_unserializable__ = True  # saving features leaves it behind, without a warning

    def __init__(self, index: Tensor) -> None:
        self.index = index
        self.left: dict[int, Tensor] = {}

    def __call__(self, grad: Tensor | None) -> Tensor | None:
        """In place where nothing else can come to see the arriving gradient."""
        left = self.left.pop(_backward_pass(), None)
        if left is None:
            return None
        if grad is None:
            raise RuntimeError(
                "features: no gradient arrived from the layers above, to which the patches' was to be added; "
                "gather each layer by itself (fastsketch.gather_patches), whose gradient is dense"
            )
        add = _backend.optional_kernel("tap_patches_add_", grad.device)
        if add is not None and exclusive.is_exclusive(grad, by_hook=True):
            return add(grad, left, self.index)
        return tap_patches_backward(grad, left, self.index)


def _leads_on(features: Sequence[Tensor]) -> list[bool]:
    """Whether each layer's features lead to those of another one, by autograd's graph."""
    wanted = {(layer.grad_fn, layer.output_nr) for layer in features if layer.grad_fn is not None}
    reached: set[tuple[Node, int]] = set()
    seen = {layer.grad_fn for layer in features if layer.grad_fn is not None}
    ahead = list(seen)
    while ahead and len(reached) < len(wanted) - 1:  # the last layer leads nowhere
        for edge in ahead.pop().next_functions:
            if edge in wanted:
                reached.add(edge)
            if edge[0] is not None and edge[0] not in seen:
                seen.add(edge[0])
                ahead.append(edge[0])
    return [(layer.grad_fn, layer.output_nr) in reached for layer in features]


class GatherChain(Function):
    """`gather_layers` with gradients: left with an `Addition`, or dense for layers without one."""

    @staticmethod
    def forward(ctx, index: Sequence[Tensor], additions: Sequence[Addition | None], leaf: Tensor, *features: Tensor):
        """Keep the positions alone, not the features. The leaf gets no gradient: it tells what a backward is for."""
        ctx.save_for_backward(*index)
        ctx.additions = additions
        ctx.layouts = [(list(layer.shape[2:]), is_channels_last(layer)) for layer in features]
        ctx.set_materialize_grads(False)
        patches = gather_without_gradient(features, index)
        ctx.mark_non_differentiable(*(p for p, layer in zip(patches, features, strict=True) if not layer.requires_grad))
        return tuple(patches)

    @staticmethod
    def _leaves(ctx, grads: Sequence[Tensor | None]) -> bool:
        """Whether every layer's node is sure to run with its hooks, in a backward of everything from all layers."""
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled() or any(n and grad is None for n, grad in zip(needed, grads, strict=True)):
            return False
        return nothing_looks_on(*grads) and torch._C._will_engine_execute_node(ctx.next_functions[0][0])

    @staticmethod
    def backward(ctx, *grads: Tensor | None):
        """Left with the additions, or dense; a layer that no loss looks at gets none."""
        made: list[Tensor | None] = []
        leaves = GatherChain._leaves(ctx, grads)
        for grad, index, addition, layout, needed in zip(
            grads, ctx.saved_tensors, ctx.additions, ctx.layouts, ctx.needs_input_grad[3:], strict=True
        ):
            if grad is None or not needed:
                made.append(None)
            elif addition is not None and leaves:
                addition.left[_backward_pass()] = grad
                made.append(None)
            else:
                made.append(gather_patches_backward(grad, index, *layout))
        return None, None, None, *made


def gather_chain(features: Sequence[Tensor], index: Sequence[Tensor]) -> list[Tensor] | None:
    """The patches of all layers, differentiably; None where something looks on that hooks would be hidden from."""
    if not nothing_looks_on(*features, *index):
        return None
    if not torch.is_grad_enabled() or not any(layer.requires_grad for layer in features):
        return gather_without_gradient([layer.detach() for layer in features], index)
    additions: list[Addition | None] = []
    for layer, i, leads_on in zip(features, index, _leads_on(features), strict=True):
        # A hook that somebody else has set comes first, and would see the gradient without the patches'.
        others = [hook for hook in (layer._backward_hooks or {}).values() if not isinstance(hook, Addition)]
        additions.append(Addition(i) if leads_on and layer.requires_grad and not others else None)
    for layer, addition in zip(features, additions, strict=True):
        if addition is not None:
            layer.register_hook(addition)
    return list(GatherChain.apply(index, additions, torch.empty(0, requires_grad=True), *features))
