"""fastsketch::patch_nce_forward and _backward."""

import torch
from torch import Tensor

from fastsketch import _backend
from fastsketch.reference.patch_nce import accumulation_dtype


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


def _backward(ctx, grad_loss, *_):
    if grad_loss is None:
        return (None,) * 6
    need = ctx.needs_input_grad[:2]
    grads = patch_nce_backward(grad_loss, *ctx.saved_tensors, *ctx.options, *need)
    grads = [grad if needed else None for grad, needed in zip(grads, need, strict=True)]
    return (*grads, None, None, None, None)


patch_nce_forward.register_autograd(_backward, setup_context=_setup_context)
for _device in ("cpu", "cuda"):
    patch_nce_forward.register_autocast(_device, torch.float32)
