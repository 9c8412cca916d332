"""Fréchet Inception distance, by torchmetrics with torch-fidelity's Inception network, or not at all.

The name FID stands for features of the 2015 TensorFlow Inception network; any other network gives other numbers, so
none is ever put in its place.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from fastsketch.errors import FastsketchError, first_line
from fastsketch.weights import WeightsNotFound, hub_folder, read_weights

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


def find_inception(inception: str | Path | None = None) -> Path:
    """The Inception weights file: `inception`, else the one in torch-fidelity's cache; never downloads.

    Raises:
        WeightsNotFound: there is none, or torch-fidelity, which has the network, is not installed.
        FastsketchError: `inception` does not exist or cannot be read.
    """
    path = hub_folder() / INCEPTION_FILE if inception is None else Path(inception)
    if not path.is_file():
        if inception is not None:
            raise FastsketchError(f"{path}: no such Inception weights file")
        raise WeightsNotFound(
            f"no Inception weights: looked for {path}; give torch-fidelity's {INCEPTION_FILE} (--inception)"
        )
    if importlib.util.find_spec("torch_fidelity") is None:
        raise WeightsNotFound("the Inception network is in the package torch-fidelity, which is not installed")
    return path


def frechet_distance(feature: int | nn.Module, inception: Path | None = None) -> FrechetInceptionDistance:
    """torchmetrics' FID over 2048 Inception features, or (for tests) over a given feature network."""
    if isinstance(feature, nn.Module):
        return FrechetInceptionDistance(feature=feature, input_img_size=(3, 32, 32))
    assert inception is not None
    # torch-fidelity unpickles without restrictions: let through only what the restricted loader accepts.
    read_weights(inception)
    try:
        with torch.random.fork_rng(devices=[]):
            return FrechetInceptionDistance(feature=feature, feature_extractor_weights_path=str(inception))
    except (RuntimeError, KeyError, TypeError) as error:
        reason = first_line(error)
        raise FastsketchError(f"{inception}: not torch-fidelity's Inception weights ({reason})") from error


class SubsetDistances:
    """FID of every subset and over all, from one pass of the network over each image.

    Args:
        inception: weights file from `find_inception`.
        device: where to compute features.
        feature: another feature network [B, 3, H, W] uint8 -> [B, D], for tests only.
    """

    def __init__(
        self, inception: Path | None, device: torch.device | str = "cpu", *, feature: nn.Module | None = None
    ) -> None:
        self._total = frechet_distance(2048 if feature is None else feature, inception).to(device)
        self._features: dict[tuple[str, bool], list[Tensor]] = {}

    @torch.inference_mode()
    def update(self, subsets: list[str], generated: Tensor, reference: Tensor) -> None:  # [B, 3, H, W] twice
        """Adds a batch of float32 images in [0, 1]."""
        for images, real in ((generated, False), (reference, True)):
            features = self._total.inception((images * 255.0).round().to(torch.uint8)).double().cpu()
            for subset, row in zip(subsets, features, strict=True):
                self._features.setdefault((subset, real), []).append(row)

    def compute(self) -> dict[str | None, float]:
        """FID by subset, under None over all; a set of fewer than two images has no entry."""
        names = sorted({subset for subset, _ in self._features})
        groups: dict[str | None, list[str]] = {name: [name] for name in names}
        groups[None] = names
        results = {}
        for group, members in groups.items():
            stacks = {
                real: torch.stack([row for name in members for row in self._features[name, real]])
                for real in (False, True)
            }
            if len(stacks[True]) < 2:
                continue
            width = stacks[True].shape[1]
            metric = FrechetInceptionDistance(feature=_Features(width))
            for real, rows in stacks.items():
                metric.update(rows, real=real)
            distance = float(metric.compute())
            if not math.isfinite(distance):
                raise FastsketchError(f"FID of {'all images' if group is None else group} is not finite")
            results[group] = max(0.0, distance)  # rounding can leave equal sets a little below zero
        return results


class _Features(nn.Module):
    """Lets torchmetrics take features that are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
