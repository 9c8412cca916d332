"""The page: what was looked at, put into `page.html` with everything inlined and escaped."""

import base64
import io
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image

from fastsketch import __version__
from fastsketch.files import write_text
from fastsketch.metrics import IMAGE_METRICS, METRICS
from fastsketch.report import curves
from fastsketch.report.look import Look
from fastsketch.training.config import TrainConfig
from fastsketch.training.pairs import note_on_split

PARTS = ("attention", "mask", "regions", "dynamic", "identity", "lambda_pixel", "lambda_perceptual")
"""Settings that the comparison of runs shows beside those that differ: the method's parts."""
NOT_COMPARED = {"out", "resume", "device", "workers", "log_every", "save_every", "pictures", "weights_dir", "data"}

GROUPS = {
    "Run": "preset data image_size canvas crop_size sketch_channels unpaired masks seed device precision",
    "Augmentation": "flip random_affine color_jitter augment_decay",
    "Networks": "width blocks discriminator_width projection_dim attention mask",
    "Patches": "num_patches regions dynamic num_regions density_window density_threshold density_boost multiplicity "
    "negatives temperature",
    "Losses": "lambda_gan lambda_nce lambda_pixel lambda_perceptual perceptual_distance perceptual_weights identity "
    "flip_equivariance",
    "Training": "batch_size epochs decay_epochs lr betas",
}
"""Settings by subject; those in no group follow under "Other"."""


def data_uri(image: Image.Image, *, lossless: bool) -> str:
    """The picture itself as an address: PNG, or JPEG of high quality."""
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=88)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def render(looks: list[Look], when: datetime | None = None) -> str:
    """The page as text.

    Args:
        looks: the runs; several are compared.
        when: it was made; default now.
    """
    if not looks:
        raise ValueError("looks must not be empty")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastsketch", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["uri"] = data_uri
    environment.filters["setting"] = setting_text
    sources = {name: files("fastsketch.report").joinpath(name).read_text("utf-8") for name in ("style.css", "page.js")}
    names = unique_names(looks)
    return environment.get_template("page.html").render(
        style=sources["style.css"],
        script=sources["page.js"],
        title=names[0] if len(looks) == 1 else f"{len(looks)} runs",
        runs=[_run(look, name, number) for number, (look, name) in enumerate(zip(looks, names, strict=True))],
        comparison=comparison(looks, names) if len(looks) > 1 else None,
        metrics={name: split_heading(METRICS[name]) for name in IMAGE_METRICS},
        when=(when or datetime.now(timezone.utc)).strftime("%Y-%m-%d %H:%M UTC"),
        versions=f"fastsketch {__version__}, torch {torch.__version__}",
        plot={name: getattr(curves, name) for name in ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM")},
    )


def save_report(looks: list[Look], path: Path) -> None:
    """Write the page, whole.

    Raises:
        FastsketchError: the file cannot be written.
    """
    write_text(path, render(looks))


def unique_names(looks: list[Look]) -> list[str]:
    """The runs' folders by name, or by path where two have the same name."""
    names = [look.name for look in looks]
    return [str(look.folder) if names.count(look.name) > 1 else look.name for look in looks]


def split_heading(heading: str) -> dict[str, Any]:
    """The heading of a metric and whether more is better."""
    label, arrow = heading.rsplit(" ", 1)
    return {"label": label, "arrow": arrow, "up": arrow == "↑"}


def setting_text(value: object) -> str:
    """A setting as the page shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(setting_text(v) for v in value)
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def grouped_settings(config: TrainConfig) -> dict[str, dict[str, object]]:
    """All settings but the run's own folder, by subject."""
    values = {name: value for name, value in asdict(config).items() if name not in ("out", "resume")}
    groups = {title: {name: values.pop(name) for name in names.split()} for title, names in GROUPS.items()}
    return {**groups, "Other": values} if values else groups


def _run(look: Look, name: str, number: int) -> dict[str, Any]:
    sizes = sorted({shown.photo.size for shown in look.gallery}, key=lambda size: size[0] * size[1])
    ends = dict.fromkeys((sizes[0], sizes[-1]))
    return {
        "id": f"run{number}",
        "name": name,
        "look": look,
        "note": note_on_split(look.data, "test"),
        "settings": grouped_settings(look.config),
        "curves": curves.curves(look.history),
        "size": " to ".join(f"{width}×{height}" for width, height in ends),
        "available": [m for m in IMAGE_METRICS if look.scored and m not in look.evaluation.unavailable],
    }


def comparison(looks: list[Look], names: list[str]) -> dict[str, Any]:
    """One row a run: the method's parts, whatever else differs, and the metrics over all test pictures."""
    settings = [asdict(look.config) for look in looks]
    differing = [
        name
        for name in settings[0]
        if name not in NOT_COMPARED and name not in PARTS and any(s[name] != settings[0][name] for s in settings)
    ]
    columns = [*PARTS, *differing]
    rows = [
        {
            "name": name,
            "settings": [s[column] for column in columns],
            "steps": None if look.training is None else look.training.step,
            "scores": look.evaluation.summary.get("all", {}),
        }
        for look, name, s in zip(looks, names, settings, strict=True)
    ]
    best = {}
    for metric in IMAGE_METRICS:
        values = [row["scores"][metric] for row in rows if metric in row["scores"]]
        if len(values) == len(rows) and len(set(values)) > 1:
            best[metric] = max(values) if split_heading(METRICS[metric])["up"] else min(values)
    sizes = {look.config.image_size for look in looks}
    warnings = []
    if len({look.pictures for look in looks}) > 1:
        warnings.append("The runs were tested on different pictures: their figures are not comparable.")
    if len(sizes) > 1:
        warnings.append("The runs were tested at different image sizes: their figures are not comparable.")
    return {"columns": columns, "rows": rows, "best": {} if warnings else best, "warnings": warnings}
