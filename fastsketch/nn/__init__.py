"""Modules of the method: attention, sampling, projection, networks and losses."""

from fastsketch.nn.attention import DualAttention
from fastsketch.nn.discriminator import PatchDiscriminator
from fastsketch.nn.generator import EncoderFeatures, ResnetGenerator
from fastsketch.nn.losses import (
    LeastSquaresGANLoss,
    MultiLayerPatchNCE,
    PerceptualLoss,
    PixelLoss,
)
from fastsketch.nn.projection import PatchProjection
from fastsketch.nn.sampler import PatchSample, StructureSampler, segment_regions

__all__ = [
    "DualAttention",
    "EncoderFeatures",
    "LeastSquaresGANLoss",
    "MultiLayerPatchNCE",
    "PatchDiscriminator",
    "PatchProjection",
    "PatchSample",
    "PerceptualLoss",
    "PixelLoss",
    "ResnetGenerator",
    "StructureSampler",
    "segment_regions",
]
