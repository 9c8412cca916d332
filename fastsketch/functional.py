"""The public operators: what they mean, and a clear error for what they cannot take.

Shapes and dtypes are checked here, before tracing; values (positions in range, densities finite) inside the
operators: always on CPU, elsewhere with FASTSKETCH_CHECK=1. METHOD marks: [P] the paper, [L] another published
source, [D] this project's decision.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fastsketch._checks import (
    FLOATING,
    INTEGER,
    check_above_zero,
    check_choice,
    check_int,
    check_like,
    check_list,
    check_number,
    check_sides,
    check_tensor,
    check_whole,
)
from fastsketch.ops import attention as _attention
from fastsketch.ops import chain as _chain
from fastsketch.ops import gather as _gather
from fastsketch.ops import patch_nce as _patch_nce
from fastsketch.ops import placing as _placing
from fastsketch.ops import projection as _projection
from fastsketch.ops import sampling as _sampling
from fastsketch.reference.precision import widened
from fastsketch.reference.sampling import MAX_BOOST

Negatives = Literal["image", "same_region", "other_regions", "batch"]
Reduction = Literal["mean", "sum", "none"]


def _check_dtype(query: Tensor, key: Tensor) -> None:
    """One dtype; under autocast any two that it makes float32 of, which float64 is not."""
    same = query.dtype == key.dtype or torch.is_autocast_enabled(query.device.type)
    if not same or (query.dtype == torch.float64) != (key.dtype == torch.float64):
        raise TypeError(f"key must have query's dtype {query.dtype}, got {key.dtype}")


def patch_nce(
    query: Tensor,  # [B, S, D]
    key: Tensor,  # [B, S, D]
    *,
    temperature: float = 0.07,
    negatives: Negatives = "image",
    region: Tensor | None = None,  # [B, S]
    weight: Tensor | None = None,  # [B, S]
    normalize: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Patch contrastive loss: each query against its own key, the other keys as negatives [L: CUT, ECCV 2020].

    With :math:`s_{ij} = q_i \cdot k_j` and negatives N(i),
    :math:`\ell_i = -\log\big(e^{s_{ii}/\tau} / (e^{s_{ii}/\tau} + \sum_{j \in N(i)} e^{s_{ij}/\tau})\big)`.
    With ``negatives="image"`` this is cross-entropy of q kᵀ/τ against the diagonal. A query without a negative has
    loss 0 and gradient 0.

    Args:
        query: [B, S, D], D at least 1, float32, bfloat16, float16 or float64, any strides.
        key: like `query`. Detach it (as CUT does) where its gradient is not wanted.
        temperature: τ, positive.
        negatives: ``image``: the image's other samples [L: CUT]; ``same_region``, ``other_regions``: those of them in
            the query's region, or not in it [D, from the paper's regional constraint]; ``batch``: all other
            samples of all images.
        region: [B, S] integer, the region of each sample; needed by the two regional choices, refused by the others.
        weight: [B, S] floating, factor of each query's loss (its multiplicity [D]), finite, non-negative. A compiled
            graph does not look at its values.
        normalize: divide query and key by (their L2 norm + 1e-7) first, in float32 whatever the dtype.
        reduction: ``mean``: Σ wℓ / Σ w (weights default to 1; 0 if all are 0, or there are no queries), as
            `torch.nn.functional.cross_entropy` weighs; ``sum``: Σ wℓ; ``none``: wℓ, [B, S].

    Returns:
        float32, or float64 for float64 input; a scalar, or [B, S] with ``reduction="none"``. Accumulated in
        that dtype. Under autocast the inputs are taken as float32. Any number of times differentiable; for the
        second derivative the S×S logits are stored.

    Raises:
        TypeError: a wrong type or dtype, or a temperature that wants a gradient (divide `query` by it instead).
        ValueError: a wrong shape (D = 0 too), device, choice or temperature, a region missing or not wanted, or a
            negative or infinite weight or NaN.
    """
    check_tensor("query", query, FLOATING)
    check_tensor("key", key, FLOATING)
    if query.dim() != 3:
        raise ValueError(f"query must be [B, S, D], got shape {list(query.shape)}")
    if query.shape[2] == 0:
        raise ValueError(f"query must be [B, S, D] with D at least 1, got shape {list(query.shape)}")
    check_like("key", key, query.shape, query)
    _check_dtype(query, key)
    check_choice("negatives", negatives, ("image", "same_region", "other_regions", "batch"))
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_above_zero("temperature", temperature)
    regional = negatives in ("same_region", "other_regions")
    if regional and region is None:
        raise ValueError(f"region must be given for negatives={negatives!r}")
    if not regional and region is not None:
        raise ValueError(f"region is not used by negatives={negatives!r}; leave it out")
    batch, samples, width = query.shape
    if region is not None:
        check_tensor("region", region, INTEGER)
        check_like("region", region, (batch, samples), query)
    if weight is not None:
        check_tensor("weight", weight, FLOATING)
        check_like("weight", weight, (batch, samples), query)
        _patch_nce.check_weight(weight)

    if negatives == "batch":
        query, key = (x.reshape(1, batch * samples, width) for x in (query, key))
        negatives = "image"
    loss = _patch_nce.patch_nce_losses(query, key, region, float(temperature), negatives, normalize).view(
        batch, samples
    )

    if weight is not None:
        weight = weight.to(loss.dtype)
        loss = loss * weight
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if weight is None:
        return loss.mean() if loss.numel() else loss.sum()
    total = weight.sum()
    return loss.sum() / torch.where(total > 0, total, 1)


def _check_positions(features: Tensor, index: Tensor) -> Tensor:
    """Check both arguments of gather and tap; the index as int64 [B, S]."""
    check_tensor("features", features, FLOATING)
    check_tensor("index", index, (torch.int64, torch.int32))
    if features.dim() not in (3, 4, 5):
        raise ValueError(
            f"features must be [B, C, *spatial] with 1 to 3 spatial dimensions, got shape {list(features.shape)}"
        )
    if index.dim() == 1:
        index = index.expand(features.shape[0], -1)
    if index.dim() != 2 or index.shape[0] != features.shape[0]:
        raise ValueError(
            f"index must be [S] or [{features.shape[0]}, S] (the features' batch), got shape {list(index.shape)}"
        )
    if index.device != features.device:
        raise ValueError(f"index must be on {features.device}, got {index.device}")
    return index.long()


def gather_patches(features: Tensor, index: Tensor) -> Tensor:
    """The feature vectors at given positions.

    Args:
        features: [B, C, *spatial] with 1 to 3 spatial dimensions; float32, bfloat16, float16 or float64; any strides.
        index: [B, S], or [S] for the whole batch; int64 or int32 positions in the flattened (row-major) spatial grid.
            A position may stand more than once: its gradients add up.

    Returns:
        [B, S, C] in the features' dtype, contiguous. Its backward fills a dense gradient in the features' layout; where
        the features go on to other layers, `tap_patches` is cheaper. Twice differentiable.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device; a position out of range.
    """
    return _gather.gather_patches(features, _check_positions(features, index))


def tap_patches(features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The same patches as `gather_patches`, beside a features tensor to go on with.

    Use the returned features in place of the given ones: their backward adds the patch gradients into the arriving
    feature gradient at S positions, so that no dense gradient of the patches is ever made.

    Args:
        features: [B, C, *spatial], as for `gather_patches`.
        index: [B, S] or [S], as for `gather_patches`.

    Returns:
        (features, patches): a view of the features, not to be modified in place, and [B, S, C].

    Raises:
        TypeError, ValueError: as `gather_patches`.
    """
    return _gather.tap_patches(features, _check_positions(features, index))


def gather_layers(features: Sequence[Tensor], index: Sequence[Tensor], *, differentiable: bool = False) -> list[Tensor]:
    """The feature vectors of several layers at given positions, in one call: without gradients, as keys need none.

    Args:
        features: one [B, C, *spatial] a layer, as for `gather_patches`, on one device; shapes and dtypes may differ.
        index: one [B, S] or [S] a layer, as for `gather_patches`.
        differentiable: gradients reach the features. A layer whose features lead to another one of the list (as
            an encoder's do) gets no dense gradient for it: the patches' is added to the one that arrives from there,
            in place where nothing else can hold that. Unlike a tap, this leaves the features as they are.

    Returns:
        One [B, S, C] a layer, in the dtype of its features, contiguous.

    Raises:
        TypeError: a wrong type or dtype, a single tensor in place of a list.
        ValueError: not as many of both, none at all, a wrong shape or device; a position out of range.
    """
    check_list("features", features)
    check_list("index", index)
    if len(features) == 0 or len(features) != len(index):
        raise ValueError(
            f"features and index must hold as many tensors, at least one, got {len(features)} and {len(index)}"
        )
    positions = [_check_positions(layer, i) for layer, i in zip(features, index, strict=True)]
    for layer in features[1:]:
        if layer.device != features[0].device:
            raise ValueError(f"features must be on one device, got {features[0].device} and {layer.device}")
    if not differentiable:
        return _gather.gather_without_gradient([layer.detach() for layer in features], positions)
    patches = _chain.gather_chain(features, positions)
    if patches is None:
        return [_gather.gather_patches(layer, i) for layer, i in zip(features, positions, strict=True)]
    return patches


def project_patches(patches: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    r"""Project the patches of several layers, each by its own MLP: relu(x W₁ᵀ + b₁) W₂ᵀ + b₂ [L: CUT's netF].

    Args:
        patches: one [B, S, C_l] a layer, floating, any strides; C_l at least 1.
        parameters: of each layer W₁ [H, C_l], b₁ [H], W₂ [D, H] and b₂ [D], one layer after the other, in the patches'
            dtype; H and D are the same for all layers, at least 1.

    Returns:
        [L, B, S, D] in the patches' dtype. Any number of times differentiable.

    Raises:
        TypeError: a wrong type (a single tensor in place of a list too), or several dtypes.
        ValueError: a wrong shape, number or device; a width C_l, H or D of 0.
    """
    check_list("patches", patches)
    check_list("parameters", parameters)

    def check() -> None:
        _check_projection(patches, parameters)

    return _projection.project_patches(patches, parameters, check)


def project_and_normalize(patches: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    r"""Project as `project_patches`, and divide each row y by ‖y‖₂ + 1e-7 [L: CUT's netF].

    Args:
        patches, parameters: as for `project_patches`.

    Returns:
        One [B·S, D] a layer in the patches' dtype, no views. Any number of times differentiable; a layer that is not
        used gets no gradient.

    Raises:
        TypeError, ValueError: as `project_patches`.
    """
    check_list("patches", patches)
    check_list("parameters", parameters)

    def check() -> None:
        _check_projection(patches, parameters)

    return _projection.project_and_normalize(patches, parameters, check)


def _check_projection(patches: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    if len(patches) == 0 or len(parameters) != 4 * len(patches):
        raise ValueError(
            f"parameters must hold four tensors for each of the patches (at least one), got {len(parameters)} for "
            f"{len(patches)}"
        )
    for layer, x in enumerate(patches):
        check_tensor(f"patches[{layer}]", x, (patches[0].dtype,) if layer else FLOATING)
        if x.dim() != 3:
            raise ValueError(f"patches[{layer}] must be [B, S, C], got shape {list(x.shape)}")
        if x.shape[2] == 0:
            raise ValueError(f"patches[{layer}] must be [B, S, C] with C at least 1, got shape {list(x.shape)}")
        check_like(f"patches[{layer}]", x, (*patches[0].shape[:2], x.shape[2]), patches[0])
    sides = []
    for part, (names, width) in ((0, ("[H, C]", "H")), (2, ("[D, H]", "D"))):
        weight = parameters[part]
        check_tensor(f"parameters[{part}]", weight, (patches[0].dtype,))
        if weight.dim() != 2 or weight.shape[0] == 0:
            raise ValueError(
                f"parameters[{part}] must be {names} with {width} at least 1, got shape {list(weight.shape)}"
            )
        sides.append(weight.shape[0])
    hidden, dim = sides
    for layer, x in enumerate(patches):
        for part, shape in enumerate(((hidden, x.shape[2]), (hidden,), (dim, hidden), (dim,))):
            name = f"parameters[{4 * layer + part}]"
            check_tensor(name, parameters[4 * layer + part], (x.dtype,))
            check_like(name, parameters[4 * layer + part], shape, x)


def place_positions(
    index: Tensor,  # [B, S]
    grid: Sequence[int],
    sizes: Sequence[Sequence[int]],
    *,
    borders: Sequence[int] | None = None,
    uniform: Tensor | None = None,  # [L, 2, B, S]
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Put positions of one grid into finer (or coarser) ones that cover the same picture [D].

    Args:
        index: int64 [B, S] flat positions on `grid`, in [0, h·w).
        grid: (h, w) the positions were drawn on.
        sizes: (H, W) of each of the L other grids, borders included.
        borders: cells on each side of each grid that lie outside the picture (3 for CUT's padded input); None: none.
        uniform: float32 [L, 2, B, S] in [0, 1], choosing the row and the column inside a position's block; the same
            numbers give the same cells in every implementation. Drawn when not given.
        generator: where they are drawn from; None: torch's global one.

    Returns:
        One int64 [B, S] a grid: flat positions, each a cell of the block that its cell of `grid` covers.

    Raises:
        TypeError: a wrong type or dtype; sides or borders that are not ints.
        ValueError: a wrong shape or device; `grid` or one of `sizes` not a pair of positive ints; not as many borders
            as sizes, a negative one, or one that leaves nothing; both `uniform` and `generator`; a position that is not
            on `grid`; `uniform` outside [0, 1] or NaN.
    """
    check_tensor("index", index, (torch.int64,))
    if index.dim() != 2:
        raise ValueError(f"index must be [B, S], got shape {list(index.shape)}")
    check_sides("grid", grid)
    if isinstance(sizes, (Tensor, str)) or not hasattr(sizes, "__len__"):
        raise TypeError(f"sizes must be a list of pairs, height and width, got {type(sizes).__name__}")
    for number, size in enumerate(sizes):
        check_sides(f"sizes[{number}]", size)
    borders = [0] * len(sizes) if borders is None else borders
    if isinstance(borders, (Tensor, str)) or not hasattr(borders, "__len__"):
        raise TypeError(f"borders must be a list of ints, one a size, got {type(borders).__name__}")
    if len(borders) != len(sizes):
        raise ValueError(f"borders must hold one number for each of the {len(sizes)} sizes, got {len(borders)}")
    for size, border in zip(sizes, borders, strict=True):
        check_whole("borders", border)
        if border < 0 or min(size) <= 2 * border:
            raise ValueError(f"borders: {border} on each side leaves nothing of size {tuple(size)}")
    shape = (len(sizes), 2, *index.shape)
    if uniform is None:
        uniform = torch.rand(shape, generator=generator, device=index.device, dtype=torch.float32)
    elif generator is not None:
        raise ValueError("generator is not used when uniform is given; leave one of them out")
    check_tensor("uniform", uniform, (torch.float32,))
    check_like("uniform", uniform, shape, index)
    flat_sizes = [side for size in sizes for side in size]
    return _placing.place(index, list(grid), flat_sizes, list(borders), uniform)


def sample_patches(
    density: Tensor,  # [B, *spatial]
    num_patches: int,
    *,
    region: Tensor | None = None,  # [B, *spatial]
    threshold: float = 1.5,
    boost: float = 2.0,
    uniform: Tensor | None = None,  # [B, *spatial]
    generator: torch.Generator | None = None,
) -> Tensor:
    """Distinct random positions, dense where the density is, shared out over regions.

    docs/method.md section 4: [P] samples whose density exceeds a threshold are doubled, and sampling is constrained by
    regions; [D] the density d is scaled to mean 1 an image, w = d·(boost if d > threshold else 1), each
    region's quota is the largest-remainder rounding of its share of Σw (at least 1 for a non-empty region if there
    are enough samples, at most its size), and inside a region positions are drawn without replacement with
    probability ∝ w, by the exponential race −log(u)/w [L: Efraimidis & Spirakis 2006].

    Args:
        density: [B, *spatial], floating, finite, non-negative, with a finite sum. Where a region's weights are all
            zero it is sampled uniformly.
        num_patches: S, 1 to N, the number of positions of an image.
        region: integer ids in [0, 1024), shaped like `density`; None: one region.
        threshold: in units of the image's mean density, non-negative.
        boost: factor of the weight above the threshold, above 0 to 1e30; 1 turns it off.
        uniform: the random numbers, in [0, 1], shaped like `density`: the same numbers give the same positions in
            every implementation, but where rounding of the mean decides whether a float64 density is above the
            threshold. Drawn in float32 when not given.
        generator: where they are drawn from; None: torch's global one.

    Returns:
        int64 [B, S] flat positions, grouped by ascending region, inside a region by ascending race key.
        Not differentiable.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, device or range; num_patches above N; both `uniform` and `generator`.
    """
    check_tensor("density", density, FLOATING)
    if density.dim() < 2 or 0 in density.shape:
        raise ValueError(f"density must be [B, *spatial], not empty, got {list(density.shape)}")
    check_int("num_patches", num_patches)
    positions = density.shape[1:].numel()
    if not 1 <= num_patches <= positions:
        raise ValueError(f"num_patches must be 1 to {positions}, the positions of an image, got {num_patches}")
    check_number("threshold", threshold)
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be non-negative and finite, got {threshold}")
    check_above_zero("boost", boost)
    if boost > MAX_BOOST:
        raise ValueError(f"boost must be at most {MAX_BOOST:g}, got {boost}")
    if region is not None:
        check_tensor("region", region, INTEGER)
        check_like("region", region, density.shape, density)
        region = region.flatten(1)
    if uniform is None:
        uniform = torch.rand(density.shape, generator=generator, device=density.device, dtype=torch.float32)
    elif generator is not None:
        raise ValueError("generator is not used when uniform is given; leave one of them out")
    check_tensor("uniform", uniform, FLOATING)
    check_like("uniform", uniform, density.shape, density)
    return _sampling.sample(
        density.detach().flatten(1),
        region,
        uniform.detach().flatten(1),
        num_patches,
        float(threshold),
        float(boost),
    )


def attention_statistics(
    query: Tensor,  # [B, N, d]
    key: Tensor,  # [B, M, d]
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Attention each position receives, and the entropy of each row, without storing the matrix.

    For :math:`A = \mathrm{softmax}_{rows}(q k^T \cdot scale)`: received_j = mean_i A_ij, the spatial score of
    docs/method.md section 2 [D]; entropy_i = −Σ_j A_ij log A_ij in nats, the selection signal of QS-Attn [L: Hu et
    al., CVPR 2022].

    Args:
        query: [B, N, d], float32, bfloat16, float16 or float64, any strides.
        key: [B, M, d] of the same dtype (M = N for self-attention).
        scale: factor of the logits; None: 1/√d.

    Returns:
        (received [B, M], entropy [B, N]), float32 (float64 for float64 input), accumulated in that dtype;
        received sums to 1 an image, entropy lies in [0, log M]. Any number of times differentiable; from the second
        derivative on the matrix is stored.

    Raises:
        TypeError: a wrong type or dtype, or a scale that wants a gradient (multiply `query` by it instead).
        ValueError: a wrong shape (nothing may be 0), device or scale.
    """
    check_tensor("query", query, FLOATING)
    check_tensor("key", key, FLOATING)
    if query.dim() != 3 or 0 in query.shape:
        raise ValueError(f"query must be [B, N, d], not empty, got shape {list(query.shape)}")
    if key.dim() != 3 or 0 in key.shape:
        raise ValueError(f"key must be [B, M, d], not empty, got shape {list(key.shape)}")
    check_like("key", key, (query.shape[0], key.shape[1], query.shape[2]), query)
    _check_dtype(query, key)
    if scale is None:
        scale = query.shape[-1] ** -0.5
    check_number("scale", scale)
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")
    return _attention.attention_statistics(query, key, float(scale))


def local_density(structure_map: Tensor, window: int = 7) -> Tensor:
    """Mean of a map over a window around each position: the feature density of docs/method.md section 4 [D].

    Args:
        structure_map: [B, H, W] floating.
        window: odd side of the box, in positions. At the border the mean is over what lies inside.

    Returns:
        [B, H, W] in the map's dtype (float32 for half precision).

    Raises:
        TypeError: `structure_map` is no tensor, or not floating; `window` is no int.
        ValueError: not [B, H, W], or a window that is not odd and positive.
    """
    check_tensor("structure_map", structure_map, FLOATING)
    if structure_map.dim() != 3 or 0 in structure_map.shape[1:]:
        raise ValueError(f"structure_map must be [B, H, W], H and W at least 1, got {list(structure_map.shape)}")
    check_int("window", window)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}")
    values = widened(structure_map)[:, None]
    mean = torch.nn.functional.avg_pool2d(values, window, stride=1, padding=window // 2, count_include_pad=False)
    return mean[:, 0]
