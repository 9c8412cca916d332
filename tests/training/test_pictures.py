"""What a run shows of itself."""

import numpy as np
from matplotlib.figure import Figure

from fastsketch.training.history import LossHistory, running_mean
from fastsketch.training.pictures import save_loss_curve


def test_the_curve_of_losses_is_smoothed_as_in_the_report(tmp_path, monkeypatch):
    values = np.arange(60.0) ** 2
    history = LossHistory(tmp_path / "losses.csv")
    for step, value in enumerate(values, start=1):
        history.add(step, {"nce": value})
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    save_loss_curve(history, tmp_path / "losses.png")
    raw, smooth = drawn[0].axes[0].lines
    assert np.array_equal(raw.get_ydata(), values)
    assert np.array_equal(smooth.get_ydata(), running_mean(values))
    assert smooth.get_ydata()[0] == 0.5  # of the two values there are
