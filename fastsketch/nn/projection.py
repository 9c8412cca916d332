"""The projection head: one small MLP a tapped layer (docs/method.md section 1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from fastsketch._checks import FLOATING, check_list, check_tensor
from fastsketch.functional import project_patches
from fastsketch.nn.init import init_weights


def is_plain(module: nn.Module, kind: type) -> bool:
    """Whether it is of this very class, and no hooks of its own want to see it run."""
    return type(module) is kind and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def plain_parameters(mlp: nn.Module) -> tuple[Tensor, ...]:
    """Weights and biases of a Linear, ReLU, Linear; empty if it is anything else, or hooks want to see it run."""
    parts = tuple(mlp._modules.values())
    kinds = (nn.Linear, nn.ReLU, nn.Linear)
    if len(parts) != len(kinds) or _module._has_any_global_hook() or not is_plain(mlp, nn.Sequential):
        return ()
    if not all(is_plain(part, kind) for part, kind in zip(parts, kinds, strict=True)):
        return ()
    parameters = (parts[0].weight, parts[0].bias, parts[2].weight, parts[2].bias)
    return () if any(x is None for x in parameters) else parameters


class PatchProjection(nn.Module):
    """Two linear layers C → D → D with a ReLU between for each tapped layer [L: CUT's netF].

    Parameters carry CUT's names (`mlp_0.0.weight` …), so that its checkpoints load. Always computed in float32:
    at initialisation the projected norms are as small as 3e-5.

    Args:
        channels: C of each layer, at least one.
        dim: D, at least 1.
        gain: scale of the initial weights, above 0.

    Raises:
        ValueError: a `dim` below 1, no layers, or a gain that is not above 0.
    """

    def __init__(self, channels: Sequence[int], dim: int = 256, gain: float = 0.02) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if len(channels) == 0:
            raise ValueError("channels must hold at least one layer's, got none")
        self.num_layers = len(channels)
        for layer, count in enumerate(channels):
            mlp = nn.Sequential(nn.Linear(count, dim), nn.ReLU(), nn.Linear(dim, dim))
            init_weights(mlp, gain)
            setattr(self, f"mlp_{layer}", mlp)

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """Project.

        Args:
            patches: one [B, S, C] a layer.

        Returns:
            [L, B, S, D] in float32 (float64 for float64 parameters), not normalised.

        Raises:
            TypeError: no list of floating tensors.
            ValueError: not as many tensors as layers; as `fastsketch.project_patches`.
        """
        check_list("patches", patches)
        if len(patches) != self.num_layers:
            raise ValueError(f"patches must hold {self.num_layers} tensors, one a layer, got {len(patches)}")
        for layer, x in enumerate(patches):
            check_tensor(f"patches[{layer}]", x, FLOATING)
        if torch.is_autocast_enabled(patches[0].device.type):
            with torch.autocast(patches[0].device.type, enabled=False):
                return self._project(patches)
        return self._project(patches)

    def _project(self, patches: Sequence[Tensor]) -> Tensor:
        mlps = [self._modules[f"mlp_{layer}"] for layer in range(self.num_layers)]
        patches = [x.to(mlp[0].weight.dtype) for mlp, x in zip(mlps, patches, strict=True)]
        parameters = [plain_parameters(mlp) for mlp in mlps]
        if all(parameters):
            return project_patches(patches, [x for layer in parameters for x in layer])
        return torch.stack([mlp(x) for mlp, x in zip(mlps, patches, strict=True)])
