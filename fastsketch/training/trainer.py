"""The training loop: steps, epochs, checkpoints, pictures. Read it from `Trainer.run` down."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fastsketch.errors import FastsketchError, first_line
from fastsketch.files import remove_torn
from fastsketch.progress import progress_bar
from fastsketch.training.batches import Batches
from fastsketch.training.config import TrainConfig
from fastsketch.training.data import SketchDataset
from fastsketch.training.distributed import World, join_world
from fastsketch.training.graph import GraphedStep
from fastsketch.training.history import LossHistory
from fastsketch.training.images import read_photo
from fastsketch.training.initial import load_networks
from fastsketch.training.lock import Hold, hold_folder
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import Pair, find_pairs, find_sketches
from fastsketch.training.pictures import save_loss_curve, save_picture_grid
from fastsketch.training.run_files import RunPaths, load_run, load_settings, save_run, save_settings
from fastsketch.training.signals import StopRequest
from fastsketch.training.speed import choose_speed
from fastsketch.training.step import TrainingStep
from fastsketch.training.translator import Translator

_POSITIONS, _FLIP = 2, 3
"""Streams of random numbers, beside those of the data."""

SHORT = {"discriminator": "D", "gan": "G", "nce_identity": "nce_y", "pixel": "pix", "perceptual": "perc"}
"""Names of losses in the progress bar."""


class NonFiniteLoss(FastsketchError):
    """A loss or gradient became NaN or infinite; training stopped before it reached the weights."""


def choose_device(name: str) -> torch.device:
    """The device of this name; auto is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # meta has no values
    except (RuntimeError, AssertionError, ImportError) as error:
        raise FastsketchError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return device


class Trainer:
    """One training run in one folder.

    Under torchrun each process makes one of these, with the same arguments. Until `run` has ended (or this object is no
    more) no other process can train in the folder.

    Args:
        config: the settings; with `resume` the run in `config.out` goes on where its checkpoint stands.
        data: folder of the pictures (`config.data`, or where the built-in set was written).
        quiet: no progress bar.
        world: the processes; None: those that torchrun started, if it did.

    Raises:
        FastsketchError: data, weights, folder or checkpoint that cannot be used, or a folder in use.
    """

    def __init__(self, config: TrainConfig, data: Path, quiet: bool = False, world: World | None = None) -> None:
        self.world, device = join_world(config.device) if world is None else (world, config.device)
        self.paths = RunPaths(config.out)
        self._hold: Hold | None = hold_folder(config.out, self.world)
        if not config.resume and self.paths.checkpoint.exists():
            raise FastsketchError(f"{config.out} holds a run already: add --resume to go on, or choose another folder")
        if config.resume:
            saved = load_settings(self.paths.settings)
            if config.precision == "auto":  # that of the run, wherever it was begun
                config = replace(config, precision=saved.precision)
            config.check_resumes(saved)
        self.device = choose_device(device)
        self.speed = choose_speed(config, self.device, self.world.size)
        self.config = config = replace(config, precision=self.speed.precision_name)  # what is saved with the run
        self.quiet = quiet or not self.world.writes
        self.dataset = self._dataset(data)
        config.check_patches(*self.dataset.item_size)
        self.batches = Batches(self.dataset, config, self.device, self.speed.data_on_device, self.world)
        self.examples = self._examples(data) if self.world.writes else []

        torch.manual_seed(config.seed)
        self.translator = Translator(config).to(self.device)
        self.translator.generator.frame = self.dataset.frame
        self.update = TrainingStep(self.translator, config, self.speed, self.world)
        self.call = GraphedStep(self.update, self.update.rng) if self.speed.cuda_graph else self.update
        self.step = self.epoch = self.seen = 0
        self.stop = StopRequest(patient=self.world.size > 1)
        self.stopping = False  # what all processes agreed on; a signal may reach them at different moments
        self._unchecked: list[tuple[int, dict[str, Tensor], Tensor, Tensor]] = []
        # A run that was killed before its first checkpoint begins again.
        self.begun_with: list[str] = []
        if config.resume and self.paths.checkpoint.exists():
            self.step, self.epoch, self.seen = load_run(
                self.paths.checkpoint, self.translator, self.update, self.dataset.fingerprints
            )
        elif config.init_from is not None:
            self.begun_with = load_networks(config.init_from, self.translator)
        self.history = LossHistory(self.paths.losses, last_step=self.step)
        self.world.wait()  # all have looked for an earlier run before one of them writes
        if self.world.writes:
            remove_torn(*self.paths.written_whole)
            save_settings(self.paths.settings, replace(config, resume=False))

    # --- data -------------------------------------------------------------------------------------------------------

    def _mask_source(self) -> MaskSource:
        return MaskSource(self.config.mask_method, self.paths.masks, weights_dir=self.config.weights_dir)

    def _dataset(self, data: Path) -> SketchDataset:
        config = self.config
        return SketchDataset(
            find_pairs(data, "train", unpaired=config.unpaired),
            image_size=config.image_size,
            canvas=config.canvas,
            crop_size=config.crop_size,
            sketch_channels=config.sketch_channels,
            masks=self._mask_source(),
            flip=config.flip,
            random_affine=config.random_affine,
            color_jitter=config.color_jitter,
            augment_epochs=None if config.augment_decay else config.epochs,
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
        if self.config.unpaired:  # a photo and a sketch of one name need not be of one person
            chosen = [pair for pair in chosen if read_photo(pair.photo).size == read_photo(pair.sketch).size]
        if not chosen:
            return []
        whole = SketchDataset(
            chosen,
            image_size=self.config.image_size,
            canvas=self.config.canvas,
            sketch_channels=self.config.sketch_channels,
            masks=self._mask_source(),
            flip=False,
        )
        return [whole[i] for i in range(len(chosen))]

    # --- one step ---------------------------------------------------------------------------------------------------

    def learning_rate(self, epoch: int) -> float:
        """Constant, then linear towards zero [L: CUT]; a function of the epoch alone, so nothing of it is saved."""
        over = max(0, epoch + 1 - self.config.epochs)
        return self.config.lr * (1 - over / (self.config.decay_epochs + 1))

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Update all networks; the losses by name, on the device.

        Random numbers are a function of seed, step and process, so none of their state need be saved.

        Raises:
            NonFiniteLoss: as `check_finite`, on a GPU up to `log_every` steps late.
        """
        stream = np.random.SeedSequence([self.config.seed, _POSITIONS, self.step, self.world.rank])
        self.update.rng.manual_seed(int(stream.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        coin = np.random.default_rng([self.config.seed, _FLIP, self.step])  # one for all processes
        losses = self.call(batch, self.config.flip_equivariance and bool(coin.random() < 0.5))
        self._unchecked.append((self.step + 1, losses, self.update.broken.clone(), batch["index"]))
        if self.device.type == "cpu" or len(self._unchecked) >= self.config.log_every:
            self.check_finite()
        return losses

    def check_finite(self) -> None:
        """Look at the steps since the last look: on a GPU that waits for it, so it is done now and then only.

        Raises:
            NonFiniteLoss: one of them was not finite; no update has been let through since.
        """
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        broken = torch.stack([flag for *_, flag, _ in unchecked]).tolist()
        if not any(broken):
            return
        step, losses, _, index = unchecked[broken.index(1.0)]
        names = [name for name, loss in losses.items() if not torch.isfinite(loss)]
        what = f"{' and '.join(names)} loss" if names else "a gradient"
        photos = ", ".join(str(self.dataset.pairs[i].photo) for i in self.world.collect(index.tolist()))
        kept = self.paths.checkpoint
        state = f"the last good state is in {kept}" if kept.exists() else "no checkpoint was written yet"
        raise NonFiniteLoss(f"{what} is not finite at step {step} (pictures: {photos}); stopped, {state}")

    # --- the run ----------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Train to the end, or until Ctrl-C, which saves; whether the end was reached.

        Raises:
            NonFiniteLoss: a batch whose losses or gradients are not finite; the last checkpoint stays.
            FastsketchError: a picture that cannot be read; the run is saved first.
        """
        self._hold = hold_folder(self.config.out, self.world)  # another run of this object may have let it go
        try:
            return self._run()
        finally:
            self._hold = None

    def _run(self) -> bool:
        epochs = self.config.total_epochs
        bar = progress_bar(
            total=epochs * self.batches.per_epoch,
            initial=self.step,
            unit="step",
            disable=self.quiet or self.epoch >= epochs,  # resumed with nothing left to do
        )
        board = SummaryWriter(self.paths.tensorboard, purge_step=self.step + 1) if self.world.writes else None
        with contextlib.closing(board) if board else contextlib.nullcontext(), bar, self.stop.listening():
            while self.epoch < epochs and not self.stopping:
                self._run_epoch(bar, board)
            if self.stopping:
                self.save()
        if self.world.writes:
            self.history.flush()
            if self.history.steps:
                save_loss_curve(self.history, self.paths.curve)
        self.world.wait()
        return not self.stopping

    def _run_epoch(self, bar: tqdm, board: SummaryWriter | None) -> None:
        bar.set_description(f"epoch {self.epoch + 1}/{self.config.total_epochs}", refresh=False)
        self.update.set_learning_rate(self.learning_rate(self.epoch))
        start, counted = time.perf_counter(), 0
        for batch in self._until_stopped(self.batches.of_epoch(self.epoch, self.seen)):
            losses = self.train_step(batch)
            count = len(batch["index"]) * self.world.size
            self.step += 1
            self.seen += count
            counted += count
            bar.update()
            if self.step % self.config.log_every == 0:
                self._log(losses, counted / (time.perf_counter() - start), bar, board)
                start, counted = time.perf_counter(), 0
            if self.config.save_every and self.step % self.config.save_every == 0:
                self.save()
        if self.stopping:
            return
        self.seen = 0
        self.epoch += 1
        if self.examples:
            path = self.paths.pictures / f"epoch_{self.epoch:04d}.png"
            save_picture_grid(self.translator, self.examples, path, self.config.seed)
        self.save()

    def _until_stopped(self, batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The batches, until Ctrl-C in any process; a picture that one cannot read stops all of them, saved."""
        while True:
            batch, problem = None, None
            try:
                batch = next(batches, None)
            except FastsketchError as error:
                problem = error
            except Exception:
                if not self.stop.asked:  # else Ctrl-C has reached loading processes in their first moments too
                    raise
            verdict = self.world.highest(2 if problem else int(self.stop.asked))
            if verdict == 2:
                self.save()
                raise problem or FastsketchError("another process could not go on, and says why; the run was saved")
            self.stopping = verdict == 1
            if batch is None or self.stopping:
                return
            yield batch

    def _log(self, losses: dict[str, Tensor], speed: float, bar: tqdm, board: SummaryWriter | None) -> None:
        if board is None:
            return
        numbers = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
        self.history.add(self.step, numbers)
        for name, value in numbers.items():
            board.add_scalar(f"loss/{name}", value, self.step)
        board.add_scalar("images_per_second", speed, self.step)
        shown = " ".join(f"{SHORT.get(name, name)} {value:.2f}" for name, value in numbers.items())
        bar.set_postfix_str(f"{shown} | {speed:.1f} img/s", refresh=False)

    # --- keeping ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write losses, generator and checkpoint, each whole, the checkpoint last: it never runs ahead of the rest."""
        self.check_finite()
        if self.world.writes:
            self.history.flush()
            place = (self.step, self.epoch, self.seen)
            save_run(self.paths, self.config, self.translator, self.update, place, self.dataset.fingerprint)
