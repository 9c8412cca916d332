"""The networks of a run and their losses for one batch: docs/method.md's total, term by term."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastsketch.functional import gather_layers
from fastsketch.nn import (
    EncoderFeatures,
    LeastSquaresGANLoss,
    MultiLayerPatchNCE,
    PatchDiscriminator,
    PatchProjection,
    PatchSample,
    PerceptualLoss,
    PixelLoss,
    ResnetGenerator,
    StructureSampler,
)
from fastsketch.nn.convolution import as_winograd, use_winograd
from fastsketch.training.config import TrainConfig
from fastsketch.training.distributed import patch_nce_over_ranks
from fastsketch.weights import WeightsNotFound, load_vgg16_features, random_vgg16_features

PHOTO_CHANNELS = 3


def build_generator(config: TrainConfig) -> ResnetGenerator:
    """The generator that these settings describe."""
    return ResnetGenerator(
        PHOTO_CHANNELS,
        config.sketch_channels,
        config.width,
        config.blocks,
        mask_channel=config.mask,
        attention=config.attention,
        demodulated=config.demodulated,
        gain=config.init_gain,
    )


def _vgg16_features(config: TrainConfig) -> nn.Sequential:
    if config.perceptual_weights == "imagenet":
        try:
            return load_vgg16_features(config.weights_dir)
        except WeightsNotFound as error:
            raise WeightsNotFound(
                f"{error} Or train without them: --perceptual-weights random, or --lambda-perceptual 0."
            ) from error
    return random_vgg16_features()


class Translator(nn.Module):
    """Generator, discriminator and projection, and what a step asks of them.

    Args:
        config: the run's settings.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = build_generator(config)
        self.discriminator = PatchDiscriminator(config.sketch_channels, config.discriminator_width)
        self.projection = PatchProjection(self.generator.tap_channels, config.projection_dim)
        self.sampler = structure_sampler(config)
        self.contrast = MultiLayerPatchNCE(config.temperature, config.negatives)
        self.adversarial = LeastSquaresGANLoss()
        self.pixel = PixelLoss()
        # In a list, so that its frozen weights are neither saved nor optimised.
        self._perceptual = []
        if config.lambda_perceptual:
            self._perceptual.append(PerceptualLoss(as_winograd(_vgg16_features(config)), config.perceptual_distance))

    def to(self, *args, **kwargs) -> "Translator":
        """Move everything, the perceptual network included."""
        for module in self._perceptual:
            module.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def use_winograd(self, on: bool) -> None:
        """Switch the convolutions of all networks, the perceptual one included (`fastsketch.nn.convolution`)."""
        for network in (self, *self._perceptual):
            use_winograd(network, on)

    def networks(self) -> dict[str, nn.Module]:
        """What is trained and saved."""
        return {"generator": self.generator, "discriminator": self.discriminator, "projection": self.projection}

    def translate(
        self, batch: dict[str, Tensor], rng: torch.Generator, flipped: bool | None = None
    ) -> tuple[Tensor, Tensor, EncoderFeatures, bool]:
        """Draw the batch's photos, and with the identity term its sketches, in one pass.

        Args:
            batch: photo [B, 3, H, W] and sketch [B, C, H, W] in [-1, 1], mask (and for unpaired data sketch_mask)
                [B, 1, H, W] in [0, 1].
            rng: source of FastCUT's flip where that is not given (asking waits for the device).
            flipped: mirror what the generator reads, FastCUT's flip equivariance. None: half of the calls, with it.

        Returns:
            (drawings, masks, source features, flipped): drawings [B or 2B, C, H, W], the photos' first; features
            are never mirrored, drawings are if `flipped`.
        """
        source, mask = batch["photo"], batch["mask"]
        if self.config.identity and self.config.lambda_nce:
            source = torch.cat((source, batch["sketch"].expand(-1, PHOTO_CHANNELS, -1, -1)))
            mask = torch.cat((mask, batch.get("sketch_mask", mask)))
        masks = mask if self.config.mask else None
        if flipped is None:
            flipped = self.config.flip_equivariance and bool(torch.rand((), generator=rng, device=rng.device) < 0.5)
        if not flipped:
            drawings, features = self.generator(source, masks, return_features=True)
            return drawings, mask, features, flipped
        with torch.no_grad():
            features = self.generator.encode(source, masks)
        drawings = self.generator(source.flip(-1), None if masks is None else masks.flip(-1))
        return drawings, mask, features, flipped

    def discriminator_loss(self, drawings: Tensor, sketch: Tensor) -> Tensor:
        """½(LSGAN of the drawings as fake + of the sketches as real)."""
        fake = self.adversarial(self.discriminator(drawings.detach()), False)
        real = self.adversarial(self.discriminator(sketch), True)
        return (fake + real) / 2

    def generator_losses(
        self,
        batch: dict[str, Tensor],
        drawings: Tensor,
        mask: Tensor,
        features: EncoderFeatures,
        flipped: bool,
        rng: torch.Generator,
    ) -> dict[str, Tensor]:
        """Each weighted term of the generator's total, by name: gan, nce, nce_identity, pixel, perceptual."""
        config, losses = self.config, {}
        drawn = drawings[: batch["photo"].shape[0]]
        if config.lambda_gan:
            losses["gan"] = config.lambda_gan * self.adversarial(self.discriminator(drawn), True)
        if config.lambda_nce:
            each = self._contrast(drawings, mask, features, flipped, rng)
            if config.identity:
                photos, sketches = each.chunk(2)
                losses["nce"] = config.lambda_nce / 2 * photos.mean()
                losses["nce_identity"] = config.lambda_nce / 2 * sketches.mean()
            else:
                losses["nce"] = config.lambda_nce * each.mean()
        if config.lambda_pixel:
            losses["pixel"] = config.lambda_pixel * self.pixel(drawn, batch["sketch"])
        if config.lambda_perceptual:
            losses["perceptual"] = config.lambda_perceptual * self._perceptual[0](drawn, batch["sketch"])
        return losses

    def _contrast(
        self, drawings: Tensor, mask: Tensor, features: EncoderFeatures, flipped: bool, rng: torch.Generator
    ) -> Tensor:  # [B or 2B]
        """Patch contrastive loss of each drawing against its source."""
        sample, positions = self.draw_positions(features.structure_or_zeros, mask, features, rng)
        with torch.no_grad():
            keys = self.projection(gather_layers(features.layers, positions))
        masks = mask if self.config.mask else None
        if flipped:
            masks = None if masks is None else masks.flip(-1)
            positions = [mirror(p, w) for p, (_, w) in zip(positions, features.sizes, strict=True)]
        queries = self.projection(self.generator.encode_patches(drawings, masks, positions))
        if self.config.negatives == "batch" and dist.is_initialized():
            return self._contrast_over_ranks(queries, keys, sample.weight)
        return self.contrast(queries, keys, region=sample.region, weight=sample.weight)

    def draw_positions(
        self, structure: Tensor, mask: Tensor, features: EncoderFeatures, rng: torch.Generator
    ) -> tuple[PatchSample, list[Tensor]]:
        """The positions of a step: on the map, and on each tapped layer."""
        # A batch that is not finite shows in its losses; its positions are positions all the same.
        structure = structure.nan_to_num(0.0)
        # Without the mask input the background is not known to the method either: no region of its own.
        sample = self.sampler(structure, mask if self.config.mask else None, generator=rng)
        return sample, sample.on(features.sizes, self.generator.tap_borders, rng)

    def _contrast_over_ranks(self, queries: Tensor, keys: Tensor, weight: Tensor | None) -> Tensor:  # [B or 2B]
        """`batch` negatives: the keys of all processes."""
        layers, batch, samples, _ = queries.shape
        loss = patch_nce_over_ranks(queries.flatten(1, 2), keys.flatten(1, 2), self.config.temperature)
        loss = loss.view(layers, batch, samples)
        if weight is None:
            return loss.mean((0, 2))
        return (loss * weight).sum(2).mean(0) / weight.sum(1)


def mirror(index: Tensor, width: int) -> Tensor:
    """Flat positions on a grid of this width, mirrored left to right."""
    return index - index % width + (width - 1 - index % width)


def structure_sampler(config: TrainConfig) -> StructureSampler:
    """The sampler of a run with these settings."""
    return StructureSampler(
        config.num_patches,
        regions=config.regions,
        dynamic=config.dynamic,
        num_regions=config.num_regions,
        window=config.density_window,
        threshold=config.density_threshold,
        boost=config.density_boost,
        multiplicity=config.multiplicity,
    )
