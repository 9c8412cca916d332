"""Distance of normalised features, and its gradient, in plain PyTorch: what kernels are held against.

Not among the operators' kernels: `fastsketch.nn.feature_distance` calls it where there is no kernel.
"""

import torch
from torch import Tensor

from fastsketch.reference.precision import widened


def _unit(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x over (length + ε), in the dtype of sums, and the length, [B, 1, H, W]."""
    x = widened(x)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # whose gradient is 0 where x is
    return x / (length + epsilon), length


def feature_distance(
    features: Tensor,  # [B, C, H, W]
    target: Tensor,
    epsilon: float,
) -> Tensor:  # [B], float32 (float64 of float64)
    """Mean over positions of ‖u − v‖², u and v a position's channels over (their length + ε)."""
    return (_unit(features, epsilon)[0] - _unit(target, epsilon)[0]).square().sum(1).mean((1, 2))


def feature_distance_gradient(
    grad_loss: Tensor,  # [B]
    features: Tensor,  # [B, C, H, W]
    target: Tensor,
    epsilon: float,
) -> Tensor:  # [B, C, H, W] of the features' dtype
    """2/N · grad · ((u − v) / (‖a‖ + ε) − u · ⟨u, u − v⟩ / ‖a‖) for the features a, N positions; 0 for 0 / 0."""
    (unit, length), (other, _) = _unit(features, epsilon), _unit(target, epsilon)
    difference = unit - other
    along = (unit * difference).sum(1, keepdim=True) / length.where(length > 0, 1)
    factor = 2 * grad_loss / features.shape[2:].numel()
    gradient = factor[:, None, None, None] * (difference / (length + epsilon) - unit * along)
    return gradient.to(features.dtype)
