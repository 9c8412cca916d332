"""LPIPS, by the lpips package, with its backbone filled from weights that are found locally."""

from __future__ import annotations

import warnings
from pathlib import Path

import lpips
import torch
from torch import Tensor, nn

from fastsketch.weights import load_alexnet_features, load_vgg16_features

_LOADERS = {"alex": load_alexnet_features, "vgg": load_vgg16_features}


class Perceptual(nn.Module):
    """LPIPS version 0.1 [L: Zhang et al., CVPR 2018]: lower is better, 0 for equal images.

    Args:
        net: "alex" or "vgg".
        weights_dir: folder with the backbone's ImageNet weights, see `fastsketch.weights`; the linear heads come with
            the lpips package.
        download: whether torchvision may download the backbone.

    Raises:
        ValueError: unknown net.
        WeightsNotFound: the backbone's weights are not to be had.
    """

    def __init__(self, net: str, weights_dir: str | Path | None = None, *, download: bool = True) -> None:
        super().__init__()
        if net not in _LOADERS:
            raise ValueError(f"net must be one of {', '.join(_LOADERS)}, got {net!r}")
        features = _LOADERS[net](weights_dir, download=download)
        # lpips fills its backbone with random numbers first: keep them out of the caller's generator.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it builds the backbone by torchvision's former argument names
            self.lpips = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        self._fill(features)
        self.eval().requires_grad_(False)

    def _fill(self, features: nn.Sequential) -> None:
        """Copies the convolutions in order: lpips cuts the same stack into slices and keeps its order."""
        convolutions = [m for m in features if isinstance(m, nn.Conv2d)]
        slices = [m for m in self.lpips.net.modules() if isinstance(m, nn.Conv2d)]
        if [m.weight.shape for m in convolutions] != [m.weight.shape for m in slices]:
            raise RuntimeError("the backbone of the installed lpips package has another architecture than expected")
        for source, target in zip(convolutions, slices, strict=True):
            target.load_state_dict(source.state_dict())

    @torch.inference_mode()
    def forward(self, generated: Tensor, reference: Tensor) -> Tensor:  # [B, 3, H, W] twice -> [B]
        """Distance of each pair of images.

        Args:
            generated: [B, 3, H, W] float32 in [0, 1].
            reference: the same shape and range.

        Returns:
            [B] float32, lower is better.
        """
        return self.lpips(generated, reference, normalize=True).flatten()
