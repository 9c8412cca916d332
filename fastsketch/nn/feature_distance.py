"""Distance of features whose channels are divided by their length: a kernel, where there is one, else the framework's.

The kernels (`csrc/cpu/feature_distance.h`, `fastsketch/triton/features.py`) read both sets of features once forward and
once backward, contiguous or channels-last and in half precision as they are, and keep nothing between the two; the
framework's operators write a dozen maps of their size.
"""

import torch
from torch import Tensor

from fastsketch._checks import FLOATING, check_tensor
from fastsketch.nn.own_kernels import kernel, usable
from fastsketch.ops.eager import wants_formula
from fastsketch.reference import features as plain

EPSILON = 1e-3
"""Added to a feature's length, some ten: little beside it, and it bounds the gradient of one that is nearly 0."""


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(features, target)
        return kernel("feature_distance", features.device)(features, target, EPSILON)

    @staticmethod
    def backward(ctx, grad: Tensor):
        if wants_formula(grad):
            return plain.feature_distance_gradient(grad, *ctx.saved_tensors, EPSILON), None
        return kernel("feature_distance_gradient", grad.device)(grad, *ctx.saved_tensors, EPSILON), None


def normalized_distance(features: Tensor, target: Tensor, own_kernel: bool = True) -> Tensor:
    """Mean over positions of ‖a/(‖a‖ + ε) − b/(‖b‖ + ε)‖², a and b a position's channels, ε = 10⁻³.

    [D; L: Zhang et al., CVPR 2018, without their learned weights].

    Args:
        features: [B, C, H, W], any floating dtype.
        target: like `features`.
        own_kernel: use a kernel where there is one, and no gradient to the target is asked for; else it is the
            framework's operators.

    Returns:
        [B], float32 (float64 of float64).

    Raises:
        TypeError: no tensors, or not floating.
        ValueError: shapes or dtypes that do not belong together, or maps of no channels or positions.
    """
    check_tensor("features", features, FLOATING)
    check_tensor("target", target, FLOATING)
    if features.dim() != 4 or features.shape != target.shape or features.dtype != target.dtype:
        shapes = [f"{list(x.shape)} {x.dtype}" for x in (features, target)]
        raise ValueError(
            f"features and target must be [B, C, H, W], of one shape and dtype, got {' and '.join(shapes)}"
        )
    if 0 in features.shape[1:]:
        raise ValueError(f"features must have channels and positions, got {list(features.shape)}")
    ours = usable("feature_distance", features, target, on=own_kernel)
    if ours and not target.requires_grad and features.numel() > 0:
        return _Distance.apply(features, target)
    return plain.feature_distance(features, target, EPSILON)
