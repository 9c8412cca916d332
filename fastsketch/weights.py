"""Finding pretrained weights: a folder first, then torchvision's own cache, then (if let) a download.

Only safetensors files and `torch.load(weights_only=True)` are used: no file can run code.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from fastsketch.errors import FastsketchError, first_line

WEIGHTS_VARIABLE = "FASTSKETCH_WEIGHTS"


class WeightsNotFound(FastsketchError):
    """Pretrained weights are nowhere to be had; the message says which, where, and how to get them."""


def weights_folder(weights_dir: str | Path | None = None) -> Path | None:
    """The folder to look in first: `weights_dir`, else the environment variable FASTSKETCH_WEIGHTS.

    Raises:
        FastsketchError: a folder is named but does not exist.
    """
    source = "weights_dir" if weights_dir is not None else WEIGHTS_VARIABLE
    named = weights_dir if weights_dir is not None else os.environ.get(WEIGHTS_VARIABLE)
    if not named:
        return None
    folder = Path(named)
    if not folder.is_dir():
        raise FastsketchError(f"{source}: no such folder: {folder}")
    return folder


def hub_folder() -> Path:
    """Where torchvision keeps the weights it has downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads a state dict from a .safetensors or a torch file (weights only).

    Raises:
        FastsketchError: missing or unreadable file, or no flat dict of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FastsketchError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise FastsketchError(f"{path}: unreadable weights ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FastsketchError(f"{path}: expected a dict of tensors")
    return state


def _find(
    stem: str,
    weights: torchvision.models.WeightsEnum,
    weights_dir: str | Path | None,
    download: bool,
) -> tuple[Path, dict[str, Tensor]]:
    """The first file there, with its contents: STEM.safetensors, torchvision's file, or a download."""
    original = weights.url.rsplit("/", 1)[1]
    looked: list[Path] = []
    folder = weights_folder(weights_dir)
    if folder is not None:
        looked += [folder / f"{stem}.safetensors", folder / original]
    looked.append(hub_folder() / original)
    for path in looked:
        if path.is_file():
            return path, read_weights(path)
    failure = "downloading is turned off"
    if download:
        try:
            state = torch.hub.load_state_dict_from_url(
                weights.url, map_location="cpu", check_hash=True, weights_only=True
            )
            return looked[-1], state
        except (OSError, RuntimeError) as error:
            failure = f"the download failed: {first_line(error)}"
    raise WeightsNotFound(
        f"no weights for {weights}: looked for {', '.join(map(str, looked))}; {failure}. "
        f"Put {stem}.safetensors or torchvision's {original} ({weights.url}) into a folder and name "
        f"it with --weights-dir (weights_dir) or the environment variable {WEIGHTS_VARIABLE}."
    )


def _load_into(module: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Loads float32 copies into a module built on the meta device, checking names and shapes."""
    expected = module.state_dict()
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise FastsketchError(
            f"{path}: {len(missing)} of {len(expected)} weights missing, first {missing[0]!r}; "
            f"the file has {len(state)} tensors"
        )
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise FastsketchError(
                f"{path}: {name!r} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
            )
    # Copies: a torch file read with mmap, or a whole classifier, must not stay behind the slices.
    chosen = {name: state[name].to(tensor.dtype, copy=True).contiguous() for name, tensor in expected.items()}
    broken = [name for name, tensor in chosen.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise FastsketchError(f"{path}: {broken[0]!r} has non-finite values")
    module.load_state_dict(chosen, assign=True)
    return module.eval().requires_grad_(False)


def _features_only(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "features."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def load_vgg16_features(weights_dir: str | Path | None = None, *, download: bool = True) -> nn.Sequential:
    """torchvision's `vgg16().features` with ImageNet weights, in eval mode, without gradients.

    Looked for in this order: `vgg16_features.safetensors` (names `features.N.weight`; half precision is
    widened to float32) and torchvision's own file in `weights_dir`, torchvision's cache, and a
    download by torchvision (528 MB) unless `download` is False.

    Args:
        weights_dir: folder; default the environment variable FASTSKETCH_WEIGHTS.
        download: whether torchvision may download.

    Returns:
        31 layers, float32: [B, 3, H, W] (ImageNet-normalised) to [B, 512, H/32, W/32].

    Raises:
        WeightsNotFound: nowhere to be had.
        FastsketchError: a file that is damaged or holds other names or shapes.
    """
    weights = torchvision.models.VGG16_Weights.IMAGENET1K_V1
    path, state = _find("vgg16_features", weights, weights_dir, download)
    with torch.device("meta"):  # no memory for, and no random numbers drawn into, unused weights
        features = torchvision.models.vgg16(weights=None).features
    return _load_into(features, _features_only(state), path)


def random_vgg16_features() -> nn.Sequential:
    """The same layers with weights that torchvision's rule draws, the same at every call, for a perceptual loss without
    ImageNet weights. The classifier, most of VGG16, is never made.

    Returns:
        As `load_vgg16_features`.
    """
    with torch.device("meta"):
        features = torchvision.models.vgg16(weights=None).features
    rng = torch.Generator().manual_seed(0)
    for layer in features.to_empty(device="cpu"):
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=rng)
            nn.init.zeros_(layer.bias)
    return features.eval().requires_grad_(False)


def load_alexnet_features(weights_dir: str | Path | None = None, *, download: bool = True) -> nn.Sequential:
    """torchvision's `alexnet().features` with ImageNet weights; see `load_vgg16_features`.

    Files: `alexnet_features.safetensors`, or torchvision's own (233 MB).
    """
    weights = torchvision.models.AlexNet_Weights.IMAGENET1K_V1
    path, state = _find("alexnet_features", weights, weights_dir, download)
    with torch.device("meta"):
        features = torchvision.models.alexnet(weights=None).features
    return _load_into(features, _features_only(state), path)


def load_person_segmenter(weights_dir: str | Path | None = None, *, download: bool = True) -> nn.Module:
    """torchvision's LR-ASPP MobileNetV3-Large, trained on COCO with the VOC labels (class 15: person).

    Files: `lraspp_mobilenet_v3_large.safetensors`, or torchvision's own (12 MB); see
    `load_vgg16_features` for the order and the errors.

    Returns:
        Module in eval mode: [B, 3, H, W] (ImageNet-normalised) to {"out": [B, 21, H, W]} logits.
    """
    weights = torchvision.models.segmentation.LRASPP_MobileNet_V3_Large_Weights
    path, state = _find("lraspp_mobilenet_v3_large", weights.COCO_WITH_VOC_LABELS_V1, weights_dir, download)
    with torch.device("meta"):
        model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    return _load_into(model, state, path)
