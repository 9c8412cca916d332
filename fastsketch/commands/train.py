"""`fastsketch train`: its options are the settings of a run, `fastsketch.training.config`."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from fastsketch.commands import data_folder
from fastsketch.errors import FastsketchError

if TYPE_CHECKING:
    from fastsketch.training.config import TrainConfig


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    from fastsketch._backend import why_not_used
    from fastsketch.training.config import TrainConfig
    from fastsketch.training.distributed import join_world, leave_world
    from fastsketch.training.lock import hold_folder
    from fastsketch.training.pairs import left_out
    from fastsketch.training.trainer import Trainer

    config = tyro.cli(TrainConfig, args=arguments, prog="fastsketch train", default=_defaults(arguments))
    world, _ = join_world(config.device)
    hold = hold_folder(config.out, world)  # before faces are drawn into it
    if not world.writes:
        world.wait()  # the first process may have to draw the data
    data = data_folder(config.data, config.out / "data")
    if world.writes:
        world.wait()
    trainer = Trainer(config, data)
    del hold  # the trainer has it too
    say = functools.partial(print, flush=True) if world.writes else lambda text: None  # a log is looked at meanwhile
    count, processes = len(trainer.dataset), f", {world.size} processes" if world.size > 1 else ""
    height, width = trainer.dataset.item_size
    say(
        f"{config.preset} on {_plural(count, 'picture')} of {width}×{height}, {_plural(config.total_epochs, 'epoch')}, "
        f"{trainer.device}{processes} ({trainer.speed}); run in {config.out}"
    )
    if trainer.device.type == "cpu" and (reason := why_not_used("cpp")):
        say(f"the C++ kernels are not in use, which makes steps slower: {reason.splitlines()[0]}")
    for line in left_out(data, "train", unpaired=config.unpaired) if world.writes else ():
        say(line)
    if trainer.begun_with:
        say(f"begun with the networks of {config.init_from}: {', '.join(trainer.begun_with)}")
    if trainer.step and trainer.epoch < config.total_epochs:
        say(f"going on after step {trainer.step}, in epoch {trainer.epoch + 1}")
    ended = trainer.run()
    leave_world()
    if ended:
        shown = {"pictures in": trainer.paths.pictures, "curves": trainer.paths.curve}
        there = ", ".join(f"{what} {path}" for what, path in shown.items() if path.exists())
        say(f"done: {trainer.paths.generator}{'; ' if there else ''}{there}")
        return 0
    again = f"fastsketch train --out {shlex.quote(str(config.out))} --resume"
    say(f"stopped and saved at step {trainer.step}; go on with: {again}")
    return 130


def _plural(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _defaults(arguments: Sequence[str]) -> TrainConfig:
    """Defaults of the command line: the chosen preset's, or with --resume the settings of the run.

    Unpaired data has no target, so the losses that need one are off by default there.
    """
    from fastsketch.training.config import PRESETS, TrainConfig
    from fastsketch.training.run_files import RunPaths, load_settings

    def value(flag: str) -> str | None:  # the last counts, as for tyro
        for number in reversed(range(len(arguments))):
            word = arguments[number]
            if word == flag and number + 1 < len(arguments):
                return arguments[number + 1]
            if word.startswith(f"{flag}="):
                return word.removeprefix(f"{flag}=")
        return None

    def is_on(name: str) -> bool:
        said = [word for word in arguments if word in (f"--{name}", f"--no-{name}")]
        return bool(said) and said[-1] == f"--{name}"

    switches = {field.name.replace("_", "-") for field in fields(TrainConfig) if field.type is bool}
    for word in arguments:
        name, equals, given = word.removeprefix("--").partition("=")
        if word.startswith("--") and equals and name in switches:
            raise FastsketchError(f"--{name} takes no value, got {given}: write --{name} or --no-{name}")
    out = value("--out")
    if is_on("resume") and out is not None:
        return load_settings(RunPaths(Path(out)).settings)
    name = value("--preset") or "fsscl"
    if name not in PRESETS:
        raise FastsketchError(f"--preset must be one of {', '.join(PRESETS)}, got {name}")
    untargeted = {"lambda_pixel": 0.0, "lambda_perceptual": 0.0} if is_on("unpaired") else {}
    return TrainConfig(data=tyro.MISSING, out=tyro.MISSING, **{"preset": name, **PRESETS[name], **untargeted})
