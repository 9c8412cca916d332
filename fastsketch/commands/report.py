"""`fastsketch report RUN [RUN ...]`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass
class Report:
    """Draw a data set's test photos with one or more runs and put all there is to see into one HTML file."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs (settings.json, generator.safetensors, losses.csv); several are compared."""
    data: str | None = None
    """The data set's folder; default: the one each run was trained on."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    """The file to write."""
    limit: int = 48
    """Pictures of each run's gallery, spread evenly over the test photos; the metrics are over all of them."""
    weights_dir: Path | None = None
    """Folder of pretrained weights, for LPIPS, missing without; default: FASTSKETCH_WEIGHTS, else the run's own."""
    device: str = "auto"
    """cpu, cuda …; auto: a GPU if there is one."""
    quiet: bool = False
    """No progress bars."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    options = tyro.cli(Report, args=arguments, prog="fastsketch report")
    from fastsketch.commands import data_folder
    from fastsketch.errors import FastsketchError
    from fastsketch.report import look_at_run, run_settings, save_report
    from fastsketch.training.run_files import find_generator
    from fastsketch.training.trainer import choose_device

    if not options.runs:
        raise FastsketchError("report needs the folder of a run, or of several")
    if options.out.is_dir():
        raise FastsketchError(f"{options.out}: is a folder; name the file to write")
    device = choose_device(options.device)
    settings = [run_settings(run) for run in options.runs]  # all are looked for before one is drawn
    for run in options.runs:
        find_generator(run)
    looks = []
    for run, config in zip(options.runs, settings, strict=True):
        data = options.data or config.data
        looks.append(
            look_at_run(
                run,
                data_folder(data, run / "data"),
                limit=options.limit,
                weights_dir=options.weights_dir,
                device=device,
                quiet=options.quiet,
            )
        )
    save_report(looks, options.out)
    size = options.out.stat().st_size
    shown = f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
    print(f"{options.out}: {shown}, open it in a browser; it needs no network")
    return 0
