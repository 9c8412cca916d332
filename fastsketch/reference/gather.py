"""Patches at flat positions of a feature map, and the two ways back: a dense gradient, or a tap."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsketch.reference.layout import empty_features
from fastsketch.reference.precision import widened


def _at_channels(index: Tensor, channels: int) -> Tensor:  # [B, S] -> [B, C, S]
    return index[:, None, :].expand(-1, channels, -1)


def gather_patches_forward(
    features: Tensor,  # [B, C, *spatial]
    index: Tensor,  # [B, S] int64
) -> Tensor:  # [B, S, C]
    """The feature vectors at the positions, contiguous."""
    flat = features.flatten(2)
    return flat.gather(2, _at_channels(index, flat.shape[1])).mT.contiguous()


def gather_layers(
    features: Sequence[Tensor],  # L times [B, C_l, *spatial_l]
    index: Sequence[Tensor],  # L times [B, S] int64
) -> list[Tensor]:  # L times [B, S, C_l]
    """`gather_patches_forward` of each layer."""
    return [gather_patches_forward(layer, i) for layer, i in zip(features, index, strict=True)]


def _scatter_add(base: Tensor, grad_patches: Tensor, index: Tensor) -> Tensor:
    """`base` plus the patch gradients at their positions, summed in the accumulation dtype."""
    flat = widened(base).flatten(2)
    values = grad_patches.to(flat.dtype).mT
    total = flat.scatter_add(2, _at_channels(index, flat.shape[1]), values)
    return torch.empty_like(base).copy_(total.view(base.shape))


def gather_patches_backward(
    grad_patches: Tensor,  # [B, S, C]
    index: Tensor,  # [B, S] int64
    spatial: Sequence[int],
    channels_last: bool,
) -> Tensor:  # [B, C, *spatial]
    """The dense gradient of the features, in their layout; positions drawn twice add up."""
    shape = (grad_patches.shape[0], grad_patches.shape[2], *spatial)
    return _scatter_add(empty_features(grad_patches, shape, channels_last).zero_(), grad_patches, index)


def tap_patches_backward(
    grad_features: Tensor,  # [B, C, *spatial]
    grad_patches: Tensor,  # [B, S, C]
    index: Tensor,  # [B, S] int64
) -> Tensor:  # [B, C, *spatial]
    """A new tensor: the arriving feature gradient with the patch gradients added at their positions."""
    return _scatter_add(grad_features, grad_patches, index)
