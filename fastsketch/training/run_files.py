"""A run's folder: what lies where, and how all of it is written and read back."""

from dataclasses import replace
from pathlib import Path

from fastsketch.errors import FastsketchError
from fastsketch.files import write_text
from fastsketch.training.checkpoint import (
    Training,
    load_checkpoint,
    load_weights,
    read_training,
    save_checkpoint,
    save_generator,
)
from fastsketch.training.config import TrainConfig
from fastsketch.training.mask_methods import METHODS, MaskMethod
from fastsketch.training.step import TrainingStep
from fastsketch.training.translator import Translator
from fastsketch.weights import weights_folder


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

    @property
    def written_whole(self) -> tuple[Path, ...]:
        """The folders whose files are written whole, and where a killed run may have left a part of one."""
        return self.root, self.pictures, self.masks


def find_generator(source: Path) -> Path:
    """The weights file of a run's folder, or the file itself.

    Raises:
        FastsketchError: neither is there.
    """
    path = RunPaths(source).generator if source.is_dir() else source
    if not path.is_file():
        what = "no generator.safetensors in this folder" if source.is_dir() else "no such file or run"
        raise FastsketchError(f"{source}: {what}")
    return path


def trained_size(weights: Path) -> int | None:
    """The image size a generator was trained at, pixels, as its file or the settings beside it say; None: neither does.

    Raises:
        FastsketchError: no such file, or damaged settings.
    """
    training = read_training(weights)
    if training is not None:
        return training.image_size
    settings = RunPaths(weights.parent).settings
    return load_settings(settings).image_size if settings.is_file() else None


def trained_masks(weights: Path) -> MaskMethod:
    """Where the masks came from in training, as the weights' file or the settings beside it say; auto: neither does.

    Raises:
        FastsketchError: no such file, a method that is not known here, or damaged settings.
    """
    training = read_training(weights)
    if training is not None and training.masks is not None:
        if training.masks not in METHODS:
            raise FastsketchError(f"{weights}: trained with masks {training.masks!r}, which are not known here")
        return training.masks
    settings = RunPaths(weights.parent).settings
    return load_settings(settings).mask_method if settings.is_file() else "auto"


def find_weights_dir(named: Path | None, weights: Path) -> Path | None:
    """The folder of pretrained weights: the one named, the environment's, or the run's own, if it is still there.

    Args:
        named: as for `fastsketch.weights.weights_folder`.
        weights: the file of a generator; its run's settings stand beside it.

    Raises:
        FastsketchError: a folder is named but does not exist, or damaged settings.
    """
    folder, settings = weights_folder(named), RunPaths(weights.parent).settings
    if folder is not None or not settings.is_file():
        return folder
    own = load_settings(settings).weights_dir
    return own if own is not None and own.is_dir() else None


def save_settings(path: Path, config: TrainConfig) -> None:
    """The settings of a run, beside it; folders as absolute paths, so that they are found from elsewhere too."""
    data = config.data if config.data == "builtin" else str(Path(config.data).absolute())
    weights_dir = None if config.weights_dir is None else config.weights_dir.absolute()
    absolute = replace(config, data=data, out=config.out.absolute(), weights_dir=weights_dir)
    write_text(path, absolute.to_json())


def load_settings(path: Path) -> TrainConfig:
    """The settings saved with a run.

    Raises:
        FastsketchError: none there, unreadable, or damaged.
    """
    if not path.is_file():
        raise FastsketchError(f"{path.parent}: no run to resume here (no {path.name})")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FastsketchError(f"{path}: damaged, not a file of settings ({error})") from error
    except OSError as error:
        raise FastsketchError(f"{path}: cannot read ({error.strerror or error})") from error
    return TrainConfig.from_json(text, str(path))


def save_run(
    paths: RunPaths,
    config: TrainConfig,
    translator: Translator,
    update: TrainingStep,
    place: tuple[int, int, int],
    pictures: str,
) -> None:
    """Write the generator, then the checkpoint, each whole.

    Args:
        paths: of the run.
        config: its settings.
        translator: its networks.
        update: its optimisers.
        place: (steps taken, whole epochs, pictures seen of the next).
        pictures: `SketchDataset.fingerprint` of what it is trained on.
    """
    state = {
        "settings": config.to_json(),
        "pictures": pictures,
        "networks": {name: module.state_dict() for name, module in translator.networks().items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in update.optimizers.items()},
        **dict(zip(("step", "epoch", "seen"), place, strict=True)),
    }
    training = Training(config.image_size, *place[:2], masks=config.mask_method)
    save_generator(paths.generator, translator.generator, training)
    save_checkpoint(paths.checkpoint, state)


def load_run(path: Path, translator: Translator, update: TrainingStep, pictures: list[str]) -> tuple[int, int, int]:
    """Put networks and optimisers back as a checkpoint has them; its place, as `save_run`.

    `pictures` are `SketchDataset.fingerprints`: the checkpoint has one of them, or is of before it had any.

    Raises:
        FastsketchError: no checkpoint, one that does not fit, or one of a run on other pictures.
    """
    state = load_checkpoint(path, update.device)
    if "pictures" in state and state["pictures"] not in pictures:
        raise FastsketchError(f"{path}: the run was trained on other pictures than --data holds now")
    try:
        for name, module in translator.networks().items():
            load_weights(module, state["networks"][name], f"{path} ({name})")
        update.load_optimizers(state["optimizers"])
        return state["step"], state["epoch"], state["seen"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FastsketchError(f"{path}: the checkpoint does not fit this run ({error})") from error
