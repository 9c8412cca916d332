"""The kernels in C++ (csrc/), for tensors on the CPU: same names and signatures as `fastsketch.reference`.

Importing this module loads `_C.so`, which registers torch.ops.fastsketch_C; where it was not built, the ImportError
says why. FASTSKETCH_CPU_LEVEL names the instruction set to use: one that is not there is a FastsketchError. `facts`
tells how it was built and which instruction set runs.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastsketch.errors import FastsketchError
from fastsketch.reference.layout import empty_features, layout_of
from fastsketch.reference.precision import accumulation_dtype, widened

_FOLDER = Path(__file__).parent
CHECKS_VALUES = True
"""Positions, densities, uniform numbers and regions out of range are a RuntimeError here."""

_NEGATIVES = ("image", "same_region", "other_regions")  # in the order of csrc/cpu/kernels.h


def _load() -> None:
    library = _FOLDER / "_C.so"
    if not library.exists():
        report = _FOLDER / "_build_report.txt"
        reason = report.read_text().strip() if report.exists() else "not built (pip install -e . builds it)"
        raise ImportError(f"C++ kernels {reason}")
    torch.ops.load_library(library)
    from fastsketch import _facts

    if not _facts.level_used():
        have = ", ".join(_facts.levels_detected())
        level = os.environ.get("FASTSKETCH_CPU_LEVEL")
        raise FastsketchError(f"FASTSKETCH_CPU_LEVEL must be one of {have}, which this processor has, got {level!r}")


_load()
_ops = torch.ops.fastsketch_C


def facts() -> dict[str, str]:
    """Build and processor facts: compiler, flags, torch built for, instruction sets and the one in use."""
    from fastsketch import _facts

    return {
        "compiler": _facts.compiler,
        "flags": _facts.flags,
        "torch": f"built for {_facts.built_for_torch}, runs on {_facts.least_torch} and later",
        "instruction sets": ", ".join(_facts.levels_compiled()),
        "of this processor": ", ".join(_facts.levels_detected()),
        "in use": _facts.level_used(),
        "CUDA architectures": ", ".join(_facts.cuda_architectures) or "none",
    }


def _int32(region: Tensor | None) -> Tensor | None:
    """Region ids, which are only compared with each other, in the kernel's type."""
    if region is None:
        return None
    if region.dtype == torch.int64 and region.numel():
        low, high = region.aminmax()
        limits = torch.iinfo(torch.int32)
        if int(low) < limits.min or int(high) > limits.max:
            region = region.unique(return_inverse=True)[1]
    return region.to(torch.int32).contiguous()


def patch_nce_forward(
    query: Tensor,  # [B, S, D]
    key: Tensor,  # [B, S, D]
    region: Tensor | None,  # [B, S]
    temperature: float,
    negatives: str,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `fastsketch.reference.patch_nce`."""
    code = _NEGATIVES.index(negatives)
    return _ops.patch_nce_forward(query, key, _int32(region), temperature, code, normalize, False)[:4]


def patch_nce_forward_with_gradient(
    query: Tensor,  # [B, S, D]
    key: Tensor,  # [B, S, D]
    region: Tensor | None,  # [B, S]
    temperature: float,
    negatives: str,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The outputs of `patch_nce_forward`, and d loss_i / d query_i, [B, S, D] in the accumulation dtype."""
    code = _NEGATIVES.index(negatives)
    return _ops.patch_nce_forward(query, key, _int32(region), temperature, code, normalize, True)


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
    grad_query, grad_key = _ops.patch_nce_backward(
        grad_loss.to(lse.dtype).contiguous(),
        query,
        key,
        _int32(region),
        lse.contiguous(),
        query_scale.contiguous(),
        key_scale.contiguous(),
        temperature,
        _NEGATIVES.index(negatives),
        normalize,
        need_query,
        need_key,
    )
    return grad_query.to(query.dtype), grad_key.to(key.dtype)


def gather_patches_forward(
    features: Tensor,  # [B, C, *spatial]
    index: Tensor,  # [B, S] int64
) -> Tensor:  # [B, S, C]
    """See `fastsketch.reference.gather`."""
    return gather_layers((features,), (index,))[0]


def gather_layers(
    features: Sequence[Tensor],  # L times [B, C_l, *spatial_l]
    index: Sequence[Tensor],  # L times [B, S] int64
) -> list[Tensor]:  # L times [B, S, C_l]
    """See `fastsketch.reference.gather`."""
    return _ops.gather_layers(features, index)


def gather_patches_backward(
    grad_patches: Tensor,  # [B, S, C]
    index: Tensor,  # [B, S] int64
    spatial: Sequence[int],
    channels_last: bool,
) -> Tensor:  # [B, C, *spatial]
    """See `fastsketch.reference.gather`."""
    shape = (grad_patches.shape[0], grad_patches.shape[2], *spatial)
    return tap_patches_add_(empty_features(grad_patches, shape, channels_last).zero_(), grad_patches, index)


def tap_patches_backward(
    grad_features: Tensor,  # [B, C, *spatial]
    grad_patches: Tensor,  # [B, S, C]
    index: Tensor,  # [B, S] int64
) -> Tensor:  # [B, C, *spatial]
    """See `fastsketch.reference.gather`."""
    copy = torch.empty_like(grad_features).copy_(grad_features)
    return tap_patches_add_(copy, grad_patches, index)


def tap_patches_add_(
    grad_features: Tensor,  # [B, C, *spatial]
    grad_patches: Tensor,  # [B, S, C]
    index: Tensor,  # [B, S] int64
) -> Tensor:  # [B, C, *spatial]
    """`tap_patches_backward` in place; `grad_features` must hold a value of its own at every position."""
    _ops.scatter_patches(grad_features, grad_patches.to(grad_features.dtype), index)
    return grad_features


def project_patches_forward(
    patches: Sequence[Tensor],  # L times [B, S, C_l]
    parameters: Sequence[Tensor],  # of each layer: [H, C_l], [H], [D, H], [D]
    keep_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """`fastsketch.reference.projection`, and the hidden values [L, B·S, H] if they are to be kept (else [0])."""
    return _ops.project_patches_forward(
        [x.contiguous() for x in patches], [x.contiguous() for x in parameters], keep_hidden
    )


def project_patches_backward(
    grad_projected: Tensor,  # [L, B, S, D]
    patches: Sequence[Tensor],  # L times [B, S, C_l]
    hidden: Tensor,  # [L, B·S, H]
    parameters: Sequence[Tensor],  # of each layer: [H, C_l], [H], [D, H], [D]
    need_patches: bool,
    need_parameters: bool,
) -> list[Tensor]:
    """Gradients to all patches, then to all parameters; those not needed are left out."""
    return _ops.project_patches_backward(
        grad_projected.contiguous(),
        [x.contiguous() for x in patches],
        hidden,
        [x.contiguous() for x in parameters],
        need_patches,
        need_parameters,
    )


def normalize_layers(x: Tensor) -> list[Tensor]:  # [L, N, D] float32 or float64 -> L times [N, D]
    """Each row over its norm: see `fastsketch.reference.projection`."""
    return _ops.normalize_layers(x.contiguous())


def normalize_layers_gradient(
    grads: Sequence[Tensor],  # L times [N, D]
    x: Tensor,  # [L, N, D]
) -> Tensor:  # [L, N, D]
    """Gradient of `normalize_layers`; that of a zero row's norm is 0."""
    return _ops.normalize_layers_gradient([grad.contiguous() for grad in grads], x.contiguous())


def transport_plan(
    cost: Tensor,  # [B, N, M] float32 or float64
    epsilon: float,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:  # [B, N, M], [B, T, N], [B, T + 1, M]
    """See `fastsketch.reference.transport`."""
    return _ops.transport_plan(cost.contiguous(), epsilon, iterations)


def transport_plan_gradient(
    grad_plan: Tensor,  # [B, N, M]
    plan: Tensor,  # [B, N, M]
    rows: Tensor,  # [B, T, N]
    columns: Tensor,  # [B, T + 1, M]
    epsilon: float,
) -> Tensor:  # [B, N, M]
    """See `fastsketch.reference.transport`; stops where what is left cannot be seen in the result any more."""
    grad_plan, plan, rows, columns = (x.contiguous() for x in (grad_plan, plan, rows, columns))
    return _ops.transport_plan_gradient(grad_plan, plan, rows, columns, epsilon)


def relation_weight(key: Tensor, gamma: float) -> Tensor:  # [B, S, D] -> [B, S, S]
    """See `fastsketch.reference.relation`."""
    return _ops.relation_weight(key.contiguous(), gamma)


def semantic_relation(
    query: Tensor,  # [B, S, D]
    key: Tensor,  # [B, S, D]
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:  # [B], [B, S, D], [B, S, S]
    """See `fastsketch.reference.relation`."""
    rows, gradient, weight = _ops.semantic_relation(query.contiguous(), key.contiguous(), gamma)
    return rows.sum(1), gradient, weight


def weighted_nce(
    query: Tensor,  # [B, S, D]
    key: Tensor,  # [B, S, D]
    weight: Tensor | None,  # [B, S, S]
    temperature: float,
    decoupled: bool,
) -> tuple[Tensor, Tensor]:  # [B, S], [B, S, D]
    """See `fastsketch.reference.relation`."""
    weight = None if weight is None else weight.contiguous()
    return _ops.weighted_nce(query.contiguous(), key.contiguous(), weight, temperature, decoupled)


def convolve(
    x: Tensor,  # [B, Cin, H, W] float32 or float64
    kernel: Tensor,  # [Cout, Cin, K, K], K 3, 4 or 7
    bias: Tensor | None,  # [Cout]
    padding: int,
    reflect: bool,
) -> Tensor:  # [B, Cout, H + 2 padding + 1 - K, W + 2 padding + 1 - K]
    """See `fastsketch.nn.convolution`."""
    bias = None if bias is None else bias.contiguous()
    return _ops.convolve(x.contiguous(), kernel.contiguous(), bias, padding, reflect)


def convolve_input_gradient(
    grad_output: Tensor,  # of convolve's result
    kernel: Tensor,  # [Cout, Cin, K, K]
    height: int,
    width: int,
    padding: int,
    reflect: bool,
) -> Tensor:  # [B, Cin, H, W]
    """Gradient of `convolve`'s input."""
    return _ops.convolve_input_gradient(grad_output.contiguous(), kernel.contiguous(), height, width, padding, reflect)


def convolve_kernel_gradient(
    x: Tensor,  # [B, Cin, H, W]
    grad_output: Tensor,  # of convolve's result
    size: int,
    padding: int,
    reflect: bool,
) -> Tensor:  # [Cout, Cin, size, size]
    """Gradient of `convolve`'s kernel."""
    return _ops.convolve_kernel_gradient(x.contiguous(), grad_output.contiguous(), size, padding, reflect)


def attend_forward(
    query: Tensor,  # [B, d, N] float32 or float64
    key: Tensor,  # [B, d, M]
    value: Tensor,  # [B, C, M]
    scale: float,
) -> tuple[Tensor, Tensor]:  # [B, C, N], and the log-sum-exp of each query's logits [B, N]
    """See `fastsketch.nn.attend`."""
    return _ops.attend_forward(query.contiguous(), key.contiguous(), value.contiguous(), scale)


def attend_backward(
    grad_output: Tensor,  # [B, C, N]
    output: Tensor,  # attend_forward's
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    given = (tensor.contiguous() for tensor in (grad_output, output, lse, query, key, value))
    return _ops.attend_backward(*given, scale)


if facts()["in use"] == "amx":

    def attend_rows_forward(
        query: Tensor,  # [B, N, d] bfloat16
        key: Tensor,  # [B, M, d]
        value: Tensor,  # [B, M, C]
        scale: float,
    ) -> tuple[Tensor, Tensor]:  # [B, N, C], and the log-sum-exp of each query's logits [B, N], both float32
        """`attend_forward` of rows, weights rounded to bfloat16 where they meet the values."""
        return _ops.attend_rows_forward(query.contiguous(), key.contiguous(), value.contiguous(), scale)

    def attend_rows_backward(
        grad_output: Tensor,  # [B, N, C] bfloat16
        output: Tensor,  # attend_rows_forward's
        lse: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value."""
        given = (tensor.contiguous() for tensor in (grad_output, output, lse, query, key, value))
        return _ops.attend_rows_backward(*given, scale)


def instance_norm(
    x: Tensor,  # [B, C, H, W] of any floating dtype
    slope: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # the same shape and dtype; mean and 1 / standard deviation [B, C]
    """See `fastsketch.nn.instance_norm`."""
    return _ops.instance_norm(x.contiguous(memory_format=layout_of(x)), slope, eps)


def instance_norm_gradient(
    grad_output: Tensor,  # [B, C, H, W]
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    slope: float,
) -> Tensor:  # [B, C, H, W]
    """Gradient of `instance_norm`'s input."""
    layout = layout_of(x)
    x, grad_output = (tensor.contiguous(memory_format=layout) for tensor in (x, grad_output))
    return _ops.instance_norm_gradient(grad_output, x, mean, scale, slope)


def blur_downsample(x: Tensor) -> Tensor:  # [B, C, H, W] of any floating dtype -> [B, C, ⌈H/2⌉, ⌈W/2⌉]
    """See `fastsketch.nn.blur`."""
    return _ops.blur_downsample(x.contiguous(memory_format=layout_of(x)))


def blur_downsample_gradient(grad_output: Tensor, height: int, width: int) -> Tensor:  # -> [B, C, H, W]
    """Gradient of `blur_downsample`'s input."""
    return _ops.blur_downsample_gradient(grad_output.contiguous(memory_format=layout_of(grad_output)), height, width)


def blur_upsample(x: Tensor) -> Tensor:  # [B, C, H, W] of any floating dtype -> [B, C, 2H, 2W]
    """See `fastsketch.nn.blur`."""
    return _ops.blur_upsample(x.contiguous(memory_format=layout_of(x)))


def blur_upsample_gradient(grad_output: Tensor) -> Tensor:  # [B, C, 2H, 2W] -> [B, C, H, W]
    """Gradient of `blur_upsample`'s input."""
    return _ops.blur_upsample_gradient(grad_output.contiguous(memory_format=layout_of(grad_output)))


def _in_one_layout(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both channels-last, if the first is; else both contiguous."""
    layout = layout_of(features)
    return features.contiguous(memory_format=layout), target.contiguous(memory_format=layout)


def feature_distance(
    features: Tensor,  # [B, C, H, W]
    target: Tensor,
    epsilon: float,
) -> Tensor:  # [B], float32 (float64 of float64)
    """See `fastsketch.reference.features`."""
    return _ops.feature_distance(*_in_one_layout(features, target), epsilon)


def feature_distance_gradient(
    grad_loss: Tensor,  # [B]
    features: Tensor,  # [B, C, H, W]
    target: Tensor,
    epsilon: float,
) -> Tensor:  # [B, C, H, W] in the features' dtype and layout
    """See `fastsketch.reference.features`."""
    grad_loss = grad_loss.to(accumulation_dtype(features.dtype)).contiguous()
    return _ops.feature_distance_gradient(grad_loss, *_in_one_layout(features, target), epsilon)


def max_pool(x: Tensor) -> Tensor:  # [B, C, H, W] of any floating dtype -> [B, C, ⌊H/2⌋, ⌊W/2⌋]
    """See `fastsketch.nn.max_pool`."""
    return _ops.max_pool(x.contiguous())


def max_pool_gradient(grad_output: Tensor, x: Tensor) -> Tensor:  # -> [B, C, H, W]
    """Gradient of `max_pool`'s input."""
    return _ops.max_pool_gradient(grad_output.contiguous(), x.contiguous())


def place_positions(
    index: Tensor,  # [B, S] int64
    grid: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    borders: Sequence[int],
    uniform: Tensor,  # [L, 2, B, S] float32
) -> list[Tensor]:  # L times [B, S] int64
    """See `fastsketch.reference.placing`."""
    flat = [side for size in sizes for side in size]
    return _ops.place_positions(index.contiguous(), grid, flat, borders, uniform.contiguous())


def sample_patches(
    density: Tensor,  # [B, N] floating
    region: Tensor | None,  # [B, N] integer
    uniform: Tensor,  # [B, N] in [0, 1]
    num_patches: int,
    threshold: float,
    boost: float,
) -> Tensor:  # [B, S] int64
    """See `fastsketch.reference.sampling`: the same indices for the same uniforms."""
    density, uniform = (widened(x).contiguous() for x in (density, uniform))
    region = None if region is None else region.long().contiguous()
    return _ops.sample_patches(density, region, uniform, num_patches, threshold, boost)


def attention_statistics_forward(
    query: Tensor,  # [B, N, d]
    key: Tensor,  # [B, M, d]
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `fastsketch.reference.attention`."""
    return _ops.attention_statistics_forward(query, key, scale)


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
    grad_received, grad_entropy = (g.to(lse.dtype).contiguous() for g in (grad_received, grad_entropy))
    grads = _ops.attention_statistics_backward(
        grad_received, grad_entropy, query, key, entropy.contiguous(), lse.contiguous(), scale
    )
    return tuple(grad.to(query.dtype) for grad in grads)
