"""What an evaluation found: rows for each image, means, a table for the terminal, files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from fastsketch.files import csv_text, write_text
from fastsketch.training.pairs import OVERALL

# Name -> heading; the arrow shows the better direction.
METRICS = {
    "fsim": "FSIM ↑",
    "ssim": "SSIM ↑",
    "lpips-alex": "LPIPS-alex ↓",
    "lpips-vgg": "LPIPS-vgg ↓",
    "fid": "FID ↓",
}

IMAGE_METRICS = tuple(name for name in METRICS if name != "fid")
"""Those of a single image; FID is of a whole set."""


@dataclass
class Evaluation:
    """Results of `evaluate`.

    Attributes:
        metrics: the metrics asked for, in the order of the table's columns.
        rows: one dict an image: subset, name, and the value of each metric of single images that was available.
        summary: by subset, and under "all" over all images: the number of images ("images") and each metric that was
            available: the mean over images, or for fid the distance of the whole set.
        unavailable: metric -> why it could not be computed. It stays in the table as n/a.
        notes: remarks that belong under the table.
    """

    metrics: tuple[str, ...]
    rows: list[dict[str, str | float]]
    summary: dict[str, dict[str, float]]
    unavailable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def table(self) -> str:
        """An aligned text table, with a footnote for each metric that is not there."""
        marks = {name: f"[{number}]" for number, name in enumerate(self.unavailable, start=1)}
        heads = ["subset", "images", *(METRICS[name] for name in self.metrics)]
        lines = [
            [subset, str(int(values["images"])), *(self._cell(name, values, marks) for name in self.metrics)]
            for subset, values in self.summary.items()
        ]
        widths = [max(len(row[column]) for row in [heads, *lines]) for column in range(len(heads))]
        text = []
        for row in [heads, *lines]:
            first, *others = (
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            text.append("  ".join([first, *others]).rstrip())
        text.insert(1, "-" * max(map(len, text)))
        text += [f"{marks[name]} {name}: not available: {reason}" for name, reason in self.unavailable.items()]
        return "\n".join([*text, *self.notes])

    @staticmethod
    def _cell(name: str, values: dict[str, float], marks: dict[str, str]) -> str:
        if name in marks:
            return f"n/a {marks[name]}"
        if name not in values:
            return "n/a"
        return f"{values[name]:.2f}" if name == "fid" else f"{values[name]:.4f}"

    def save(self, folder: str | Path) -> list[Path]:
        """Writes metrics.csv (one line an image), summary.csv and metrics.json, each whole or not at all.

        Cells of metrics that are not available are left empty in the csv files; metrics.json has the reasons.

        Raises:
            FastsketchError: a file could not be written.
        """
        folder = Path(folder)
        single = [name for name in self.metrics if name != "fid"]
        summary = [{"subset": subset, **values} for subset, values in self.summary.items()]
        data = {
            "metrics": list(self.metrics),
            "summary": self.summary,
            "unavailable": self.unavailable,
            "notes": self.notes,
            "images": self.rows,
        }
        texts = {
            "metrics.csv": csv_text(["subset", "name", *single], self.rows),
            "summary.csv": csv_text(["subset", "images", *self.metrics], summary),
            "metrics.json": json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n",
        }
        for name, text in texts.items():
            write_text(folder / name, text)
        return [folder / name for name in texts]


def summarise(rows: list[dict[str, str | float]], metrics: list[str]) -> dict[str, dict[str, float]]:
    """Means over the images of each subset (sorted), and over all of them (each image counts once)."""
    subsets = sorted({str(row["subset"]) for row in rows})
    groups = {subset: [row for row in rows if row["subset"] == subset] for subset in subsets}
    groups[OVERALL] = rows
    summary = {}
    for name, members in groups.items():
        means = {m: math.fsum(float(row[m]) for row in members) / len(members) for m in metrics}
        summary[name] = {"images": len(members), **means}
    return summary
