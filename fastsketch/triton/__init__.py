"""The kernels in Triton, for CUDA tensors: same names and signatures as `fastsketch.reference`, and some that networks
use beside these.

They run from compute capability 8.0 on, and in Triton's interpreter on CPU tensors (TRITON_INTERPRET=1 before the first
import). float64, which on a GPU is for checking, and empty tensors are handed to the reference.
"""

from fastsketch.triton.attention import attention_statistics_backward, attention_statistics_forward
from fastsketch.triton.features import feature_distance, feature_distance_gradient
from fastsketch.triton.gather import (
    gather_layers,
    gather_patches_backward,
    gather_patches_forward,
    tap_patches_add_,
    tap_patches_backward,
)
from fastsketch.triton.norm import instance_norm, instance_norm_gradient
from fastsketch.triton.patch_nce import patch_nce_backward, patch_nce_forward
from fastsketch.triton.placing import place_positions
from fastsketch.triton.sampling import sample_patches
from fastsketch.triton.stencils import (
    blur_downsample,
    blur_downsample_gradient,
    blur_upsample,
    blur_upsample_gradient,
    reflection_pad,
    reflection_pad_gradient,
)

__all__ = [
    "attention_statistics_backward",
    "attention_statistics_forward",
    "blur_downsample",
    "blur_downsample_gradient",
    "blur_upsample",
    "blur_upsample_gradient",
    "feature_distance",
    "feature_distance_gradient",
    "gather_layers",
    "gather_patches_backward",
    "gather_patches_forward",
    "instance_norm",
    "instance_norm_gradient",
    "patch_nce_backward",
    "patch_nce_forward",
    "place_positions",
    "reflection_pad",
    "reflection_pad_gradient",
    "sample_patches",
    "tap_patches_add_",
    "tap_patches_backward",
]
