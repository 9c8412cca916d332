"""Loss curves as inline SVG, coloured by the page's style sheet."""

from dataclasses import dataclass

import numpy as np

from fastsketch.training.history import LossHistory, running_mean

WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 22
MOST_POINTS = 400


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in the drawing's units, and what it says."""

    place: float
    text: str


@dataclass(frozen=True)
class Curve:
    """One loss over the steps, ready to be drawn.

    Attributes:
        name: the loss.
        raw: polyline points of the logged values.
        mean: polyline points of their running mean.
        x: marks of the steps.
        y: marks of the values.
        first: mean of the first twentieth of the values.
        last: mean of the last twentieth.
        steps: the last step.
    """

    name: str
    raw: str
    mean: str
    x: list[Tick]
    y: list[Tick]
    first: float
    last: float
    steps: int


def curves(history: LossHistory) -> list[Curve]:
    """One curve a loss that has at least two rows, in the history's order."""
    drawn = []
    for name in history.names:
        rows = [(row["step"], row[name]) for row in history.rows if name in row]
        if len(rows) >= 2:
            drawn.append(_curve(name, *np.array(rows, dtype=float).T))
    return drawn


def nice_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """At most `most` + 1 round numbers within [low, high], 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return [float(number * step) + 0.0 for number in np.arange(first, last + 1)]


def _curve(name: str, steps: np.ndarray, values: np.ndarray) -> Curve:
    mean = running_mean(values)
    # A few outliers must not flatten all the rest.
    low, high = min(0.0, float(values.min())), float(max(np.quantile(values, 0.995), mean.max()))
    if not high > low:
        high = low + 1.0
    start, end = float(steps[0]), float(max(steps[-1], steps[0] + 1))

    def x(step):
        return LEFT + (step - start) / (end - start) * (WIDTH - LEFT - RIGHT)

    def y(value):
        return HEIGHT - BOTTOM - (np.clip(value, low, high) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    keep = np.unique(np.linspace(0, len(values) - 1, min(MOST_POINTS, len(values))).round().astype(int))

    def line(series: np.ndarray) -> str:
        return " ".join(f"{x(steps[i]):.1f},{y(series[i]):.1f}" for i in keep)

    tail = max(1, len(values) // 20)
    return Curve(
        name,
        line(values),
        line(mean),
        [Tick(float(x(tick)), f"{tick:,.0f}".replace(",", "\u202f")) for tick in nice_ticks(start, end)],
        [Tick(float(y(tick)), f"{tick:.4g}") for tick in nice_ticks(low, high)],
        float(values[:tail].mean()),
        float(values[-tail:].mean()),
        int(steps[-1]),
    )
