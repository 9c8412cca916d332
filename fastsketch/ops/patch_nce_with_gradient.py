"""fastsketch::patch_nce_with_gradient: loss and the queries' gradient in one pass.

A query's gradient is its own grad_loss times a vector that the forward pass can make while the logits are at hand:
two products where forward and recomputing backward take three. It costs [B, S, D] in memory until the backward, as much
as the query. Only implementations with a kernel `patch_nce_forward_with_gradient` have it.
"""

import torch
from torch import Tensor

from fastsketch import _backend
from fastsketch.ops.exclusive import is_plain
from fastsketch.ops.patch_nce import patch_nce_backward, patch_nce_forward
from fastsketch.reference.patch_nce import accumulation_dtype

KERNEL = "patch_nce_forward_with_gradient"


@torch.library.custom_op("fastsketch::patch_nce_with_gradient", mutates_args=())
def patch_nce_with_gradient(
    query: Tensor,
    key: Tensor,
    region: Tensor | None,
    temperature: float,
    negatives: str,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The outputs of `patch_nce_forward`, and d loss_i / d query_i, [B, S, D] in the accumulation dtype."""
    kernel = _backend.optional_kernel(KERNEL, "patch_nce_forward", query.device)
    return kernel(query, key, region, temperature, negatives, normalize)


@patch_nce_with_gradient.register_fake
def _(query, key, region, temperature, negatives, normalize):
    dtype = accumulation_dtype(query.dtype)
    per_query = query.new_empty(query.shape[:2], dtype=dtype)
    scale = per_query if normalize else per_query.new_empty(0)
    return (
        *(torch.empty_like(x) for x in (per_query, per_query, scale, scale)),
        query.new_empty(query.shape).to(dtype),
    )


@torch.library.custom_op("fastsketch::patch_nce_scale_gradient", mutates_args=())
def scale_gradient(grad_loss: Tensor, gradient: Tensor, like: Tensor) -> Tensor:
    """grad_loss [B, S] times gradient [B, S, D], in the dtype of `like`. An operator, so that a second derivative
    through it, which would be wrong, is an error.
    """
    return (grad_loss[..., None] * gradient).to(like.dtype)


@scale_gradient.register_fake
def _(grad_loss, gradient, like):
    return gradient.new_empty(gradient.shape, dtype=like.dtype)


def _setup_context(ctx, inputs, output):
    query, key, region, temperature, negatives, normalize = inputs
    _, lse, query_scale, key_scale, gradient = output
    ctx.save_for_backward(query, key, region, lse, query_scale, key_scale, gradient)
    ctx.options = (temperature, negatives, normalize)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_loss, *_):
    if grad_loss is None:
        return (None,) * 6
    *saved, gradient = ctx.saved_tensors
    need_query, need_key = ctx.needs_input_grad[:2]
    grad_query = scale_gradient(grad_loss, gradient, saved[0]) if need_query else None
    grad_key = patch_nce_backward(grad_loss, *saved, *ctx.options, False, True)[1] if need_key else None
    return grad_query, grad_key, None, None, None, None


patch_nce_with_gradient.register_autograd(_backward, setup_context=_setup_context)
for _device in ("cpu", "cuda"):
    patch_nce_with_gradient.register_autocast(_device, torch.float32)


def patch_nce_losses(
    query: Tensor,
    key: Tensor,
    region: Tensor | None,
    temperature: float,
    negatives: str,
    normalize: bool,
) -> Tensor:
    """Losses [B, S], by the cheaper operator: with the gradient where one will be wanted and a kernel makes it."""
    operator = patch_nce_forward
    wanted = query.requires_grad and torch.is_grad_enabled()
    if wanted and not torch.compiler.is_compiling() and is_plain(query):
        kernel = _backend.optional_kernel(KERNEL, "patch_nce_forward", query.device)
        operator = patch_nce_forward if kernel is None else patch_nce_with_gradient
    return operator(query, key, region, temperature, negatives, normalize)[0]
