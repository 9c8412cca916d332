"""Dual-branch attention and the structure distribution map it gives (docs/method.md section 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsketch._checks import FLOATING, check_tensor
from fastsketch.functional import attention_statistics
from fastsketch.nn.attend import attend
from fastsketch.reference.precision import widened


def _minmax(score: Tensor) -> Tensor:  # [B, N] -> [B, N]
    """Scale each row to [0, 1]; a constant row becomes 0."""
    low, high = score.amin(1, keepdim=True), score.amax(1, keepdim=True)
    return (score - low) / torch.where(high > low, high - low, 1)


def _variation(values: Tensor) -> Tensor:  # [B, C, H, W] -> [B, H·W]
    """Norm over channels of the difference from the 3×3 mean; at the border the mean is over what lies inside."""
    mean = F.avg_pool2d(values, 3, stride=1, padding=1, count_include_pad=False)
    return torch.linalg.vector_norm(values - mean, dim=1).flatten(1)


class DualAttention(nn.Module):
    """A residual block of a spatial and a channel attention branch [P: dual-branch; L: DANet, CVPR 2019; D].

    out = F + γ_s·softmax(QKᵀ/√d)·V + γ_c·softmax(rowmax(FFᵀ) − FFᵀ)·F, with γ_s and γ_c learnt from 0.
    The map is M = ½·minmax(|δ attention received|) + ½·minmax(‖δ channel branch‖), δx = x less its 3×3 mean [D].

    Args:
        channels: C of the features.
        reduction: d = C / reduction, at least 1.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.query = nn.Conv2d(channels, hidden, 1)
        self.key = nn.Conv2d(channels, hidden, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.spatial_gain = nn.Parameter(torch.zeros(()))
        self.channel_gain = nn.Parameter(torch.zeros(()))
        self.own_kernel = True

    def forward(self, features: Tensor, return_map: bool = False) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            features: [B, C, H, W].
            return_map: also compute the structure map.

        Returns:
            The new features, like the given ones, and the map: [B, H, W] float32 in [0, 1], detached (or None).

        Raises:
            TypeError: features that are no tensor, or not floating.
            ValueError: another shape.
        """
        check_tensor("features", features, FLOATING)
        channels = self.query.in_channels
        if features.dim() != 4 or features.shape[1] != channels or 0 in features.shape[2:]:
            raise ValueError(f"features must be [B, {channels}, H, W], H and W at least 1, got {list(features.shape)}")
        query, key, value = (branch(features).flatten(2) for branch in (self.query, self.key, self.value))  # [B, ·, N]
        spatial = attend(query, key, value, self.own_kernel).view_as(features)
        channel = self._channel_branch(features)
        out = features + self.spatial_gain * spatial + self.channel_gain * channel
        structure = self._map(query, key, channel) if return_map else None
        return out, structure

    @staticmethod
    def _channel_branch(features: Tensor) -> Tensor:  # [B, C, H, W]
        flat = features.flatten(2)
        # The Gram matrix sums over all positions: too large for half precision.
        with torch.autocast(features.device.type, enabled=False):
            wide = widened(flat)
            energy = wide @ wide.mT
            weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
        return (weights.to(flat.dtype) @ flat).view_as(features)

    @staticmethod
    @torch.no_grad()
    def _map(query: Tensor, key: Tensor, channel: Tensor) -> Tensor:  # [B, H, W]
        received, _ = attention_statistics(query.mT.float(), key.mT.float())
        batch, _, *size = channel.shape
        spatial = received.view(batch, 1, *size)
        structure = (_minmax(_variation(spatial)) + _minmax(_variation(channel.float()))) / 2
        return structure.view(batch, *size)
