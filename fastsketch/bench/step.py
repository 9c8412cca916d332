"""A whole training step against the same step taken CUT's way: the number that a user feels."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fastsketch.bench.baselines.cut_step import CutStep
from fastsketch.bench.case import OURS, Case, Contender, Recipe
from fastsketch.training.config import PRESETS, TrainConfig
from fastsketch.training.faces import write_faces
from fastsketch.training.speed import has_bfloat16
from fastsketch.training.trainer import Trainer
from fastsketch.training.translator import Translator

CUT_WAY = "CUT's way"


class FixedPositions(nn.Module):
    """Stands in for a translator's sampler, and gives the positions it was given."""

    def __init__(self, positions: Sequence[Tensor]) -> None:
        super().__init__()
        self.positions = list(positions)
        self.index, self.region, self.weight = positions[-1], torch.zeros_like(positions[-1]), None

    def forward(self, structure_map: Tensor, mask: Tensor | None = None, **_: Any) -> "FixedPositions":
        """Itself, as a sample."""
        return self

    def on(self, sizes: Any, borders: Any, generator: Any = None) -> list[Tensor]:
        """The positions [2B, S] of each layer."""
        return self.positions


@dataclass(frozen=True)
class Losses:
    """Of one step: the terms by name, and the generator's gradient as one vector."""

    terms: dict[str, Tensor]
    gradient: Tensor


def _gradient(terms: dict[str, Tensor], network: nn.Module) -> Tensor:
    total = sum(value for name, value in terms.items() if name != "discriminator")
    parameters = list(network.parameters())
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


def fastsketch_losses(translator: Translator, batch: dict[str, Tensor], positions: Sequence[Tensor]) -> Losses:
    """What a step of `Trainer` computes, at given positions [2B, S] of each layer: photos' first, then sketches'."""
    sampler, translator.sampler = translator.sampler, FixedPositions(positions)
    rng = torch.Generator(positions[0].device)
    try:
        drawings, mask, features, flipped = translator.translate(batch, rng)
        drawn = drawings[: batch["photo"].shape[0]]
        terms = {"discriminator": translator.discriminator_loss(drawn, batch["sketch"])}
        terms |= translator.generator_losses(batch, drawings, mask, features, flipped, rng)
    finally:
        translator.sampler = sampler
    return Losses(terms, _gradient(terms, translator.generator))


def cut_losses(model: CutStep, batch: dict[str, Tensor], positions: Sequence[Tensor]) -> Losses:
    """The same terms, CUT's way; the positions of a batch are those of its first image."""
    ids = [layer[0] for layer in positions], [layer[-1] for layer in positions]
    drawn, identity, mask = model.draw(batch)
    terms = {"discriminator": model.discriminator_loss(drawn, batch["sketch"])}
    terms |= model.generator_losses(batch, drawn, identity, mask, ids)
    return Losses(terms, _gradient(terms, model.generator))


def check_step(trainer: Trainer, batch: dict[str, Tensor]) -> None:
    """Both ways give the same terms, and gradients to the generator, from the same weights, images and positions.

    In full float32: the two differ by rounding, which TF32's convolutions raise to 7 % of the gradients (emulated).
    """
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        _check_step(trainer, batch)


def _check_step(trainer: Trainer, batch: dict[str, Tensor]) -> None:
    translator, config = trainer.translator, trainer.config
    sizes = [layer.shape[2:].numel() for layer in CutStep(translator).encode(batch["photo"], _mask(config, batch))]
    device, count = batch["photo"].device, batch["photo"].shape[0]
    draws = [[torch.randperm(size, device=device)[: config.num_patches] for size in sizes] for _ in range(2)]
    positions = [torch.cat([a.expand(count, -1), b.expand(count, -1)]) for a, b in zip(*draws, strict=True)]
    mine = fastsketch_losses(translator, batch, positions)
    theirs = cut_losses(CutStep(translator), batch, positions)
    assert mine.terms.keys() == theirs.terms.keys(), f"{mine.terms.keys()} and {theirs.terms.keys()}"
    for name, value in mine.terms.items():
        torch.testing.assert_close(value, theirs.terms[name], rtol=2e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    theirs = cut_losses(CutStep(translator, instance_norm=False), batch, positions)
    error = (mine.gradient - theirs.gradient).norm() / theirs.gradient.norm()
    assert error < 1e-2, f"the generator's gradients differ by {error:.2g} of their norm"


def _mask(config: TrainConfig, batch: dict[str, Tensor]) -> Tensor | None:
    return batch["mask"] if config.mask else None


def training_step(
    side: int,
    device: torch.device,
    preset: str = "cut",
    batch: int = 1,
    width: int = 64,
    captured: bool = False,
    portraits: bool = False,
) -> Case:
    """GAN and contrastive loss with identity; with the preset fsscl also attention, mask, pixel and perceptual loss.

    Ours is in the precision that `auto` gives on the device; on a processor that has bfloat16 the other one stands
    beside it. CUT's way is float32.

    Args:
        side: of the pictures, or their canvas.
        device: where.
        preset: cut, or fsscl for the full method.
        batch: pictures a step.
        width: channels of the generator's first layer, as of the discriminator's.
        captured: ours in a CUDA graph, from its fourth call on.
        portraits: pictures of 4:5, which ours takes on a tight canvas. All others have them padded to a square.
    """
    folder = tempfile.TemporaryDirectory(prefix="fastsketch-bench-")
    root = Path(folder.name)
    data = write_faces(root / "faces", train=1, test=1, height=side, width=side * 4 // 5 if portraits else side)
    settings: dict[str, Any] = {"image_size": side, "sketch_channels": 3, "masks": "white"}
    settings |= {"width": width, "discriminator_width": width, "num_patches": min(256, (side // 4) ** 2 * 3 // 4)}
    settings |= {"batch_size": batch, "device": device.type, "pictures": 0, "perceptual_weights": "random"}
    settings |= {"cuda_graph": "on" if captured else "off"}
    config = TrainConfig(data="builtin", out=root / "run", **{"preset": preset, **PRESETS[preset], **settings})
    trainer = Trainer(config, data, quiet=True)
    trainer.folder = folder  # kept as long as the trainer is
    other = "bfloat16" if trainer.speed.precision == torch.float32 else "float32"
    beside = None
    if device.type == "cpu" and has_bfloat16(device):
        beside = Trainer(replace(config, out=root / other, precision=other), data, quiet=True)
    padded = Trainer(replace(config, out=root / "padded", canvas="square"), data, quiet=True) if portraits else None
    theirs = CutStep(trainer.translator)
    tight = trainer.dataset.item_size

    def make() -> SimpleNamespace:
        images = {name: torch.rand(batch, 3, side, side, device=device) * 2 - 1 for name in ("photo", "sketch")}
        images["mask"] = torch.ones(batch, 1, side, side, device=device)
        index = {"index": torch.zeros(batch, dtype=torch.int64)}
        cut = {name: image[..., : tight[0], : tight[1]].contiguous() for name, image in images.items()}
        return SimpleNamespace(tight=cut | index, square=images | index)

    contenders = {OURS: Contender(lambda inputs, _: trainer.train_step(inputs.tight))}
    if beside is not None:
        contenders[f"{OURS}, {other}"] = Contender(lambda inputs, _: beside.train_step(inputs.tight))
    if padded is not None:
        contenders[f"{OURS}, square"] = Contender(lambda inputs, _: padded.train_step(inputs.square))
    return Case(
        make=make,
        contenders=contenders | {CUT_WAY: Contender(lambda inputs, _: theirs.step(inputs.square))},
        check=lambda inputs: check_step(trainer, inputs.tight),
        baseline=CUT_WAY,
    )


def recipe(side: int, preset: str, batch: int = 1, portraits: bool = False, captured: bool = False) -> Recipe:
    """The step at this size."""
    arguments = {"side": side, "preset": preset, "batch": batch, "captured": captured, "portraits": portraits}
    return Recipe(training_step, arguments, {"side": 40, "width": 8})


def case_name(side: int, preset: str, batch: int = 1, portraits: bool = False, captured: bool = False) -> str:
    """The name of its rows."""
    size = f"{side}×{side * 4 // 5}" if portraits else f"{side}²"
    return f"training step, {preset}, {size}, B={batch}{', captured' if captured else ''}"
