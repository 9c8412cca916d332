"""Where a run's networks begin when not at random: with those of another run."""

from pathlib import Path

from fastsketch.errors import FastsketchError
from fastsketch.training.checkpoint import load_checkpoint, load_generator, load_weights
from fastsketch.training.config import TrainConfig
from fastsketch.training.run_files import RunPaths, find_generator
from fastsketch.training.translator import Translator

_NETWORKS = (
    *("sketch_channels", "width", "blocks", "attention", "mask", "demodulated"),
    *("discriminator_width", "projection_dim"),
)
"""The settings that say what the networks are; the rest of a run may differ from the one it begins with."""


def load_networks(source: Path, translator: Translator) -> list[str]:
    """Give the networks the weights of another run.

    Args:
        source: a run's folder, whose checkpoint has all networks, or a generator.safetensors (a folder without
            checkpoint.pt is taken for its generator's).
        translator: the networks, changed in place.

    Returns:
        The names of those that have been loaded.

    Raises:
        FastsketchError: no such run or file, one that cannot be read, or networks of other settings.
    """
    checkpoint = RunPaths(source).checkpoint
    if not (source.is_dir() and checkpoint.exists()):
        return _load_generator(find_generator(source), translator)
    device = next(translator.parameters()).device
    state = load_checkpoint(checkpoint, device)
    try:
        theirs = TrainConfig.from_json(state["settings"], f"{checkpoint} (settings)")
        weights = {name: state["networks"][name] for name in translator.networks()}
    except KeyError as error:
        raise FastsketchError(f"{checkpoint}: not the checkpoint of a run (no {error})") from error
    mine = translator.config
    if changed := [n for n in _NETWORKS if getattr(theirs, n) != getattr(mine, n)]:
        listed = ", ".join(f"{name} {getattr(theirs, name)}, here {getattr(mine, name)}" for name in changed)
        raise FastsketchError(f"init_from {source}: networks of other settings: {listed}")
    for name, module in translator.networks().items():
        load_weights(module, weights[name], f"{checkpoint} ({name})")
    return list(weights)


def _load_generator(path: Path, translator: Translator) -> list[str]:
    loaded, mine = load_generator(path, next(translator.parameters()).device), translator.generator
    theirs, wanted = loaded.architecture["demodulated"], mine.architecture["demodulated"]
    if theirs != wanted:  # what the shapes of weights do not tell
        raise FastsketchError(f"init_from {path}: a generator of other settings: demodulated {theirs}, here {wanted}")
    load_weights(mine, loaded.state_dict(), f"init_from {path}")
    return ["generator"]
