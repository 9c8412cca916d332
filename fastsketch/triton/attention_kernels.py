"""The kernels of fastsketch.triton.attention, which says how they work.

Logits stay in natural units and are multiplied by log2(e) inside exponentials, behind their difference from a maximum
or log-sum-exp: that is exactly 0 for a row's one certain key, however large its logit. In units of log 2 the
log-sum-exp would be rounded on its way out, and again on its way in.
"""

import triton
import triton.language as tl

from fastsketch.triton.tiles import LOG2_E, dot, load_rows, products, row_pointers

_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit
def rows_kernel(
    query,  # [B, N, d]
    key,  # [B, M, d]
    entropy,  # [B, N] out
    lse,  # [B, N] out
    queries,
    keys,
    width,
    scale,
    query_stride_b,
    query_stride_s,
    query_stride_d,
    key_stride_b,
    key_stride_s,
    key_stride_d,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Entropies and log-sum-exps of BLOCK_M rows a program."""
    blocks = tl.cdiv(queries, BLOCK_M)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = rows < queries
    key += image * key_stride_b
    q_rows = row_pointers(query + image * query_stride_b, rows, query_stride_s)
    q = load_rows(q_rows, valid, tl.arange(0, BLOCK_K), width, query_stride_d)

    # H = log Σe − Σe·(z − max)/Σe with e = exp(z − max): all terms are small where the logits are large.
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    moment = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, keys, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        inside = columns < keys
        k_rows = row_pointers(key, columns, key_stride_s)
        logits, _, _ = products(
            q,
            q_rows,
            valid,
            query_stride_d,
            k_rows,
            inside,
            key_stride_d,
            width,
            RESIDENT,
            False,
            BLOCK_K,
            PRECISION,
            WIDE,
        )
        logits = tl.where(inside[None, :], logits * scale, float("-inf"))
        larger = tl.maximum(maximum, tl.max(logits, 1))
        fall = tl.where(total > 0, maximum - larger, 0.0)  # the first block has no maximum before it
        shifted = tl.where(inside[None, :], logits - larger[:, None], 0.0)
        e = tl.where(inside[None, :], tl.exp2(shifted * _LOG2_E), 0.0)
        shrink = tl.exp2(fall * _LOG2_E)
        moment = (moment + fall * total) * shrink + tl.sum(e * shifted, 1)
        total = total * shrink + tl.sum(e, 1)
        maximum = larger

    out = image * queries + rows
    tl.store(entropy + out, tl.log(total) - moment / total, mask=valid)
    tl.store(lse + out, maximum + tl.log(total), mask=valid)


@triton.jit
def columns_kernel(
    query,  # [B, N, d]
    key,  # [B, M, d]
    lse,  # [B, N]
    received,  # [B, M] out
    queries,
    keys,
    width,
    scale,
    query_stride_b,
    query_stride_s,
    query_stride_d,
    key_stride_b,
    key_stride_s,
    key_stride_d,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Mean attention received by BLOCK_M keys a program."""
    blocks = tl.cdiv(keys, BLOCK_M)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = rows < keys
    query += image * query_stride_b
    lse += image * queries
    k_rows = row_pointers(key + image * key_stride_b, rows, key_stride_s)
    k = load_rows(k_rows, valid, tl.arange(0, BLOCK_K), width, key_stride_d)

    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, queries, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        inside = columns < queries
        q_rows = row_pointers(query, columns, query_stride_s)
        logits, _, _ = products(
            k,
            k_rows,
            valid,
            key_stride_d,
            q_rows,
            inside,
            query_stride_d,
            width,
            RESIDENT,
            False,
            BLOCK_K,
            PRECISION,
            WIDE,
        )
        column_lse = tl.load(lse + columns, mask=inside, other=0.0)
        logits = tl.where(inside[None, :], logits * scale, float("-inf"))
        a = tl.exp2((logits - column_lse[None, :]) * _LOG2_E)
        total += tl.sum(a, 1)
    tl.store(received + image * keys + rows, total / queries, mask=valid)


@triton.jit
def backward_kernel(
    x,  # [B, N, d] query (OF_QUERY) or [B, M, d] key, whose gradient this is
    y,  # the other
    grad_received,  # [B, M]
    grad_entropy,  # [B, N]
    entropy,  # [B, N]
    lse,  # [B, N]
    row_mean,  # [B, N]: Σ_j A_ij·grad_received_j / N; out if OF_QUERY, in for the key
    grad,  # like x, out, contiguous
    x_count,
    y_count,
    width,
    scale,
    x_stride_b,
    x_stride_s,
    x_stride_d,
    y_stride_b,
    y_stride_s,
    y_stride_d,
    received_stride_b,
    received_stride_s,
    entropy_stride_b,
    entropy_stride_s,
    OF_QUERY: tl.constexpr,
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
    parts = tl.cdiv(width, BLOCK_OUT)
    blocks = tl.cdiv(x_count, BLOCK_M)
    part = tl.program_id(0) % parts
    image = (tl.program_id(0) // parts // blocks).to(tl.int64)
    rows = (tl.program_id(0) // parts % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = rows < x_count
    y += image * y_stride_b
    grad_received += image * received_stride_b
    grad_entropy += image * entropy_stride_b
    first = image * (x_count if OF_QUERY else y_count)
    entropy += first
    lse += first
    row_mean += first
    queries = x_count if OF_QUERY else y_count

    x_rows = row_pointers(x + image * x_stride_b, rows, x_stride_s)
    x_tile = load_rows(x_rows, valid, tl.arange(0, BLOCK_K), width, x_stride_d)
    out_columns = part * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    if OF_QUERY:
        row_lse = tl.load(lse + rows, mask=valid, other=0.0)
        row_entropy = tl.load(entropy + rows, mask=valid, other=0.0)
        row_grad = tl.load(row_pointers(grad_entropy, rows, entropy_stride_s), mask=valid, other=0.0).to(tl.float32)
        mean = tl.zeros([BLOCK_M], tl.float32)
        for start in range(0, y_count, BLOCK_N):
            columns = start + tl.arange(0, BLOCK_N)
            inside = columns < y_count
            y_rows = row_pointers(y, columns, y_stride_s)
            logits, _, _ = products(
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
            pointers = row_pointers(grad_received, columns, received_stride_s)
            share = tl.load(pointers, mask=inside, other=0.0).to(tl.float32) / queries
            logits = tl.where(inside[None, :], logits * scale, float("-inf"))
            a = tl.exp2((logits - row_lse[:, None]) * _LOG2_E)
            mean += tl.sum(a * share[None, :], 1)
        # A vector of `part`, since Triton 3.9's interpreter joins no vector and scalar of booleans.
        tl.store(row_mean + rows, mean, mask=valid & (tl.zeros_like(rows) + part == 0))
    else:
        row_share = tl.load(row_pointers(grad_received, rows, received_stride_s), mask=valid, other=0.0)
        row_share = row_share.to(tl.float32) / queries

    total = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    for start in range(0, y_count, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        inside = columns < y_count
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
        if OF_QUERY:
            pointers = row_pointers(grad_received, columns, received_stride_s)
            share = tl.load(pointers, mask=inside, other=0.0).to(tl.float32) / queries
            log_a = tl.where(inside[None, :], logits * scale, row_lse[:, None]) - row_lse[:, None]
            through = (log_a + row_entropy[:, None]) * row_grad[:, None]
            weights = tl.exp2(log_a * _LOG2_E) * ((share[None, :] - mean[:, None]) - through)
        else:
            column_lse = tl.load(lse + columns, mask=inside, other=0.0)
            column_entropy = tl.load(entropy + columns, mask=inside, other=0.0)
            column_mean = tl.load(row_mean + columns, mask=inside, other=0.0)
            pointers = row_pointers(grad_entropy, columns, entropy_stride_s)
            column_grad = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
            log_a = tl.where(inside[None, :], logits * scale, column_lse[None, :]) - column_lse[None, :]
            through = (log_a + column_entropy[None, :]) * column_grad[None, :]
            weights = tl.exp2(log_a * _LOG2_E) * ((row_share[:, None] - column_mean[None, :]) - through)
        weights = tl.where(inside[None, :], weights, 0.0)
        if not RESIDENT or BLOCK_OUT != BLOCK_K:
            y_tile = load_rows(y_rows, inside, out_columns, width, y_stride_d)
        total += dot(weights.to(y_tile.dtype) if not OUT_WIDE else weights, y_tile, OUT_PRECISION, OUT_WIDE)

    pointers = row_pointers(grad + image * x_count * width, rows, width)
    inside_out = valid[:, None] & (out_columns < width)[None, :]
    tl.store(pointers[:, None] + out_columns[None, :], (total * scale).to(grad.dtype.element_ty), mask=inside_out)
