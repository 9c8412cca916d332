"""Plain PyTorch: the specification of every kernel, and what each is tested against."""

from fastsketch.reference.attention import (
    attention_statistics_backward,
    attention_statistics_forward,
)
from fastsketch.reference.gather import (
    gather_layers,
    gather_patches_backward,
    gather_patches_forward,
    tap_patches_backward,
)
from fastsketch.reference.patch_nce import patch_nce_backward, patch_nce_forward
from fastsketch.reference.placing import place_positions
from fastsketch.reference.sampling import sample_patches

__all__ = [
    "attention_statistics_backward",
    "attention_statistics_forward",
    "gather_layers",
    "gather_patches_backward",
    "gather_patches_forward",
    "patch_nce_backward",
    "patch_nce_forward",
    "place_positions",
    "sample_patches",
    "tap_patches_backward",
]
