"""Patch contrastive loss (docs/method.md section 5) in the manner of flash attention: the [S, S] logits are not stored.

A program takes a block of rows and streams blocks of the other side past it. Dots are of the raw inputs on tensor
cores; inverse norms and 1/τ multiply the float32 products afterwards, so normalisation is exact in float32 whatever the
dtype. The positive logit s_ii is summed apart, in plain float32. The backward uses p_ii − 1 = −Σ_{j≠i} p_ij (a
row of probabilities adds up to 1), which loses no digits where p_ii is near 1 and is exactly 0 for a query without
negatives. No atomics: every value has one program that computes it, in a fixed order.

Launches: forward 1 (2 for S > `configs.NORMS_APART`, where the norms are computed once beforehand), backward 1 for one
of the gradients being the query's, 2 with the key's. float64 and empty inputs go to the reference.
"""

from torch import Tensor

from fastsketch import reference
from fastsketch.triton import configs, launch
from fastsketch.triton.patch_nce_kernels import NEGATIVES, backward_kernel, forward_kernel, inverse_norms_kernel
from fastsketch.triton.tiles import LOG2_E


def patch_nce_forward(
    query: Tensor,  # [B, S, D]
    key: Tensor,  # [B, S, D]
    region: Tensor | None,  # [B, S]
    temperature: float,
    negatives: str,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `fastsketch.reference.patch_nce`."""
    if not launch.takes(query):
        return reference.patch_nce_forward(query, key, region, temperature, negatives, normalize)
    query, key = launch.rows(query), launch.rows(key)
    batch, samples, width = query.shape
    loss, lse = (query.new_empty(batch, samples, dtype=configs.ACCUMULATION) for _ in range(2))
    scales = [query.new_empty((batch, samples) if normalize else 0, dtype=configs.ACCUMULATION) for _ in range(2)]
    apart = normalize and samples > configs.NORMS_APART
    if apart:
        launch.run(
            inverse_norms_kernel,
            configs.norms_tiles(),
            lambda tile: batch * launch.blocks(samples, tile.rows),
            (query, key, *scales, samples, width, *query.stride(), *key.stride()),
            {},
        )
    launch.run(
        forward_kernel,
        configs.patch_nce_forward_tiles(query),
        lambda tile: batch * launch.blocks(samples, tile.rows),
        (
            query,
            key,
            query if region is None else region,
            loss,
            lse,
            *scales,
            samples,
            width,
            LOG2_E / temperature,
            *query.stride(),
            *key.stride(),
            *((0, 0) if region is None else region.stride()),
        ),
        {
            "NORMALIZE": normalize,
            "NORMS_APART": apart,
            "NEGATIVES": NEGATIVES.index(negatives),
            **configs.first_dot(query.dtype),
        },
    )
    return loss, lse, *scales


def patch_nce_backward(
    grad_loss: Tensor,  # [B, S]
    query: Tensor,  # [B, S, D]
    key: Tensor,  # [B, S, D]
    region: Tensor | None,  # [B, S]
    lse: Tensor,  # [B, S]
    query_scale: Tensor,  # [B, S] or [0]
    key_scale: Tensor,  # [B, S] or [0]
    temperature: float,
    negatives: str,
    normalize: bool,
    need_query: bool,
    need_key: bool,
) -> tuple[Tensor, Tensor]:
    """See `fastsketch.reference.patch_nce`."""
    if not launch.takes(query):
        return reference.patch_nce_backward(
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
    whole = query.shape[-1]
    query, key = launch.rows(query), launch.rows(key)
    batch, samples, width = query.shape
    grad_query = query.new_empty(query.shape if need_query else 0)
    grad_key = key.new_empty(key.shape if need_key else 0)
    negative_mass = query.new_empty((batch, samples) if need_key else 0, dtype=configs.ACCUMULATION)
    lse, query_scale, key_scale = (x.contiguous() for x in (lse, query_scale, key_scale))  # ours are: no copy
    tiles = configs.patch_nce_backward_tiles(query)
    sides = [
        (True, query, key, query_scale, key_scale, grad_query, need_query),
        (False, key, query, key_scale, query_scale, grad_key, need_key),
    ]
    for of_query, x, y, x_scale, y_scale, grad, needed in sides:
        if not needed and not (of_query and need_key):
            continue
        launch.run(
            backward_kernel,
            tiles,
            lambda tile, parts=needed: (
                batch * launch.blocks(samples, tile.rows) * (launch.blocks(width, tile.out) if parts else 1)
            ),
            (
                x,
                y,
                query if region is None else region,
                grad_loss,
                lse,
                x_scale,
                y_scale,
                negative_mass,
                grad,
                samples,
                width,
                LOG2_E / temperature,
                1 / temperature,
                *x.stride(),
                *y.stride(),
                *((0, 0) if region is None else region.stride()),
                *grad_loss.stride(),
            ),
            {
                "OF_QUERY": of_query,
                "STORE_GRAD": needed,
                "STORE_MASS": of_query and need_key,
                "NORMALIZE": normalize,
                "NEGATIVES": NEGATIVES.index(negatives),
                **configs.first_dot(query.dtype),
                **configs.second_dot(query.dtype),
            },
        )
    if width != whole:
        grad_query, grad_key = (x[..., :whole].contiguous() for x in (grad_query, grad_key))
    return grad_query, grad_key
