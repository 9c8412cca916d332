"""Normalisation of all layers' projected patches in one kernel, where there is one; else by the plain formula."""

import torch
from torch import Tensor
from torch.autograd import Function

from fastsketch import _backend
from fastsketch.ops.eager import nothing_looks_on
from fastsketch.reference.normalization import normalize_layers as plain_formula


class NormalizeLayers(Function):
    """The kernels as a differentiable function; each layer is a tensor of its own, no view."""

    @staticmethod
    def forward(ctx, x: Tensor):
        """Keep the input alone."""
        ctx.save_for_backward(x)
        return tuple(_backend.optional_kernel("normalize_layers", "patch_nce_forward", x.device)(x))

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        """By the kernel; by the plain formula where a graph of the gradients is wanted."""
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.autograd.grad(plain_formula(x), x, grads, create_graph=True)[0]
        kernel = _backend.optional_kernel("normalize_layers_gradient", "patch_nce_forward", x.device)
        return kernel(grads, x)


def normalize_layers(x: Tensor) -> list[Tensor]:
    """`fastsketch.reference.normalization.normalize_layers`, by a kernel where one fits."""
    if nothing_looks_on(x) and _backend.optional_kernel("normalize_layers", "patch_nce_forward", x.device):
        return list(NormalizeLayers.apply(x))
    return plain_formula(x)
