"""The memory layout of dense features: contiguous, or channels-last."""

from collections.abc import Sequence

import torch
from torch import Tensor

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the number of dimensions."""


def is_channels_last(features: Tensor) -> bool:
    """Whether they lie channels-last; what is contiguous as well counts as contiguous."""
    if features.is_contiguous() or features.dim() not in CHANNELS_LAST:
        return False
    return features.is_contiguous(memory_format=CHANNELS_LAST[features.dim()])


def layout_of(features: Tensor) -> torch.memory_format:
    """Channels-last where they are; else contiguous, which they may have to be made."""
    return CHANNELS_LAST[features.dim()] if is_channels_last(features) else torch.contiguous_format


def empty_features(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """Uninitialised features of `shape` in the asked layout, dtype and device of `like`."""
    layout = CHANNELS_LAST[len(shape)] if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
