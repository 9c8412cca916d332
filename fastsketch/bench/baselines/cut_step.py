"""A whole training step as CUT takes it [L: Park et al., ECCV 2020], on the same networks and losses as fastsketch's.

Keys come from encoding the source again, with a graph; positions from np.random.permutation, layer by layer; each layer
is projected by itself; patches are indexed out of the features, so that a dense gradient goes back; instance norm is
torch's; Adam runs by its defaults.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adam

from fastsketch.bench.baselines import cut
from fastsketch.nn import LeastSquaresGANLoss
from fastsketch.nn.convolution import use_winograd
from fastsketch.nn.instance_norm import InstanceNorm
from fastsketch.nn.own_kernels import use_own_kernels
from fastsketch.training.translator import Translator


def with_instance_norm(network: nn.Module) -> nn.Module:
    """A copy with `nn.InstanceNorm2d` and a ReLU for each norm of ours, the same function, as in CUT."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                relu = nn.Identity() if child.slope == 1 else nn.LeakyReLU(child.slope) if child.slope else nn.ReLU()
                setattr(module, name, nn.Sequential(nn.InstanceNorm2d(child.channels), relu))
    return network


class CutStep:
    """CUT's `optimize_parameters`.

    Args:
        translator: its networks are copied, its weights of losses taken over.
        instance_norm: torch's instance norm, as in CUT; without, the networks' own norm (for comparing gradients: on a
            CPU torch 2.14 computes that of instance norm wrongly for one image and a channels-last gradient).
    """

    def __init__(self, translator: Translator, instance_norm: bool = True) -> None:
        config = self.config = translator.config
        copied = with_instance_norm if instance_norm else copy.deepcopy
        self.generator, self.discriminator = copied(translator.generator), copied(translator.discriminator)
        projection = copy.deepcopy(translator.projection)
        self.mlps = nn.ModuleList(getattr(projection, f"mlp_{i}") for i in range(projection.num_layers))
        self.adversarial, self.pixel = LeastSquaresGANLoss(), nn.L1Loss()
        self.perceptual = copy.deepcopy(translator._perceptual[0]) if config.lambda_perceptual else None
        for network in (self.generator, self.discriminator, self.perceptual):
            if network is not None:
                use_winograd(network, False)  # CUT's convolutions are the framework's
                use_own_kernels(network, False)  # and so is the rest
        networks = self.generator, self.mlps, self.discriminator
        self.optimizers = [Adam(network.parameters(), config.lr, config.betas) for network in networks]

    def encode(self, image: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Features of the tapped layers."""
        model, taps, features = self.generator.model, self.generator.tap_layers, []
        x = image.expand(-1, 3, -1, -1)
        for number, layer in enumerate(model[: taps[-1] + 1]):
            x = layer(x)
            if number in taps:
                features.append(x)
            if number == 0 and mask is not None:
                x = torch.cat((x, layer(mask)), dim=1)
        return features

    def contrast(self, source: Tensor, drawn: Tensor, mask: Tensor | None, ids: Sequence[Tensor] | None) -> Tensor:
        """Patch contrastive loss of one picture pair, averaged over layers."""
        query, key = self.encode(drawn, mask), self.encode(source, mask)
        ids = cut.draw_ids(key, self.config.num_patches) if ids is None else ids
        keys, queries = (cut.project(features, ids, self.mlps) for features in (key, query))
        losses = [cut.patch_nce(q, k, source.shape[0]).mean() for q, k in zip(queries, keys, strict=True)]
        return sum(losses) / len(losses)

    def draw(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Drawings of the photos, and of the sketches (for the identity term), in one pass; and the mask, if used."""
        mask = batch["mask"] if self.config.mask else None
        sketch = batch["sketch"].expand(-1, 3, -1, -1)
        real = torch.cat((batch["photo"], sketch))
        drawings = self.generator(real, None if mask is None else torch.cat((mask, mask)))
        photos, sketches = drawings.chunk(2)
        return photos, sketches, mask

    def discriminator_loss(self, drawn: Tensor, sketch: Tensor) -> Tensor:
        """½(drawings as fake + sketches as real)."""
        fake = self.adversarial(self.discriminator(drawn.detach()), False)
        return (fake + self.adversarial(self.discriminator(sketch), True)) / 2

    def generator_losses(
        self,
        batch: dict[str, Tensor],
        drawn: Tensor,
        identity: Tensor,
        mask: Tensor | None,
        ids: tuple[Sequence[Tensor], Sequence[Tensor]] | tuple[None, None] = (None, None),
    ) -> dict[str, Tensor]:
        """Each weighted term by name; `ids` of the two contrastive terms, or drawn."""
        config = self.config
        sketch = batch["sketch"]
        losses = {"gan": config.lambda_gan * self.adversarial(self.discriminator(drawn), True)}
        weight = config.lambda_nce / 2
        losses["nce"] = weight * self.contrast(batch["photo"], drawn, mask, ids[0])
        losses["nce_identity"] = weight * self.contrast(sketch, identity, mask, ids[1])
        if config.lambda_pixel:
            losses["pixel"] = config.lambda_pixel * self.pixel(drawn, sketch)
        if self.perceptual is not None:
            losses["perceptual"] = config.lambda_perceptual * self.perceptual(drawn, sketch)
        return losses

    def step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Update the discriminator, then generator and projection."""
        drawn, identity, mask = self.draw(batch)
        generator, projection, discriminator = self.optimizers
        self.discriminator.requires_grad_(True)
        discriminator.zero_grad()
        judged = self.discriminator_loss(drawn, batch["sketch"])
        judged.backward()
        discriminator.step()

        self.discriminator.requires_grad_(False)
        generator.zero_grad()
        projection.zero_grad()
        losses = self.generator_losses(batch, drawn, identity, mask)
        sum(losses.values()).backward()
        generator.step()
        projection.step()
        return {name: loss.item() for name, loss in {"discriminator": judged, **losses}.items()}
