"""Attention each position receives, and row entropies, in the manner of flash attention: no [N, M] matrix is stored.

Two launches forward (row log-sum-exps and entropies; then column sums, with the columns resident, so without atomics)
and two backward. float64 and empty inputs go to the reference.
"""

from torch import Tensor

from fastsketch import reference
from fastsketch.triton import configs, launch
from fastsketch.triton.attention_kernels import backward_kernel, columns_kernel, rows_kernel


def attention_statistics_forward(
    query: Tensor,  # [B, N, d]
    key: Tensor,  # [B, M, d]
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `fastsketch.reference.attention`."""
    if not (launch.takes(query) and launch.takes(key)):
        return reference.attention_statistics_forward(query, key, scale)
    query, key = launch.rows(query), launch.rows(key)
    batch, queries, width = query.shape
    keys = key.shape[1]
    entropy, lse = (query.new_empty(batch, queries, dtype=configs.ACCUMULATION) for _ in range(2))
    received = key.new_empty(batch, keys, dtype=configs.ACCUMULATION)
    tiles = configs.attention_forward_tiles(query)
    rest = (queries, keys, width, scale, *query.stride(), *key.stride())
    constants = configs.first_dot(query.dtype)
    arguments = (query, key, entropy, lse, *rest)
    launch.run(rows_kernel, tiles, lambda tile: batch * launch.blocks(queries, tile.rows), arguments, constants)
    arguments = (query, key, lse, received, *rest)
    launch.run(columns_kernel, tiles, lambda tile: batch * launch.blocks(keys, tile.rows), arguments, constants)
    return received, entropy, lse


def attention_statistics_backward(
    grad_received: Tensor,  # [B, M]
    grad_entropy: Tensor,  # [B, N]
    query: Tensor,  # [B, N, d]
    key: Tensor,  # [B, M, d]
    entropy: Tensor,  # [B, N]
    lse: Tensor,  # [B, N]
    scale: float,
) -> tuple[Tensor, Tensor]:
    """See `fastsketch.reference.attention`."""
    if not (launch.takes(query) and launch.takes(key)):
        return reference.attention_statistics_backward(grad_received, grad_entropy, query, key, entropy, lse, scale)
    whole = query.shape[-1]
    query, key = launch.rows(query), launch.rows(key)
    batch, queries, width = query.shape
    grad_query, grad_key = query.new_empty(query.shape), key.new_empty(key.shape)
    entropy, lse = entropy.contiguous(), lse.contiguous()  # ours are: no copy
    row_mean = lse.new_empty(batch, queries)
    tiles = configs.attention_backward_tiles(query)
    for of_query, x, y, grad in ((True, query, key, grad_query), (False, key, query, grad_key)):
        launch.run(
            backward_kernel,
            tiles,
            lambda tile, count=x.shape[1]: batch * launch.blocks(count, tile.rows) * launch.blocks(width, tile.out),
            (
                x,
                y,
                grad_received,
                grad_entropy,
                entropy,
                lse,
                row_mean,
                grad,
                x.shape[1],
                y.shape[1],
                width,
                scale,
                *x.stride(),
                *y.stride(),
                *grad_received.stride(),
                *grad_entropy.stride(),
            ),
            {
                "OF_QUERY": of_query,
                **configs.first_dot(query.dtype),
                **configs.second_dot(query.dtype),
            },
        )
    if width != whole:
        grad_query, grad_key = (x[..., :whole].contiguous() for x in (grad_query, grad_key))
    return grad_query, grad_key
