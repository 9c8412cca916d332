"""fastsketch::patch_nce_forward and _backward, and a shorter way to the same losses for eager mode.

A query's gradient is its own grad_loss times a vector that the forward pass can make while the logits are at hand:
two products where forward and recomputing backward take three. It costs [B, S, D] in memory until the backward, as much
as the query. Implementations with a kernel `patch_nce_forward_with_gradient` have it.
"""

import math

import torch
from torch import Tensor
from torch.autograd import Function

from fastsketch import _backend
from fastsketch._checks import check_values
from fastsketch.ops import formula
from fastsketch.ops.eager import are_plain, is_transformed, nothing_looks_on, wants_formula
from fastsketch.reference import patch_nce as plain
from fastsketch.reference.precision import accumulation_dtype


@torch.library.custom_op("fastsketch::patch_nce_forward", mutates_args=())
def patch_nce_forward(
    query: Tensor,
    key: Tensor,
    region: Tensor | None,
    temperature: float,
    negatives: str,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dispatch; see `fastsketch.reference.patch_nce`."""
    kernel = _backend.kernel("patch_nce_forward", query.device)
    return kernel(query, key, region, temperature, negatives, normalize)


@patch_nce_forward.register_fake
def _(query, key, region, temperature, negatives, normalize):
    per_query = query.new_empty(query.shape[:2], dtype=accumulation_dtype(query.dtype))
    scale = per_query if normalize else per_query.new_empty(0)
    return tuple(torch.empty_like(x) for x in (per_query, per_query, scale, scale))


@torch.library.custom_op("fastsketch::patch_nce_backward", mutates_args=())
def patch_nce_backward(
    grad_loss: Tensor,
    query: Tensor,
    key: Tensor,
    region: Tensor | None,
    lse: Tensor,
    query_scale: Tensor,
    key_scale: Tensor,
    temperature: float,
    negatives: str,
    normalize: bool,
    need_query: bool,
    need_key: bool,
) -> tuple[Tensor, Tensor]:
    """Dispatch; see `fastsketch.reference.patch_nce`."""
    kernel = _backend.kernel("patch_nce_backward", query.device)
    return kernel(
        grad_loss,
        query,
        key,
        region,
        lse,
        query_scale,
        key_scale,
        temperature,
        negatives,
        normalize,
        need_query,
        need_key,
    )


@patch_nce_backward.register_fake
def _(
    grad_loss,
    query,
    key,
    region,
    lse,
    query_scale,
    key_scale,
    temperature,
    negatives,
    normalize,
    need_query,
    need_key,
):
    return (
        query.new_empty(query.shape if need_query else 0),
        key.new_empty(key.shape if need_key else 0),
    )


def _setup_context(ctx, inputs, output):
    query, key, region, temperature, negatives, normalize = inputs
    _, lse, query_scale, key_scale = output
    ctx.save_for_backward(query, key, region, lse, query_scale, key_scale)
    ctx.options = (temperature, negatives, normalize)
    ctx.set_materialize_grads(False)


def _plain_gradients(grad_loss, query, key, region, options, needed):
    """Where a graph of the gradients is wanted: the S×S logits are stored."""

    def losses(query: Tensor, key: Tensor) -> Tensor:
        return plain.patch_nce_forward(query, key, region, *options)[0]

    return formula.gradients(losses, (query, key), needed, grad_loss)


def _backward(ctx, grad_loss, *_):
    if grad_loss is None:
        return (None,) * 6
    need = ctx.needs_input_grad[:2]
    query, key, region, *_ = ctx.saved_tensors
    if torch.is_grad_enabled() and nothing_looks_on(query, key, grad_loss):
        return *_plain_gradients(grad_loss, query, key, region, ctx.options, need), None, None, None, None
    grads = patch_nce_backward(grad_loss, *ctx.saved_tensors, *ctx.options, *need)
    grads = [grad if needed else None for grad, needed in zip(grads, need, strict=True)]
    return (*grads, None, None, None, None)


patch_nce_forward.register_autograd(_backward, setup_context=_setup_context)
for _device in ("cpu", "cuda"):
    patch_nce_forward.register_autocast(_device, torch.float32)


class PatchNCE(Function):
    """Losses [B, S] and, in the same pass, the queries' gradient.

    The first backward takes that gradient and scales it in place, since nothing else has seen it; a later one (of a
    retained graph) makes it anew, to the same bits.
    """

    @staticmethod
    def forward(ctx, kernel, query, key, region, temperature, negatives, normalize):
        """Keep the gradient where only this node can reach it."""
        loss, *rest, gradient = kernel(query, key, region, temperature, negatives, normalize)
        ctx.save_for_backward(query, key, region, *rest)
        ctx.gradient = gradient
        ctx.kernel, ctx.options = kernel, (temperature, negatives, normalize)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        """The query's gradient from the forward pass, the key's by recomputation."""
        query, key, region, *rest = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:3]
        if wants_formula(grad_loss):
            grads = _plain_gradients(grad_loss, query, key, region, ctx.options, needed)
            return None, *grads, None, None, None, None
        gradient, ctx.gradient = ctx.gradient, None
        grad_query = grad_key = None
        if needed[0]:
            if gradient is None:
                gradient = ctx.kernel(query, key, region, *ctx.options)[-1]
            grad_query = gradient.mul_(grad_loss[..., None]).to(query.dtype)
        if needed[1]:
            grad_key = patch_nce_backward(grad_loss, query, key, region, *rest, *ctx.options, False, True)[1]
        return None, grad_query, grad_key, None, None, None, None


def check_weight(weight: Tensor) -> None:
    """Refuse weights that are negative, infinite or NaN, where values are checked and there are any: a tracer's tensors
    have none.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not are_plain((weight,)):
        return
    if _backend.checks_values(weight):
        check_values("weight", weight.detach(), "be finite and non-negative,", lambda value: 0 <= value < math.inf)


def patch_nce_losses(
    query: Tensor,
    key: Tensor,
    region: Tensor | None,
    temperature: float,
    negatives: str,
    normalize: bool,
) -> Tensor:
    """Losses [B, S], by the shorter way where a gradient will be wanted and nothing but autograd looks at the call; by
    the plain formula for a transform.
    """
    options = (region, temperature, negatives, normalize)
    if is_transformed():
        with torch.autocast(query.device.type, enabled=False):
            return plain.patch_nce_forward(query, key, *options)[0]
    if torch.is_grad_enabled() and query.requires_grad and nothing_looks_on(query, key, region):
        kernel = _backend.optional_kernel("patch_nce_forward_with_gradient", query.device)
        if kernel is not None:
            if torch.is_autocast_enabled(query.device.type) and query.dtype != torch.float64:
                query, key = query.float(), key.float()
            return PatchNCE.apply(kernel, query, key, *options)
    return patch_nce_forward(query, key, *options)[0]
