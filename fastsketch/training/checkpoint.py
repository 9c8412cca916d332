"""Files of a run: written whole or not at all, and read without running anything in them."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from fastsketch.errors import FastsketchError, first_line
from fastsketch.files import write_bytes
from fastsketch.nn import ResnetGenerator
from fastsketch.nn.convolution import use_winograd, winograd_is_available
from fastsketch.nn.generator import TAP_LAYERS

FORMAT = 1
"""Version of the checkpoint's layout."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Everything a run needs to go on, as tensors and plain values."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint (weights only: no code in it is run).

    Raises:
        FastsketchError: no such file, not a checkpoint, or of another format.
    """
    if not path.is_file():
        raise FastsketchError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged or hostile pickle raises nearly anything
        raise FastsketchError(f"{path}: not a readable checkpoint ({first_line(error)})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise FastsketchError(f"{path}: not a fastsketch checkpoint of format {FORMAT}")
    return state


def load_weights(module: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict; names or shapes that do not fit are one clear error."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        expected, got = module.state_dict(), state
        missing = sorted(set(expected) - set(got))
        surplus = sorted(set(got) - set(expected))
        shapes = [
            f"{n} is {list(got[n].shape)} and should be {list(expected[n].shape)}"
            for n in expected
            if n in got and got[n].shape != expected[n].shape
        ]
        parts = [f"missing {name}" for name in missing[:1]] + [f"surplus {name}" for name in surplus[:1]] + shapes[:1]
        raise FastsketchError(f"{source}: weights of another architecture ({'; '.join(parts) or error})") from error


@dataclass(frozen=True)
class Training:
    """How far a saved generator was trained, and on what.

    Attributes:
        image_size: side of the square that pictures were scaled down to fit in, in pixels.
        step: steps taken.
        epoch: whole epochs.
        masks: `TrainConfig.mask_method`; None in files of before this was kept.
    """

    image_size: int
    step: int
    epoch: int
    masks: str | None = None


def save_generator(path: Path, generator: ResnetGenerator, training: Training | None = None) -> None:
    """The generator alone as safetensors, its architecture, frame and training beside the weights.

    Args:
        path: the file.
        generator: with the default tap_layers: the file does not keep them.
        training: None where it is not known.

    Raises:
        ValueError: a generator with other tap_layers, behind the last of which its attention stands.
        FastsketchError: the file cannot be written.
    """
    if generator.tap_layers != TAP_LAYERS:
        raise ValueError(f"generator must have the tap_layers {TAP_LAYERS} to be saved, got {generator.tap_layers}")
    tensors = {name: value.detach().cpu().contiguous() for name, value in generator.state_dict().items()}
    about = dict(generator.architecture)
    if generator.frame is not None:
        about["frame"] = list(generator.frame)
    if training is not None:
        about["training"] = asdict(training)
    metadata = {"fastsketch": json.dumps(about)}  # one entry: safetensors writes several in any order
    write_bytes(path, to_safetensors(tensors, metadata))


def load_generator(path: Path, device: torch.device | str = "cpu") -> ResnetGenerator:
    """Rebuild a generator from its safetensors file, in eval mode; on a CPU with Winograd's convolutions.

    Raises:
        FastsketchError: no such file, not one of ours, or weights that do not fit.
    """
    if not path.is_file():
        raise FastsketchError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            about = json.loads((file.metadata() or {})["fastsketch"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        about.pop("training", None)
        frame = about.pop("frame", None)
        generator = ResnetGenerator(**about)
        generator.frame = None if frame is None else _checked_frame(frame)
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise FastsketchError(f"{path}: not a generator saved by fastsketch ({error})") from error
    load_weights(generator, state, str(path))
    use_winograd(generator, torch.device(device).type == "cpu" and winograd_is_available())
    return generator.to(device).eval()


def _checked_frame(frame: Any) -> tuple[int, int]:
    if not (isinstance(frame, list) and len(frame) == 2 and all(isinstance(s, int) and s > 0 for s in frame)):
        raise ValueError(f"its frame must be two sides in pixels, is {frame!r}")
    return frame[0], frame[1]


def read_training(path: Path) -> Training | None:
    """How far the generator of this file was trained; None in files of before this was kept, or of nothing ours.

    Raises:
        FastsketchError: no such file.
    """
    if not path.is_file():
        raise FastsketchError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            return Training(**json.loads((file.metadata() or {})["fastsketch"])["training"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
