"""fastsketch: fast patch-contrastive image translation, and pencil portraits from face photos."""

from fastsketch._backend import use_backend
from fastsketch.functional import (
    attention_statistics,
    gather_layers,
    gather_patches,
    local_density,
    patch_nce,
    place_positions,
    project_and_normalize,
    project_patches,
    sample_patches,
    tap_patches,
)

__version__ = "0.1.0"

__all__ = [
    "attention_statistics",
    "gather_layers",
    "gather_patches",
    "local_density",
    "patch_nce",
    "place_positions",
    "project_and_normalize",
    "project_patches",
    "sample_patches",
    "tap_patches",
    "use_backend",
]
