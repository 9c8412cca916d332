"""fastsketch::attention_statistics_forward and _backward."""

import torch
from torch import Tensor

from fastsketch import _backend
from fastsketch.ops import formula
from fastsketch.ops.eager import is_transformed, nothing_looks_on
from fastsketch.reference import attention as plain
from fastsketch.reference.precision import accumulation_dtype


@torch.library.custom_op("fastsketch::attention_statistics_forward", mutates_args=())
def attention_statistics_forward(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Dispatch; see `fastsketch.reference.attention`."""
    kernel = _backend.kernel("attention_statistics_forward", query.device)
    return kernel(query, key, scale)


@attention_statistics_forward.register_fake
def _(query, key, scale):
    dtype = accumulation_dtype(query.dtype)
    return tuple(query.new_empty(x.shape[:2], dtype=dtype) for x in (key, query, query))


@torch.library.custom_op("fastsketch::attention_statistics_backward", mutates_args=())
def attention_statistics_backward(
    grad_received: Tensor,
    grad_entropy: Tensor,
    query: Tensor,
    key: Tensor,
    entropy: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Dispatch; see `fastsketch.reference.attention`."""
    kernel = _backend.kernel("attention_statistics_backward", query.device)
    return kernel(grad_received, grad_entropy, query, key, entropy, lse, scale)


@attention_statistics_backward.register_fake
def _(grad_received, grad_entropy, query, key, entropy, lse, scale):
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _setup_context(ctx, inputs, output):
    query, key, ctx.scale = inputs
    _, entropy, lse = output
    ctx.save_for_backward(query, key, entropy, lse)


def _backward(ctx, grad_received, grad_entropy, _):
    query, key, *_ = ctx.saved_tensors
    if torch.is_grad_enabled() and nothing_looks_on(query, key, grad_received, grad_entropy):
        run = lambda q, k: plain.attention_statistics_forward(q, k, ctx.scale)[:2]  # noqa: E731
        return *formula.gradients(run, (query, key), ctx.needs_input_grad[:2], (grad_received, grad_entropy)), None
    grads = attention_statistics_backward(grad_received, grad_entropy, *ctx.saved_tensors, ctx.scale)
    return (*grads, None)


attention_statistics_forward.register_autograd(_backward, setup_context=_setup_context)
for _device in ("cpu", "cuda"):
    attention_statistics_forward.register_autocast(_device, torch.float32)


def attention_statistics(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Received attention and entropy, by the operator, or the plain formula for a transform."""
    if not is_transformed():
        return attention_statistics_forward(query, key, scale)[:2]
    with torch.autocast(query.device.type, enabled=False):
        return plain.attention_statistics_forward(query, key, scale)[:2]
