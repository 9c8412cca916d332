"""`fastsketch demo`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass
class Demo:
    """Train, generate and evaluate on built-in faces, small: three to five minutes on two CPU cores."""

    out: Path = Path("runs/demo")
    """Folder for all of it; what is there already is not done again."""
    weights_dir: Path | None = None
    """Folder of pretrained weights, for the perceptual loss and LPIPS; never downloaded here."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    from fastsketch.demo import run_demo

    options = tyro.cli(Demo, args=arguments, prog="fastsketch demo")
    run_demo(options.out, options.weights_dir)
    return 0
