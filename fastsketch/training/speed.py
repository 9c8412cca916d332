"""The speed switches of a run, resolved for a device: what `auto` means, and what cannot be had."""

import warnings
from dataclasses import dataclass, replace

import torch

from fastsketch import _backend
from fastsketch.errors import FastsketchError
from fastsketch.nn.convolution import winograd_is_available
from fastsketch.training.config import SWITCHES, Switch, TrainConfig


@dataclass(frozen=True)
class Speed:
    """What a run really uses; the fields are those of `TrainConfig`."""

    precision: torch.dtype
    channels_last: bool
    fused_adam: bool
    compile: bool
    cuda_graph: bool
    data_on_device: bool
    winograd: bool

    @property
    def precision_name(self) -> str:
        """The precision as `TrainConfig` has it."""
        return str(self.precision).removeprefix("torch.")

    def __str__(self) -> str:
        used = [name.replace("_", " ") for name in SWITCHES if getattr(self, name)]
        return ", ".join([self.precision_name, *used])


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 by instructions of its own; elsewhere it is emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name)() for name in instructions)


def multiplies_tiles(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16 matrices: tensor cores, AMX.

    AVX512-BF16 has not: it doubles the rate of products, where Winograd's convolutions in float32 quarter their number
    (docs/training-speed.md has the times). AMX raises it eightfold, and wants channels-last maps.
    """
    return has_bfloat16(device) and (device.type == "cuda" or torch.cpu._is_amx_tile_supported())


def choose_speed(config: TrainConfig, device: torch.device, processes: int = 1) -> Speed:
    """Resolve the switches. On a GPU `auto` takes a captured step where one was tried, and right.

    Warns:
        UserWarning: bfloat16 by name on a processor without instructions for it; it works, a hundred times slower.

    Raises:
        FastsketchError: something switched on that this device, or this number of processes, cannot have.
    """
    on_gpu = device.type == "cuda"
    winograd = not on_gpu and config.winograd != "off" and winograd_is_available()
    gains_by_half = multiplies_tiles if winograd else has_bfloat16
    half = config.precision == "bfloat16" or (config.precision == "auto" and gains_by_half(device))
    if config.cuda_graph == "on" and not on_gpu:
        raise FastsketchError(f"cuda_graph is on, but the device is {device}")
    if config.cuda_graph == "on" and processes > 1:
        raise FastsketchError("cuda_graph is for one process; leave it off with several")
    if config.cuda_graph == "on" and _backend.select("sample_patches", "cuda", device.index) == "reference":
        raise FastsketchError(
            "cuda_graph is on, but sampling runs on the reference, which waits for the GPU: fastsketch info says why"
        )
    if config.cuda_graph == "on" and config.fused_adam == "off":
        raise FastsketchError("cuda_graph needs the fused Adam: leave --fused-adam on")
    if config.compile == "on" and not on_gpu:
        raise FastsketchError(
            f"compile is on, but the device is {device}: torch 2.14 compiles a step there for minutes, then fails"
        )
    if config.winograd == "on" and on_gpu:
        raise FastsketchError("winograd is for CPUs; cuDNN chooses by itself")
    if config.winograd == "on" and not winograd_is_available():
        raise FastsketchError(
            "winograd is on, but the C++ kernels are not there or not in use: fastsketch info says why"
        )
    if winograd and half and config.winograd == "auto" and multiplies_tiles(device):
        winograd = False
    if config.channels_last == "on" and winograd:
        raise FastsketchError("channels_last and winograd exclude each other: add --winograd off")
    if half and device.type == "cpu" and not has_bfloat16(device):
        warnings.warn(
            "precision is bfloat16, but this processor has no instructions for it (AMX, AVX512-BF16): a convolution "
            "takes about a hundred times as long as in float32. Use precision float32, or auto, which chooses",
            UserWarning,
            stacklevel=2,
        )
    speed = Speed(
        precision=torch.bfloat16 if half else torch.float32,
        channels_last=_resolve(config.channels_last, on_gpu or (half and not winograd and multiplies_tiles(device))),
        fused_adam=_resolve(config.fused_adam, device.type in ("cpu", "cuda")),
        compile=config.compile == "on",
        cuda_graph=config.cuda_graph == "on",
        data_on_device=_resolve(config.data_on_device, on_gpu),
        winograd=winograd,
    )
    if config.cuda_graph == "auto" and on_gpu and processes == 1 and speed.fused_adam and not speed.compile:
        return replace(speed, cuda_graph=_may_be_captured(config, speed, device))
    return speed


def _may_be_captured(config: TrainConfig, speed: Speed, device: torch.device) -> bool:
    if _backend.select("sample_patches", "cuda", device.index) == "reference":
        return False
    from fastsketch.trial import captured  # which makes steps, for which this module is needed

    return not captured.why_not(config, speed, device)


def _resolve(switch: Switch, auto: bool) -> bool:
    return auto if switch == "auto" else switch == "on"
