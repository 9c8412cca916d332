"""Whether a training step may be captured in a CUDA graph on this machine: tried like the kernels, before it is done.

A case is a run's own settings, with all sizes small: it takes the same path through the code. A captured and a plain
step go on from one state several times, with other pictures, random numbers and learning rates each time; they may be
no further apart than two plain steps are, which the graph's warm-up shows.
"""

import copy
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsketch import _backend
from fastsketch.training.config import PRESETS, Preset, TrainConfig
from fastsketch.training.distributed import World
from fastsketch.training.graph import WARM_UP, GraphedStep
from fastsketch.training.speed import Speed, choose_speed
from fastsketch.training.step import TrainingStep
from fastsketch.training.translator import Translator
from fastsketch.trial import verdict

SIDE = 64
"""Of the pictures, in pixels."""

REPLAYS = 3
"""Compared with plain steps, after the warm-up."""

ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
"""Allowed of losses, and of gradients as a whole, beside four times what two plain steps differ by. A gradient at other
positions is off by 0.3 or more."""

NOISE = 0.05
"""What two plain steps may differ by at the most; beyond it a comparison says nothing."""

_SIZES: dict[str, Any] = {"width": 8, "blocks": 5, "discriminator_width": 8, "projection_dim": 32, "num_patches": 64}
_SMALL = TrainConfig(data="", out=Path(), image_size=SIDE, perceptual_weights="random", **_SIZES)
_SHAPING = (
    *("sketch_channels", "unpaired", "attention", "mask", "regions", "dynamic", "multiplicity", "negatives"),
    *("identity", "flip_equivariance", "precision", "channels_last", "perceptual_distance"),
)
_WEIGHTS = ("lambda_gan", "lambda_nce", "lambda_pixel", "lambda_perceptual")


def subject(config: TrainConfig, speed: Speed) -> verdict.Subject:
    """The step of a run with these settings and switches."""
    return verdict.Subject(
        __name__,
        (case_name(config, speed),),
        what="a captured training step",
        instead="kernels are launched one by one",
        sources=("**/*.py", "_C.so", "_C_cuda.so"),
    )


def subject_of_preset(preset: Preset, device: str) -> verdict.Subject:
    """The step of a preset, with the switches that `auto` gives on this GPU."""
    config = TrainConfig(data="", out=Path(), cuda_graph="off", **{"preset": preset, **PRESETS[preset]})
    return subject(config, choose_speed(config, torch.device(device)))


def why_not(config: TrainConfig, speed: Speed, device: torch.device) -> str:
    """Why a step is not to be captured on this GPU; empty if one was captured and was right.

    The first question on a kind of GPU holds the trial, in a process of its own.

    Args:
        config: the run's settings.
        speed: its switches, resolved but for the graph.
        device: the GPU.
    """
    if not verdict.is_asked_for():
        return "nothing is tried with FASTSKETCH_GPU_CHECK=0"
    for kernel in _backend.KERNELS:  # their trials come first, so that the step is made of what passed
        _backend.select(kernel, "cuda", device.index)
    step = subject(config, speed)
    return verdict.what_failed(step, step.cases, device.index)


def case_name(config: TrainConfig, speed: Speed) -> str:
    """The settings that shape a step, as NAME=JSON …; and the backend, where one was asked for by name."""
    values = {name: getattr(config, name) for name in _SHAPING}
    values |= {name: float(getattr(config, name) > 0) for name in _WEIGHTS}
    values |= {"precision": speed.precision_name, "channels_last": "on" if speed.channels_last else "off"}
    values |= {"batch_size": min(config.batch_size, 2)}
    backend = {"backend": name} if (name := _backend.forced_backend()) else {}
    return " ".join(f"{name}={json.dumps(value)}" for name, value in sorted((values | backend).items()))


def check_case(name: str, device: torch.device) -> None:
    """Try the case of this name.

    Raises:
        AssertionError: what was wrong.
    """
    values = dict(part.split("=", 1) for part in name.split())
    known = {field.name for field in fields(TrainConfig)}
    config = replace(_SMALL, **{n: json.loads(value) for n, value in values.items() if n in known})
    speed = Speed(
        precision=getattr(torch, config.precision),
        channels_last=config.channels_last == "on",
        fused_adam=True,
        compile=False,
        cuda_graph=device.type == "cuda",
        data_on_device=False,
        winograd=False,
    )
    check(config, speed, device, None if speed.cuda_graph else lambda call, rng: call)  # a CPU only does it again


def check(config: TrainConfig, speed: Speed, device: torch.device, capture: Any = None) -> None:
    """Compare steps that are captured with plain ones, of each kind that the settings have.

    Args:
        config: settings of a small run.
        speed: its switches, `cuda_graph` on where the device has graphs.
        device: where.
        capture: as `GraphedStep` takes it.

    Raises:
        AssertionError: what was wrong.
    """
    captured, plain = (_new_step(config, replace(speed, cuda_graph=on), device) for on in (speed.cuda_graph, False))
    graphed = GraphedStep(captured, captured.rng, capture)
    pictures = torch.Generator().manual_seed(0)
    for flipped in (False, True) if config.flip_equivariance else (False,):
        noise = _Difference(0.0, 0.0, 0.0)
        for count in range(WARM_UP + REPLAYS):
            rate, batch = (1e-4, 4e-4)[count % 2], _batch(config, device, pictures)
            difference = _compare(captured, graphed, plain, batch, flipped, seed=count, rate=rate)
            if count < WARM_UP:
                noise = noise.largest(difference)
                difference.check(f"two plain steps, {count}", _Difference(NOISE, NOISE, 0.5))
            else:
                allowed = (ROUNDING[speed.precision] + 4 * each for each in (noise.losses, noise.gradient))
                difference.check(f"replay {count - WARM_UP + 1}", _Difference(*allowed, 0.5))


@dataclass(frozen=True)
class _Difference:
    """Of two steps from one state, relative to their size: losses, gradients as a whole, and what became of weights.

    Adam divides a gradient by its size: where that is rounding alone, so is the weight's change.
    """

    losses: float
    gradient: float
    update: float

    def largest(self, other: "_Difference") -> "_Difference":
        return _Difference(*(max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    def check(self, what: str, allowed: "_Difference") -> None:
        for field in fields(self):
            got, bound = getattr(self, field.name), getattr(allowed, field.name)
            assert got <= bound, f"{what}: {field.name} off by {got:.3g} of its size, allowed {bound:.2g}"


def _compare(
    captured: TrainingStep,
    graphed: GraphedStep,
    plain: TrainingStep,
    batch: dict[str, Tensor],
    flipped: bool,
    seed: int,
    rate: float,
) -> _Difference:
    """Both take a step from the state that the captured one is in."""
    plain.translator.load_state_dict(captured.translator.state_dict())
    plain.load_optimizers({name: copy.deepcopy(o.state_dict()) for name, o in captured.optimizers.items()})
    before = _weights(captured)
    results = []
    for update, call in ((captured, graphed), (plain, plain)):
        update.rng.manual_seed(seed)
        update.set_learning_rate(rate)
        losses = torch.stack(list(call(batch, flipped).values()))
        assert not update.broken.item(), "a loss or gradient is not finite"
        results.append((losses, _gradient(update), _weights(update) - before))
    (losses, gradient, changes), wanted = results
    return _Difference(
        max(_apart(one, other) for one, other in zip(losses, wanted[0], strict=True)),
        _apart(gradient, wanted[1]),
        _apart(changes, wanted[2]),
    )


def _apart(one: Tensor, other: Tensor) -> float:
    """Distance of two vectors, in units of the second's length; infinite where that is 0."""
    return ((one - other).double().norm() / other.double().norm()).nan_to_num(nan=float("inf")).item()


def _weights(update: TrainingStep) -> Tensor:
    return torch.cat([p.detach().flatten() for p in update.translator.parameters()])


def _gradient(update: TrainingStep) -> Tensor:
    return torch.cat([p.grad.flatten() for p in update.translator.parameters() if p.grad is not None])


def _new_step(config: TrainConfig, speed: Speed, device: torch.device) -> TrainingStep:
    torch.manual_seed(0)
    return TrainingStep(Translator(config).to(device), config, speed, World())


def _batch(config: TrainConfig, device: torch.device, rng: torch.Generator) -> dict[str, Tensor]:
    """Noise, as `Translator.translate` takes it: mask set in the middle."""
    shape = config.batch_size, SIDE, SIDE
    photo, sketch = (torch.rand(shape[0], n, *shape[1:], generator=rng) * 2 - 1 for n in (3, config.sketch_channels))
    mask = torch.zeros(shape[0], 1, *shape[1:])
    mask[..., SIDE // 8 : -SIDE // 8, SIDE // 4 : -SIDE // 4] = 1
    batch = {"photo": photo, "sketch": sketch, "mask": mask}
    if config.unpaired:
        batch["sketch_mask"] = mask.flip(-1).roll(3, -2)
    return {name: images.to(device) for name, images in batch.items()}
