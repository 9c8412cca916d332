"""Instance norm together with the ReLU behind it: kernels of its own, where there are any, else the framework's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsketch.nn.own_kernels import kernel, usable
from fastsketch.ops import formula
from fastsketch.ops.eager import wants_formula


class _InstanceNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, slope: float, eps: float) -> Tensor:
        out, mean, scale = kernel("instance_norm", x.device)(x, slope, eps)
        ctx.save_for_backward(x, mean, scale)
        ctx.slope, ctx.eps = slope, eps
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        if wants_formula(grad):
            (made,) = formula.gradients(lambda x: _plain(x, ctx.slope, ctx.eps), ctx.saved_tensors[:1], (True,), grad)
            return made, None, None
        return kernel("instance_norm_gradient", grad.device)(grad, *ctx.saved_tensors, ctx.slope), None, None


def _plain(x: Tensor, slope: float, eps: float) -> Tensor:
    x = F.group_norm(x, x.shape[1], eps=eps)
    if slope == 0:
        return F.relu(x)
    return x if slope == 1 else F.leaky_relu(x, slope)


class InstanceNorm(nn.Module):
    """Each map less its mean, over its standard deviation; then a (leaky) ReLU, if one is asked for. No parameters.

    The kernels (`csrc/cpu/instance_norm*.h`, `fastsketch/triton/norm.py`) take channels-last maps as they are, and
    write one map where the framework's operators write two, both ways. These are group norm with a group a channel and
    the activation: the same function as `nn.InstanceNorm2d`, but 1.3 to 1.8 times as fast on a CPU, and right there:
    on torch 2.14 the CPU gradient of instance norm is wrong for one image and a channels-last incoming gradient.
    `fastsketch.nn.own_kernels` switches.

    Args:
        channels: C.
        slope: factor of what is below 0: 0 for a ReLU, 1 for none.
        eps: added to the variance [L: as `nn.InstanceNorm2d`].
    """

    def __init__(self, channels: int, slope: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels, self.slope, self.eps = channels, slope, eps
        self.own_kernel = True

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape, and by the kernels the same dtype, under autocast too.

        Raises:
            ValueError: another shape, or maps of one position or none, which have no variance.
        """
        if isinstance(x, Tensor) and (
            x.dim() != 4 or x.shape[1] != self.channels or x.shape[2] * x.shape[3] <= 1
        ):  # a tracer's stand-in has no numbers
            raise ValueError(f"x must be [B, {self.channels}, H, W], more than one position, got {list(x.shape)}")
        if usable("instance_norm", x, on=self.own_kernel):
            return _InstanceNorm.apply(x, self.slope, self.eps)
        return _plain(x, self.slope, self.eps)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.channels}, slope={self.slope}, eps={self.eps}"
