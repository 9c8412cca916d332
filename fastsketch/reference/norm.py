"""Instance norm with a (leaky) ReLU behind it, and its gradient, in plain PyTorch: what GPU kernels are held against.

Not one of the operators' kernels: `fastsketch.nn.InstanceNorm` goes to the framework where it has no kernel.
"""

import torch
from torch import Tensor


def instance_norm(
    x: Tensor,  # [B, C, H, W]
    slope: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # the same shape and dtype; mean and 1 / standard deviation [B, C]
    """Each map less its mean, over its standard deviation; what is below 0 times `slope` [L: `nn.InstanceNorm2d`]."""
    mean = x.mean((2, 3))
    scale = ((x - mean[..., None, None]).square().mean((2, 3)) + eps).rsqrt()
    z = (x - mean[..., None, None]) * scale[..., None, None]
    return torch.where(z > 0, z, slope * z), mean, scale


def instance_norm_gradient(
    grad_output: Tensor,  # [B, C, H, W]
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    slope: float,
) -> Tensor:  # [B, C, H, W]
    """scale · (g − mean(g) − z · mean(g · z)), g: `grad_output` through the ReLU, z: the normalised map."""
    z = (x - mean[..., None, None]) * scale[..., None, None]
    g = torch.where(z > 0, grad_output, slope * grad_output)
    means = g.mean((2, 3), keepdim=True), (g * z).mean((2, 3), keepdim=True)
    return scale[..., None, None] * (g - means[0] - z * means[1])
