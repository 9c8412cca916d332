"""The command line. Each command is a dataclass of options and a function, here or in `fastsketch.commands`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastsketch import __version__
from fastsketch.commands import check_gpu, data_folder, demo_app, export, report
from fastsketch.errors import FastsketchError

USAGE = """fastsketch: pencil portraits from face photos, by patch-contrastive learning

  fastsketch demo                              all of it, small, on built-in faces
  fastsketch train     --data DIR --out RUN    train a generator (or --data builtin: drawn faces)
  fastsketch generate  PHOTO... -o DIR --weights RUN     draw sketches of photos
  fastsketch evaluate  GENERATED --data DIR    compare drawings with a data set's sketches
  fastsketch report    RUN... [-o FILE]        a page of runs: settings, losses, metrics, gallery, comparison
  fastsketch export    RUN --onnx FILE         the generator for ONNX Runtime
  fastsketch demo-app  --weights RUN           drop a photo into the browser, see its sketch
  fastsketch bench                             speed and memory on this machine, against the same written otherwise
  fastsketch check-gpu                         the GPU kernels on this machine's GPU, case by case
  fastsketch info                              versions, devices, operator implementations

fastsketch COMMAND --help lists a command's options."""


@dataclass
class Generate:
    """Draw sketches of photos: files, folders, or a split of a data set."""

    photos: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Picture files, or folders of them; any size, grey, RGB or RGBA."""
    weights: Path = tyro.MISSING
    """Folder of a run, or its generator.safetensors."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = tyro.MISSING
    """Folder to draw into: NAME.png, or SUBSET/NAME.png with --data."""
    data: str | None = None
    """A data set's folder, in place of PHOTOs."""
    split: Literal["train", "test"] = "test"
    """Which part of it."""
    image_size: int | Literal["trained", "photo"] = "trained"
    """Larger photos are scaled down to fit this many pixels first. trained: the size the generator was trained at;
    photo: they are not, which takes long for large ones."""
    masks: Literal["auto", "folder", "white", "grabcut", "person", "none"] = "auto"
    """Where masks come from, for a generator that reads them."""
    weights_dir: Path | None = None
    """Folder of pretrained weights, for --masks person."""
    device: str = "auto"
    """cpu, cuda …; auto: a GPU if there is one."""
    quiet: bool = False
    """No progress bar."""


@dataclass
class Evaluate:
    """Compare drawings with the sketches of a data set: FSIM, SSIM, LPIPS, FID, per subset and over all."""

    generated: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of drawings: SUBSET/NAME.png, or NAME.png for a plain pair of folders."""
    grey_photos: bool = False
    """Evaluate the photos themselves, made grey, in place of drawings: what learning nothing would score."""
    data: str = tyro.MISSING
    """The data set's folder."""
    split: Literal["train", "test"] = "test"
    """Which part of it."""
    out: Path | None = None
    """Folder for metrics.csv, summary.csv and metrics.json; default: the folder of drawings."""
    image_size: int | None = None
    """Scale larger sketches down to fit this many pixels first, as drawings of reduced size were."""
    metrics: tuple[Literal["fsim", "ssim", "lpips-alex", "lpips-vgg", "fid"], ...] = (
        "fsim",
        "ssim",
        "lpips-alex",
        "lpips-vgg",
        "fid",
    )
    """What to compute."""
    weights_dir: Path | None = None
    """Folder of pretrained weights (alexnet_features.safetensors, vgg16_features.safetensors)."""
    inception: Path | None = None
    """Inception weights, for FID."""
    batch_size: int = 8
    """Pictures at a time."""
    device: str = "auto"
    """cpu, cuda …; auto: a GPU if there is one."""
    quiet: bool = False
    """No progress bar."""


def _train(arguments: Sequence[str]) -> int:
    from fastsketch.training.config import PRESETS, TrainConfig
    from fastsketch.training.distributed import join_world, leave_world
    from fastsketch.training.trainer import RunPaths, Trainer, load_settings

    base = _train_default(arguments, TrainConfig, PRESETS, lambda out: load_settings(RunPaths(out).settings))
    config = tyro.cli(TrainConfig, args=arguments, prog="fastsketch train", default=base)
    world, _ = join_world(config.device)
    if not world.writes:
        world.wait()  # the first process may have to draw the data
    data = data_folder(config.data, config.out / "data")
    if world.writes:
        world.wait()
    trainer = Trainer(config, data)
    say = print if world.writes else lambda text: None
    count, processes = len(trainer.dataset), f", {world.size} processes" if world.size > 1 else ""
    say(
        f"{config.preset} on {count} pictures, {_plural(config.total_epochs, 'epoch')}, {trainer.device}{processes} "
        f"({trainer.speed}); run in {config.out}"
    )
    if trainer.step and trainer.epoch < config.total_epochs:
        say(f"going on after step {trainer.step}, in epoch {trainer.epoch + 1}")
    ended = trainer.run()
    leave_world()
    if ended:
        shown = {"pictures in": trainer.paths.pictures, "curves": trainer.paths.curve}
        there = ", ".join(f"{what} {path}" for what, path in shown.items() if path.exists())
        say(f"done: {trainer.paths.generator}{'; ' if there else ''}{there}")
        return 0
    say(f"stopped and saved at step {trainer.step}; go on with: fastsketch train --out {config.out} --resume")
    return 130


def _plural(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _train_default(arguments, config_type, presets, saved):
    """Defaults of the command line: the chosen preset's, or with --resume the settings of the run.

    Unpaired data has no target, so the losses that need one are off by default there.
    """

    def value(flag: str) -> str | None:
        for number, word in enumerate(arguments):
            if word == flag and number + 1 < len(arguments):
                return arguments[number + 1]
            if word.startswith(f"{flag}="):
                return word.removeprefix(f"{flag}=")
        return None

    out = value("--out")
    if "--resume" in arguments and out is not None:
        return saved(Path(out))
    name = value("--preset") or "fsscl"
    if name not in presets:
        raise FastsketchError(f"--preset must be one of {', '.join(presets)}, got {name}")
    untargeted = {"lambda_pixel": 0.0, "lambda_perceptual": 0.0} if "--unpaired" in arguments else {}
    return config_type(data=tyro.MISSING, out=tyro.MISSING, **{"preset": name, **presets[name], **untargeted})


def _generate(arguments: Sequence[str]) -> int:
    from fastsketch.training.checkpoint import load_generator
    from fastsketch.training.generate import draw_sketches, find_photos, left_out
    from fastsketch.training.masks import MaskSource
    from fastsketch.training.pairs import find_pairs
    from fastsketch.training.run_files import find_generator
    from fastsketch.training.trainer import choose_device

    options = tyro.cli(Generate, args=arguments, prog="fastsketch generate")
    if bool(options.photos) == bool(options.data):
        raise FastsketchError("give either PHOTOs (files or folders) or --data DIR")
    weights = find_generator(options.weights)
    generator = load_generator(weights, choose_device(options.device))
    image_size = _drawn_size(options.image_size, weights)
    if options.data:
        photos = find_pairs(data_folder(options.data, options.out / "data"), options.split, unpaired=True)
    else:
        photos = find_photos(options.photos)
    masks = MaskSource(options.masks, weights_dir=options.weights_dir)
    drawn = draw_sketches(generator, photos, options.out, masks, image_size=image_size, quiet=options.quiet)
    size = "their photos' sizes" if image_size is None else f"{image_size} pixels or less"
    print(f"{len(drawn)} sketches of {size} in {options.out}")
    if ignored := left_out(options.photos):
        print(f"left out, being no pictures: {ignored}")
    return 0


def _drawn_size(wanted: int | str, weights: Path) -> int | None:
    """The size to draw at, pixels; None: each photo's own."""
    from fastsketch.training.run_files import trained_size

    if wanted == "photo":
        return None
    size = trained_size(weights) if wanted == "trained" else wanted
    if size is None:
        raise FastsketchError(f"{weights} does not say at what size it was trained: add --image-size N, or photo")
    if size < 1:
        raise FastsketchError(f"--image-size must be at least 1, trained or photo, got {size}")
    return size


def _evaluate(arguments: Sequence[str]) -> int:
    from fastsketch.metrics import evaluate, grey_photo_yardstick
    from fastsketch.training.pairs import find_pairs
    from fastsketch.training.trainer import choose_device

    options = tyro.cli(Evaluate, args=arguments, prog="fastsketch evaluate")
    if (options.generated is None) != options.grey_photos:
        raise FastsketchError("give either a folder of drawings or --grey-photos")
    out = options.out or options.generated
    if out is None:
        raise FastsketchError("--grey-photos needs --out DIR for its tables")
    if options.batch_size < 1:
        raise FastsketchError(f"--batch-size must be at least 1, got {options.batch_size}")
    if options.image_size is not None and options.image_size < 1:
        raise FastsketchError(f"--image-size must be at least 1, got {options.image_size}")
    if not options.metrics:
        raise FastsketchError("--metrics needs one metric at least")
    if options.generated is not None and not options.generated.is_dir():
        raise FastsketchError(f"{options.generated}: no such folder of drawings")
    pairs = find_pairs(data_folder(options.data, out / "data"), options.split)
    settings = {
        "metrics": options.metrics,
        "weights_dir": options.weights_dir,
        "inception": options.inception,
        "device": str(choose_device(options.device)),
        "batch_size": options.batch_size,
        "progress": not options.quiet,
        "image_size": options.image_size,
    }
    if options.grey_photos:
        result = grey_photo_yardstick(pairs, **settings)
    else:
        result = evaluate([_drawing_of(pair, options.generated) for pair in pairs], **settings)
    result.save(out)
    print(result.table())
    print(f"saved in {out}: metrics.csv, summary.csv, metrics.json")
    return 0


def _drawing_of(pair, folder: Path):
    """The drawing of a pair's photo, as something to evaluate."""
    from fastsketch.metrics import Item

    names = (folder / pair.subset / f"{pair.name}.png", folder / f"{pair.name}.png")
    path = next((p for p in names if p.is_file()), None)
    if path is None:
        raise FastsketchError(f"{names[0]}: no drawing of {pair.photo}")
    return Item(pair.subset, pair.name, path, pair.sketch)


@dataclass
class Demo:
    """Train, generate and evaluate on built-in faces, small: about three minutes on two CPU cores."""

    out: Path = Path("runs/demo")
    """Folder for all of it; what is there already is not done again."""
    weights_dir: Path | None = None
    """Folder of pretrained weights, for the perceptual loss and LPIPS; never downloaded here."""


def _demo(arguments: Sequence[str]) -> int:
    from fastsketch.demo import run_demo

    options = tyro.cli(Demo, args=arguments, prog="fastsketch demo")
    run_demo(options.out, options.weights_dir)
    return 0


def _bench(arguments: Sequence[str]) -> int:
    from fastsketch.bench.threads import start_bound

    start_bound(["bench"], arguments)
    from fastsketch.bench.command import bench

    return bench(arguments)


def _info(arguments: Sequence[str]) -> int:
    from fastsketch.info import report

    if list(arguments) in (["-h"], ["--help"]):
        print("usage: fastsketch info\n\nVersions, processor, implementations, and why one is not there.")
        return 0
    if arguments:
        raise FastsketchError(f"info takes no options, got {' '.join(arguments)}")
    print(report())
    return 0


COMMANDS = {
    "demo": _demo,
    "train": _train,
    "generate": _generate,
    "evaluate": _evaluate,
    "report": report.main,
    "export": export.main,
    "demo-app": demo_app.main,
    "bench": _bench,
    "check-gpu": check_gpu.main,
    "info": _info,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (an error, one line), 2 (bad usage) or 130 (Ctrl-C)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if list(arguments) == ["--version"]:
        print(f"fastsketch {__version__}")
        raise SystemExit(0)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        raise SystemExit(0 if arguments else 2)
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"fastsketch: no command {arguments[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    try:
        code = command(arguments[1:])
    except FastsketchError as error:
        print(f"fastsketch: error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)
