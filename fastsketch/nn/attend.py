"""Softmax attention over values wider than queries and keys, without the matrix of all queries and keys.

The framework's flash kernels for processors want one width for all three, and it stores the matrix otherwise: 134 MB
for two 256² pictures, several times over in a step. The kernel (`csrc/cpu/attend.h`) makes rows of it as they are
needed, and again on the way back [L: Dao et al., FlashAttention, NeurIPS 2022]. With AMX there is one for bfloat16
(`csrc/cpu/attend_tiles.h`), which takes positions for rows, as they lie in channels-last features.
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
    """Of query, key and value as `attend` has them; with `rows`, of their transposes, by AMX's kernel."""

    @staticmethod
    def forward(ctx, rows: bool, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.rows, ctx.scale = rows, query.shape[2 if rows else 1] ** -0.5
        run = kernel("attend_rows_forward" if rows else "attend_forward", query.device)
        output, lse = run(query, key, value, ctx.scale)
        ctx.save_for_backward(output, lse, query, key, value)
        return output.to(query.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        if wants_formula(grad):
            plain = _plain_rows if ctx.rows else _plain
            return None, *formula.gradients(plain, ctx.saved_tensors[2:], ctx.needs_input_grad[1:], grad)
        run = kernel("attend_rows_backward" if ctx.rows else "attend_backward", grad.device)
        return None, *run(grad, *ctx.saved_tensors, ctx.scale)


def _plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # stores the matrix; differentiable again
    return value @ (query.mT @ key * query.shape[1] ** -0.5).softmax(-1).mT


def _plain_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _plain(*(widened(x).mT for x in (query, key, value))).mT.to(query.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, own_kernel: bool = True) -> Tensor:
    """`scaled_dot_product_attention` with channels first: value · softmax(queryᵀ key / √d)ᵀ.

    On a CPU it is computed in float32 where the inputs are of half precision; bfloat16 is multiplied as it is where the
    processor has AMX, with float32 logits, weights and sums: weights are rounded where they meet the values, and so are
    their gradients where they meet queries and keys.

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
    given = query, key, value
    if query.dtype == torch.bfloat16 and usable("attend_rows_forward", *given, on=own_kernel) and key.numel() > 0:
        return _Attend.apply(True, *(x.mT.contiguous() for x in given)).mT
    if usable("attend_forward", *given, on=own_kernel) and key.numel() > 0:
        return _Attend.apply(False, *(widened(x).contiguous() for x in given)).to(query.dtype)
    # One head, and the width contiguous (as it is in channels-last features): GPUs have fused kernels for nothing else.
    query, key, value = (x.mT.contiguous()[:, None] for x in given)
    chunks = [query] if torch.is_grad_enabled() else query.split(QUERY_CHUNK, dim=2)
    attended = [F.scaled_dot_product_attention(chunk, key, value) for chunk in chunks]
    return (torch.cat(attended, dim=2) if len(attended) > 1 else attended[0]).squeeze(1).mT
