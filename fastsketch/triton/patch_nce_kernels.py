"""The kernels of fastsketch.triton.patch_nce, which says how they work."""

import triton
import triton.language as tl

from fastsketch.reference.precision import EPSILON
from fastsketch.triton.tiles import LN_2, dot, load_rows, own_products, products, row_pointers

NEGATIVES = ("image", "same_region", "other_regions")
"""Their numbers inside the kernels: 0, 1, 2."""

_EPSILON = tl.constexpr(EPSILON)
_LN_2 = tl.constexpr(LN_2)


@triton.jit
def inverse_norms_kernel(
    query,  # [B, S, D]
    key,  # [B, S, D]
    query_scale,  # [B, S] out
    key_scale,  # [B, S] out
    samples,
    width,
    query_stride_b,
    query_stride_s,
    query_stride_d,
    key_stride_b,
    key_stride_s,
    key_stride_d,
    BLOCK_M: tl.constexpr,
):
    """1/(norm + eps) of every query and key."""
    blocks = tl.cdiv(samples, BLOCK_M)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = rows < samples
    q_rows = row_pointers(query + image * query_stride_b, rows, query_stride_s)
    k_rows = row_pointers(key + image * key_stride_b, rows, key_stride_s)
    _, q_squares, k_squares = own_products(q_rows, k_rows, valid, query_stride_d, key_stride_d, width)
    out = image * samples + rows
    tl.store(query_scale + out, 1 / (tl.sqrt_rn(q_squares) + _EPSILON), mask=valid)
    tl.store(key_scale + out, 1 / (tl.sqrt_rn(k_squares) + _EPSILON), mask=valid)


@triton.jit
def _negative(rows, columns, samples, row_region, region, region_stride, NEGATIVES: tl.constexpr):
    """Which columns are negatives of which rows, [X, Y]; the relation is symmetric."""
    negative = (rows[:, None] != columns[None, :]) & (columns < samples)[None, :]
    if NEGATIVES != 0:
        pointers = row_pointers(region, columns, region_stride)
        column_region = tl.load(pointers, mask=columns < samples, other=0)
        same = row_region[:, None] == column_region[None, :]
        negative = negative & (same if NEGATIVES == 1 else same == 0)
    return negative


@triton.jit
def forward_kernel(
    query,  # [B, S, D]
    key,  # [B, S, D]
    region,  # [B, S]
    loss,  # [B, S] out
    lse,  # [B, S] out
    query_scale,  # [B, S] out, or in if NORMS_APART
    key_scale,  # [B, S] out, or in if NORMS_APART
    samples,
    width,
    factor,  # log2(e)/τ: logits are kept in units of log 2
    query_stride_b,
    query_stride_s,
    query_stride_d,
    key_stride_b,
    key_stride_s,
    key_stride_d,
    region_stride_b,
    region_stride_s,
    NORMALIZE: tl.constexpr,
    NORMS_APART: tl.constexpr,
    NEGATIVES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Losses and log-sum-exps of BLOCK_M queries a program."""
    blocks = tl.cdiv(samples, BLOCK_M)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = rows < samples
    query += image * query_stride_b
    key += image * key_stride_b
    region += image * region_stride_b
    out = image * samples + rows
    key_scale += image * samples

    q_rows = row_pointers(query, rows, query_stride_s)
    k_rows = row_pointers(key, rows, key_stride_s)
    q = load_rows(q_rows, valid, tl.arange(0, BLOCK_K), width, query_stride_d)
    positive, q_squares, k_squares = own_products(q_rows, k_rows, valid, query_stride_d, key_stride_d, width)
    positive *= factor
    row_factor = tl.full([BLOCK_M], factor, tl.float32)
    if NORMALIZE:
        if NORMS_APART:
            q_scale = tl.load(query_scale + out, mask=valid, other=0.0)
            k_scale = tl.load(key_scale + rows, mask=valid, other=0.0)
        else:
            q_scale = 1 / (tl.sqrt_rn(q_squares) + _EPSILON)
            k_scale = 1 / (tl.sqrt_rn(k_squares) + _EPSILON)
            tl.store(query_scale + out, q_scale, mask=valid)
            tl.store(key_scale + rows, k_scale, mask=valid)
        positive *= q_scale * k_scale
        row_factor *= q_scale
    row_region = rows
    if NEGATIVES != 0:
        row_region = tl.load(row_pointers(region, rows, region_stride_s), mask=valid, other=0)

    # Online softmax, begun with the positive: the maximum is finite from the start, even without negatives.
    maximum = positive
    total = tl.full([BLOCK_M], 1.0, tl.float32)
    for start in range(0, samples, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        logits, _, squares = products(
            q,
            q_rows,
            valid,
            query_stride_d,
            row_pointers(key, columns, key_stride_s),
            columns < samples,
            key_stride_d,
            width,
            RESIDENT,
            NORMALIZE and not NORMS_APART,
            BLOCK_K,
            PRECISION,
            WIDE,
        )
        logits *= row_factor[:, None]
        if NORMALIZE:
            if NORMS_APART:
                column_scale = tl.load(key_scale + columns, mask=columns < samples, other=0.0)
            else:
                column_scale = 1 / (tl.sqrt_rn(squares) + _EPSILON)
            logits *= column_scale[None, :]
        negative = _negative(rows, columns, samples, row_region, region, region_stride_s, NEGATIVES)
        logits = tl.where(negative, logits, float("-inf"))
        larger = tl.maximum(maximum, tl.max(logits, 1))
        total = total * tl.exp2(maximum - larger) + tl.sum(tl.exp2(logits - larger[:, None]), 1)
        maximum = larger

    tl.store(loss + out, ((maximum - positive) + tl.log2(total)) * _LN_2, mask=valid)
    tl.store(lse + out, (maximum + tl.log2(total)) * _LN_2, mask=valid)


@triton.jit
def backward_kernel(
    x,  # [B, S, D]: query (OF_QUERY) or key, whose gradient this is
    y,  # [B, S, D]: the other
    region,  # [B, S]
    grad_loss,  # [B, S]
    lse,  # [B, S]
    x_scale,  # [B, S]
    y_scale,  # [B, S]
    negative_mass,  # [B, S]: Σ_{j≠i} p_ij of each query; out if OF_QUERY and STORE_MASS, in for the key
    grad,  # [B, S, D] out, contiguous
    samples,
    width,
    factor,  # log2(e)/τ
    inverse_temperature,
    x_stride_b,
    x_stride_s,
    x_stride_d,
    y_stride_b,
    y_stride_s,
    y_stride_d,
    region_stride_b,
    region_stride_s,
    grad_loss_stride_b,
    grad_loss_stride_s,
    OF_QUERY: tl.constexpr,
    STORE_GRAD: tl.constexpr,
    STORE_MASS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    NEGATIVES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    OUT_PRECISION: tl.constexpr,
    OUT_WIDE: tl.constexpr,
):
    """One gradient, BLOCK_M rows by BLOCK_OUT columns of it a program."""
    parts = 1
    if STORE_GRAD:
        parts = tl.cdiv(width, BLOCK_OUT)
    blocks = tl.cdiv(samples, BLOCK_M)
    part = tl.program_id(0) % parts
    image = (tl.program_id(0) // parts // blocks).to(tl.int64)
    rows = (tl.program_id(0) // parts % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = rows < samples
    x += image * x_stride_b
    y += image * y_stride_b
    region += image * region_stride_b
    grad_loss += image * grad_loss_stride_b
    first = image * samples
    lse += first
    x_scale += first
    y_scale += first
    out_columns = part * BLOCK_OUT + tl.arange(0, BLOCK_OUT)

    x_rows = row_pointers(x, rows, x_stride_s)
    x_tile = load_rows(x_rows, valid, tl.arange(0, BLOCK_K), width, x_stride_d)
    row_loss_grad = tl.load(row_pointers(grad_loss, rows, grad_loss_stride_s), mask=valid, other=0.0).to(tl.float32)
    row_lse = tl.load(lse + rows, mask=valid, other=0.0) / _LN_2
    row_scale = tl.full([BLOCK_M], 1.0, tl.float32)
    if NORMALIZE:
        row_scale = tl.load(x_scale + rows, mask=valid, other=0.0)
    row_region = rows
    if NEGATIVES != 0:
        row_region = tl.load(row_pointers(region, rows, region_stride_s), mask=valid, other=0)

    mass = tl.zeros([BLOCK_M], tl.float32)
    along = tl.zeros([BLOCK_M], tl.float32)  # Σ of coefficient times logit: the gradient's component along x
    total = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    for start in range(0, samples, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        inside = columns < samples
        y_rows = row_pointers(y, columns, y_stride_s)
        logits, y_tile, _ = products(
            x_tile,
            x_rows,
            valid,
            x_stride_d,
            y_rows,
            inside,
            y_stride_d,
            width,
            RESIDENT,
            False,
            BLOCK_K,
            PRECISION,
            WIDE,
        )
        column_weight = tl.full([BLOCK_N], 1.0, tl.float32)
        logits *= (row_scale * factor)[:, None]
        if NORMALIZE:
            column_scale = tl.load(y_scale + columns, mask=inside, other=0.0)
            logits *= column_scale[None, :]
            column_weight *= column_scale
        negative = _negative(rows, columns, samples, row_region, region, region_stride_s, NEGATIVES)
        if OF_QUERY:
            weights = tl.exp2(tl.where(negative, logits - row_lse[:, None], float("-inf")))
        else:
            column_lse = tl.load(lse + columns, mask=inside, other=0.0) / _LN_2
            pointers = row_pointers(grad_loss, columns, grad_loss_stride_s)
            column_loss_grad = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
            weights = tl.exp2(tl.where(negative, logits - column_lse[None, :], float("-inf")))
            weights *= column_loss_grad[None, :]
        mass += tl.sum(weights, 1)
        if NORMALIZE:
            along += tl.sum(weights * logits, 1)
        if STORE_GRAD:
            weights *= column_weight[None, :]
            if not RESIDENT or BLOCK_OUT != BLOCK_K:
                y_tile = load_rows(y_rows, inside, out_columns, width, y_stride_d)
            total += dot(weights.to(y_tile.dtype) if not OUT_WIDE else weights, y_tile, OUT_PRECISION, OUT_WIDE)

    # The diagonal's coefficient is minus the row's negative mass.
    if OF_QUERY:
        if STORE_MASS:
            # A vector of `part`: see attention_kernels.py.
            tl.store(negative_mass + first + rows, mass, mask=valid & (tl.zeros_like(rows) + part == 0))
        mass *= row_loss_grad
        along *= row_loss_grad
        total *= row_loss_grad[:, None]
    else:
        mass = tl.load(negative_mass + first + rows, mask=valid, other=0.0) * row_loss_grad
    if STORE_GRAD:
        own_rows = row_pointers(y, rows, y_stride_s)
        own_scale = tl.full([BLOCK_M], 1.0, tl.float32)
        if NORMALIZE:
            own_scale = tl.load(y_scale + rows, mask=valid, other=0.0)
        own = load_rows(own_rows, valid, out_columns, width, y_stride_d).to(tl.float32)
        total -= own * (mass * own_scale)[:, None]
        total *= (row_scale * inverse_temperature)[:, None]
        if NORMALIZE:
            # Through x·scale, scale = 1/(|x| + eps): minus x times (gradient·x)·scale²/|x|; a zero vector adds nothing.
            product, x_squares, _ = own_products(x_rows, own_rows, valid, x_stride_d, y_stride_d, width)
            along -= mass * (product * (row_scale * factor) * own_scale)
            norm = tl.sqrt_rn(x_squares)
            along = tl.where(norm > 0, along * (_LN_2 * row_scale) / tl.where(norm > 0, norm, 1.0), 0.0)
            this = load_rows(x_rows, valid, out_columns, width, x_stride_d).to(tl.float32)
            total -= this * along[:, None]
        pointers = row_pointers(grad + first * width, rows, width)
        inside = valid[:, None] & (out_columns < width)[None, :]
        tl.store(pointers[:, None] + out_columns[None, :], total.to(grad.dtype.element_ty), mask=inside)
