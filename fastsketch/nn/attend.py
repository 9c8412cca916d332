"""Softmax attention over values wider than queries and keys, without the matrix of all queries and keys.

The framework's flash kernels for processors want one width for all three, and it stores the matrix otherwise: 134 MB
for two 256² pictures, several times over in a step. The kernel (`csrc/cpu/attend.h`) makes rows of it as they are
needed, and again on the way back [L: Dao et al., FlashAttention, NeurIPS 2022].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsketch._checks import FLOATING, check_tensor
from fastsketch.nn.own_kernels import kernel, usable
from fastsketch.ops import formula
from fastsketch.ops.eager import wants_formula
from fastsketch.reference.precision import widened

QUERY_CHUNK = 1024
"""Queries attended at a time by the framework without gradients, so that large pictures need no N×M matrix."""


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.scale = query.shape[1] ** -0.5
        output, lse = kernel("attend_forward", query.device)(query, key, value, ctx.scale)
        ctx.save_for_backward(output, lse, query, key, value)
        return output

    @staticmethod
    def backward(ctx, grad: Tensor):
        if wants_formula(grad):
            return tuple(formula.gradients(_plain, ctx.saved_tensors[2:], ctx.needs_input_grad, grad))
        return kernel("attend_backward", grad.device)(grad, *ctx.saved_tensors, ctx.scale)


def _plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # stores the matrix; differentiable again
    return value @ (query.mT @ key * query.shape[1] ** -0.5).softmax(-1).mT


def attend(query: Tensor, key: Tensor, value: Tensor, own_kernel: bool = True) -> Tensor:
    """`scaled_dot_product_attention` with channels first: value · softmax(queryᵀ key / √d)ᵀ.

    On a CPU it is computed in float32 where the inputs are of half precision.

    Args:
        query: [B, d, N], any floating dtype.
        key: [B, d, M].
        value: [B, C, M].
        own_kernel: use the C++ kernel where there is one; else it is the framework's operator.

    Returns:
        [B, C, N], of the inputs' dtype.

    Raises:
        TypeError: no tensors, or not floating.
        ValueError: shapes that do not belong together, or dtypes.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, x, FLOATING)
    shapes = [tuple(x.shape) for x in (query, key, value)]
    if (
        any(len(shape) != 3 for shape in shapes)
        or key.shape[:2] != query.shape[:2]
        or (value.shape[::2] != key.shape[::2])
    ):
        raise ValueError(f"query, key and value must be [B, d, N], [B, d, M] and [B, C, M], got {shapes}")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query, key and value must be of one dtype, got {query.dtype}, {key.dtype}, {value.dtype}")
    if usable("attend_forward", query, key, value, on=own_kernel) and key.numel() > 0:
        return _Attend.apply(*(widened(x).contiguous() for x in (query, key, value))).to(query.dtype)
    # One head, and the width contiguous (as it is in channels-last features): GPUs have fused kernels for nothing else.
    query, key, value = (x.mT.contiguous()[:, None] for x in (query, key, value))
    chunks = [query] if torch.is_grad_enabled() else query.split(QUERY_CHUNK, dim=2)
    attended = [F.scaled_dot_product_attention(chunk, key, value) for chunk in chunks]
    return (torch.cat(attended, dim=2) if len(attended) > 1 else attended[0]).squeeze(1).mT
