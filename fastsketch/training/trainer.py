"""The training loop: steps, epochs, checkpoints, pictures. Read it from `Trainer.run` down."""

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Adam
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fastsketch.errors import FastsketchError
from fastsketch.training.checkpoint import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_generator,
)
from fastsketch.training.config import TrainConfig
from fastsketch.training.data import EpochSampler, SketchDataset
from fastsketch.training.files import write_bytes
from fastsketch.training.history import LossHistory
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import Pair, find_pairs, find_sketches
from fastsketch.training.pictures import save_loss_curve, save_picture_grid
from fastsketch.training.translator import PHOTO_CHANNELS, Translator


class NonFiniteLoss(FastsketchError):
    """A loss became NaN or infinite; training stopped before it reached the weights."""


class RunPaths:
    """Where things are in a run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = root / "settings.json"
        self.checkpoint = root / "checkpoint.pt"
        self.generator = root / "generator.safetensors"
        self.losses = root / "losses.csv"
        self.curve = root / "losses.png"
        self.pictures = root / "pictures"
        self.masks = root / "masks"
        self.tensorboard = root / "tensorboard"


def choose_device(name: str) -> torch.device:
    """The device of this name; auto is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FastsketchError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


class Trainer:
    """One training run in one folder.

    Args:
        config: the settings; with `resume` the run in `config.out` goes on where its checkpoint stands.
        data: folder of the pictures (`config.data`, or where the built-in set was written).
        quiet: no progress bar.

    Raises:
        FastsketchError: data, weights, folder or checkpoint that cannot be used.
    """

    def __init__(self, config: TrainConfig, data: Path, quiet: bool = False) -> None:
        self.config, self.quiet = config, quiet
        self.paths = RunPaths(config.out)
        if not config.resume and self.paths.checkpoint.exists():
            raise FastsketchError(f"{config.out} holds a run already: add --resume to go on, or choose another folder")
        if config.resume:
            saved = load_settings(self.paths.settings)
            config.check_resumes(saved)
        self.device = choose_device(config.device)
        self.dataset = self._dataset(data)
        self.order = EpochSampler(len(self.dataset), config.seed)
        self.examples = self._examples(data)

        torch.manual_seed(config.seed)
        self.translator = Translator(config).to(self.device)
        self.rng = torch.Generator(self.device).manual_seed(config.seed + 1)
        drawing = [*self.translator.generator.parameters(), *self.translator.projection.parameters()]
        judging = self.translator.discriminator.parameters()
        self.optimizers = {
            "generator": Adam(drawing, config.lr, config.betas),
            "discriminator": Adam(judging, config.lr, config.betas),
        }
        self.step = self.epoch = self.seen = 0
        self._stop = False
        if config.resume:
            self._load()
        write_bytes(self.paths.settings, replace(config, resume=False).to_json().encode())
        self.history = LossHistory(self.paths.losses, last_step=self.step)

    # --- data -------------------------------------------------------------------------------------------------------

    def _mask_source(self) -> MaskSource:
        method = self.config.masks if self.config.mask else "none"
        return MaskSource(method, self.paths.masks, weights_dir=self.config.weights_dir)

    def _dataset(self, data: Path) -> SketchDataset:
        config = self.config
        return SketchDataset(
            find_pairs(data, "train", unpaired=config.unpaired),
            image_size=config.image_size,
            crop_size=config.crop_size,
            sketch_channels=config.sketch_channels,
            masks=self._mask_source(),
            flip=config.flip,
            unpaired=config.unpaired,
            sketches=find_sketches(data, "train") if config.unpaired else None,
            seed=config.seed,
        )

    def _examples(self, data: Path) -> list[dict[str, Tensor]]:
        """Whole pictures for the grid, from the test pairs if there are any."""
        try:
            pairs = find_pairs(data, "test")
        except FastsketchError:
            pairs = [pair for pair in self.dataset.pairs if pair.sketch is not None]
        count = min(self.config.pictures, len(pairs))
        chosen: list[Pair] = [pairs[i * len(pairs) // count] for i in range(count)]
        if not chosen:
            return []
        whole = SketchDataset(
            chosen,
            image_size=self.config.image_size,
            sketch_channels=self.config.sketch_channels,
            masks=self._mask_source(),
            flip=False,
        )
        return [whole[i] for i in range(count)]

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """The rest of the current epoch."""
        self.dataset.set_epoch(self.epoch)
        self.order.set_epoch(self.epoch, self.seen)
        loader = DataLoader(
            self.dataset,
            self.config.batch_size,
            sampler=self.order,
            num_workers=self.config.workers,
            generator=torch.Generator(),
        )
        for batch in loader:
            yield {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    # --- one step ---------------------------------------------------------------------------------------------------

    def learning_rate(self, epoch: int) -> float:
        """Constant, then linear towards zero [L: CUT]; a function of the epoch alone, so nothing of it is saved."""
        over = max(0, epoch + 1 - self.config.epochs)
        return self.config.lr * (1 - over / (self.config.decay_epochs + 1))

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Update the discriminator, then generator and projection; the losses as numbers."""
        half = self.config.precision == "bfloat16"
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=half)
        translator = self.translator
        with autocast:
            drawings, mask, features, flipped = translator.translate(batch, self.rng)
            drawn = drawings[: batch["photo"].shape[0]]
            judged = translator.discriminator_loss(drawn, batch["sketch"])
        numbers = {"discriminator": judged}
        self._check_finite(numbers, batch)
        self._update("discriminator", judged)

        translator.discriminator.requires_grad_(False)
        with autocast:
            losses = translator.generator_losses(batch, drawings, mask, features, flipped, self.rng)
        numbers |= losses
        self._check_finite(losses, batch)
        self._update("generator", torch.stack([loss.float() for loss in losses.values()]).sum())
        translator.discriminator.requires_grad_(True)
        return {name: loss.item() for name, loss in numbers.items()}

    def _update(self, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[name].step()

    def _check_finite(self, losses: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        broken = [name for name, loss in losses.items() if not math.isfinite(loss.item())]
        if broken:
            photos = ", ".join(str(self.dataset.pairs[i].photo) for i in batch["index"].tolist())
            raise NonFiniteLoss(
                f"{' and '.join(broken)} loss is not finite at step {self.step + 1} (pictures: {photos}); "
                f"stopped, {self._last_state()}"
            )

    def _last_state(self) -> str:
        kept = self.paths.checkpoint
        return f"the last good state is in {kept}" if kept.exists() else "no checkpoint was written yet"

    # --- the run ----------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Train to the end, or until Ctrl-C, which saves; whether the end was reached."""
        epochs, per_epoch = self.config.total_epochs, math.ceil(len(self.dataset) / self.config.batch_size)
        bar = tqdm(
            total=epochs * per_epoch, initial=self.step, unit="step", disable=self.quiet, dynamic_ncols=True, leave=True
        )
        with contextlib.closing(SummaryWriter(self.paths.tensorboard, purge_step=self.step + 1)) as board, bar:
            with self._stop_on_signal():
                while self.epoch < epochs and not self._stop:
                    self._run_epoch(bar, board)
            if self._stop:
                self.save()
        self.history.flush()
        if self.history.steps:
            save_loss_curve(self.history, self.paths.curve)
        return not self._stop

    def _run_epoch(self, bar: tqdm, board: SummaryWriter) -> None:
        bar.set_description(f"epoch {self.epoch + 1}/{self.config.total_epochs}")
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(self.epoch)
        for batch in self._batches():
            start = time.perf_counter()
            losses = self.train_step(batch)
            count = len(batch["index"])
            self.step += 1
            self.seen += count
            bar.update()
            if self.step % self.config.log_every == 0:
                speed = count / (time.perf_counter() - start)
                self._log(losses, speed, bar, board)
            if self.config.save_every and self.step % self.config.save_every == 0:
                self.save()
            if self._stop:
                return
        self.seen = 0
        self.epoch += 1
        if self.examples:
            path = self.paths.pictures / f"epoch_{self.epoch:04d}.png"
            save_picture_grid(self.translator, self.examples, path, self.config.seed)
        self.save()

    def _log(self, losses: dict[str, float], speed: float, bar: tqdm, board: SummaryWriter) -> None:
        self.history.add(self.step, losses)
        for name, value in losses.items():
            board.add_scalar(f"loss/{name}", value, self.step)
        board.add_scalar("images_per_second", speed, self.step)
        shown = " ".join(f"{SHORT.get(name, name)} {value:.2f}" for name, value in losses.items())
        bar.set_postfix_str(f"{shown} | {speed:.1f} img/s")

    @contextlib.contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """The first Ctrl-C (or SIGTERM) ends the run after the step in progress; a second one at once."""

        def ask(number: int, frame: object) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            tqdm.write("stopping after this step; the run will be saved")

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: nobody can press Ctrl-C here
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- keeping ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint, the generator's weights and the losses, each whole."""
        self.history.flush()
        state = {
            "settings": self.config.to_json(),
            "networks": {name: module.state_dict() for name, module in self.translator.networks().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "rng": {"torch": torch.get_rng_state(), "run": self.rng.get_state()},
            "step": self.step,
            "epoch": self.epoch,
            "seen": self.seen,
        }
        save_checkpoint(self.paths.checkpoint, state)
        architecture = {
            "in_channels": PHOTO_CHANNELS,
            "out_channels": self.config.sketch_channels,
            "width": self.config.width,
            "blocks": self.config.blocks,
            "mask_channel": self.config.mask,
            "attention": self.config.attention,
        }
        save_generator(self.paths.generator, self.translator.generator, architecture)

    def _load(self) -> None:
        """Put everything back as the checkpoint has it."""
        path = self.paths.checkpoint
        state = load_checkpoint(path, self.device)
        try:
            for name, module in self.translator.networks().items():
                load_weights(module, state["networks"][name], f"{path} ({name})")
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            torch.set_rng_state(state["rng"]["torch"].cpu())
            self.rng.set_state(state["rng"]["run"].cpu())
            self.step, self.epoch, self.seen = state["step"], state["epoch"], state["seen"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FastsketchError(f"{path}: the checkpoint does not fit this run ({error})") from error


SHORT = {"discriminator": "D", "gan": "G", "nce_identity": "nce_y", "pixel": "pix", "perceptual": "perc"}
"""Names of losses in the progress bar."""


def load_settings(path: Path) -> TrainConfig:
    """The settings saved with a run.

    Raises:
        FastsketchError: none there, or damaged.
    """
    if not path.is_file():
        raise FastsketchError(f"{path.parent}: no run to resume here (no {path.name})")
    return TrainConfig.from_json(path.read_text(encoding="utf-8"), str(path))
