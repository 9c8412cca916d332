"""The losses of a run, kept as csv and cut back on resume to where the checkpoint stands."""

import csv
from pathlib import Path

import numpy as np

from fastsketch.errors import FastsketchError
from fastsketch.files import write_csv


class LossHistory:
    """Rows of (step, losses by name).

    Args:
        path: the csv file; what it holds up to `last_step` is kept.
        last_step: later rows are dropped: they belong to steps that will be taken again.
    """

    def __init__(self, path: Path, last_step: int = 0) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        if path.is_file() and last_step:
            try:
                with path.open(newline="") as file:
                    rows = [{n: float(v) for n, v in row.items() if v} for row in csv.DictReader(file)]
                self.rows = [row for row in rows if row["step"] <= last_step]
            except (ValueError, KeyError, TypeError) as error:
                raise FastsketchError(f"{path}: not a table of losses ({error})") from error
            except OSError as error:
                raise FastsketchError(f"{path}: cannot read ({error.strerror or error})") from error

    @property
    def steps(self) -> list[int]:
        """Steps that have a row."""
        return [int(row["step"]) for row in self.rows]

    @property
    def names(self) -> list[str]:
        """Losses that occur, in the order met."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name != "step"))

    def add(self, step: int, losses: dict[str, float]) -> None:
        """One more row."""
        self.rows.append({"step": step, **losses})

    def flush(self) -> None:
        """Write the file, whole."""
        if self.rows:
            rows = ({**row, "step": int(row["step"])} for row in self.rows)
            write_csv(self.path, ["step", *self.names], rows)


def running_mean(values: np.ndarray, window: int | None = None) -> np.ndarray:  # [N] -> [N]
    """Mean over a centred window that ends at the borders: no value is made up. None: a twentieth of the values."""
    half = (len(values) // 20 if window is None else window) // 2
    total = np.concatenate(([0.0], np.cumsum(values)))
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)
