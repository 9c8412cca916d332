"""The losses of docs/method.md sections 1, 5 and 7 as modules."""

from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsketch._checks import FLOATING, INTEGER, check_choice, check_like, check_tensor
from fastsketch.functional import Negatives, patch_nce
from fastsketch.nn.feature_distance import normalized_distance
from fastsketch.nn.max_pool import with_halving_pools

PerceptualDistance = Literal["normalized", "l1"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]: what torchvision's networks take is standardised by these."""


class MultiLayerPatchNCE(nn.Module):
    """Patch contrastive loss of all tapped layers in one call: mean over queries, then over layers.

    Args:
        temperature: τ.
        negatives: as `fastsketch.patch_nce`; ``batch`` stays within a layer.
    """

    def __init__(self, temperature: float = 0.07, negatives: Negatives = "image") -> None:
        super().__init__()
        self.temperature = temperature
        self.negatives = negatives

    def forward(
        self,
        query: Tensor,  # [L, B, S, D]
        key: Tensor,  # [L, B, S, D]
        *,
        region: Tensor | None = None,  # [B, S]
        weight: Tensor | None = None,  # [B, S]
    ) -> Tensor:
        """The loss of each image.

        Args:
            query: [L, B, S, D] projected patches of the generated picture, not normalised.
            key: [L, B, S, D] of the source; detached here.
            region: integer [B, S]; used by the regional choices of negatives only.
            weight: [B, S] floating factor of each query, finite, non-negative.

        Returns:
            float32 [B] (float64 for float64 input): mean over layers of the (weighted) mean over queries, 0 of none;
            average it for the batch's loss.

        Raises:
            TypeError, ValueError: as `fastsketch.patch_nce`; a weight that is not [B, S].
        """
        check_tensor("query", query, FLOATING)
        check_tensor("key", key, FLOATING)
        if query.dim() != 4:
            raise ValueError(f"query must be [L, B, S, D], got {list(query.shape)}")
        check_like("key", key, query.shape, query)
        layers, batch, samples, dim = query.shape
        if region is not None:
            check_tensor("region", region, INTEGER)
            check_like("region", region, (batch, samples), query)
        regional = self.negatives in ("same_region", "other_regions")
        if weight is not None and (not isinstance(weight, Tensor) or tuple(weight.shape) != (batch, samples)):
            got = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(f"weight must be a tensor of shape [{batch}, {samples}], got {got}")
        rows = (layers, batch * samples, dim) if self.negatives == "batch" else (layers * batch, samples, dim)
        loss = patch_nce(
            query.reshape(rows),
            key.detach().reshape(rows),
            temperature=self.temperature,
            negatives="image" if self.negatives == "batch" else self.negatives,
            region=region.repeat(layers, 1) if regional and region is not None else None,
            weight=None if weight is None else weight.expand(layers, -1, -1).reshape(rows[:2]),
            normalize=True,
            reduction="none",
        ).view(layers, batch, samples)
        if loss.numel() == 0:
            return loss.sum((0, 2))
        if weight is None:
            return loss.mean((0, 2))
        total = weight.to(loss.dtype).sum(1)
        return loss.sum(2).mean(0) / torch.where(total > 0, total, 1)


class LeastSquaresGANLoss(nn.Module):
    """LSGAN: mean squared distance of the scores to 1 (real) or 0 (fake) [L: Mao et al., ICCV 2017]."""

    def forward(self, score: Tensor, is_real: bool) -> Tensor:
        """A float32 scalar for floating scores of any shape.

        Raises:
            TypeError: a score that is no tensor, or not floating.
        """
        check_tensor("score", score, FLOATING)
        return (score.float() - float(is_real)).square().mean()


def _check_pictures(generated: Tensor, target: Tensor) -> None:
    check_tensor("generated", generated, FLOATING)
    check_tensor("target", target, FLOATING)
    check_like("target", target, generated.shape, generated)


class PixelLoss(nn.L1Loss):
    """Mean absolute difference of generated and paired sketch [P: pixel-wise; D: L1]."""

    def forward(self, generated: Tensor, target: Tensor) -> Tensor:
        """Compare two pictures [B, C, H, W], floating, of one shape: a scalar in their dtype.

        Raises:
            TypeError: no tensors, or not floating.
            ValueError: several shapes or devices.
        """
        _check_pictures(generated, target)
        return super().forward(generated, target)


class PerceptualLoss(nn.Module):
    """Distance of VGG16 features, averaged over four layers [P: perceptual; D; L: Johnson et al., ECCV 2016].

    Args:
        vgg16_features: torchvision's `vgg16().features` (or its head), frozen here. It comes with ImageNet weights
            from `fastsketch.weights.load_vgg16_features`.
        distance: ``normalized``: `fastsketch.nn.feature_distance.normalized_distance` [D]; ``l1``: mean absolute
            difference.

    Raises:
        ValueError: an unknown distance.
    """

    LAYERS: ClassVar[dict[str, int]] = {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22}

    def __init__(self, vgg16_features: nn.Sequential, distance: PerceptualDistance = "normalized") -> None:
        super().__init__()
        check_choice("distance", distance, get_args(PerceptualDistance))
        self.normalized, self.own_kernel = distance == "normalized", True
        head = vgg16_features[: max(self.LAYERS.values()) + 1].eval().requires_grad_(False)
        self.features = with_halving_pools(head)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def _taps(self, image: Tensor) -> list[Tensor]:
        x = ((image.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.std
        taps = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.LAYERS.values():
                taps.append(x)
        return taps

    def forward(self, generated: Tensor, target: Tensor) -> Tensor:
        """Compare.

        Args:
            generated: [B, 1 or 3, H, W] in [-1, 1]; sides at least 16.
            target: like `generated`; no gradient.

        Returns:
            float32 scalar.

        Raises:
            TypeError: no tensors, or not floating.
            ValueError: another shape, several shapes or devices, or sides below 16.
        """
        _check_pictures(generated, target)
        if generated.dim() != 4 or generated.shape[1] not in (1, 3) or min(generated.shape[2:]) < 16:
            raise ValueError(f"generated must be [B, 1 or 3, H, W], sides at least 16, got {list(generated.shape)}")
        with torch.no_grad():
            wanted = self._taps(target)
        pairs = zip(self._taps(generated), wanted, strict=True)
        return torch.stack([self._distance(a, b) for a, b in pairs]).mean()

    def _distance(self, features: Tensor, wanted: Tensor) -> Tensor:
        if self.normalized:
            return normalized_distance(features, wanted, self.own_kernel).mean()
        return F.l1_loss(features.float(), wanted.float())
