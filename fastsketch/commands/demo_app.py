"""`fastsketch demo-app`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fastsketch.training.mask_methods import MakingMethod


@dataclass
class DemoApp:
    """Serve a page in the browser: drop a photo, see sketch, mask, map and sampled points. Needs the extra `app`."""

    weights: Path
    """Folder of a run, or its generator.safetensors."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 7860
    """Port to listen on; 0: any that is free."""
    masks: MakingMethod | Literal["trained"] = "trained"
    """Where masks come from; trained: as in training, but auto where that was the data set's folder."""
    weights_dir: Path | None = None
    """Folder of pretrained weights, for masks by person; default: the run's own."""
    device: str = "auto"
    """cpu, cuda …; auto: a GPU if there is one."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    options = tyro.cli(DemoApp, args=arguments, prog="fastsketch demo-app")
    from fastsketch.app import serve
    from fastsketch.training.trainer import choose_device

    serve(
        options.weights,
        host=options.host,
        port=options.port,
        masks=options.masks,
        weights_dir=options.weights_dir,
        device=choose_device(options.device),
    )
    return 0
