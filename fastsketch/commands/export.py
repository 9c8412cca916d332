"""`fastsketch export RUN --onnx FILE`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass
class Export:
    """Write a trained generator as an ONNX file, compared with PyTorch first. Needs the extra `export`."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or its generator.safetensors."""
    onnx: Path
    """The file to write."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    options = tyro.cli(Export, args=arguments, prog="fastsketch export")
    from fastsketch.export import export_onnx

    done = export_onnx(options.run, options.onnx)
    print(f"{done.path}: {done.path.stat().st_size / 2**20:.1f} MiB, inputs {' and '.join(done.inputs)}, output sketch")
    print(f"ONNX Runtime draws the same pictures: largest difference {done.difference:.1e} (of a range of 2)")
    return 0
