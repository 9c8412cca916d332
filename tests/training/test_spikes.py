"""The look at cells that outshine all others: `benchmarks/spikes.py`."""

import pytest
import torch

from benchmarks import spikes
from fastsketch.training.images import Padding
from fastsketch.training.trainer import Trainer

CELLS = {
    (0.1, 0.5): "padding",
    (0.5, 0.05): "padding",
    (0.6, 0.97): "padding",
    (0.3, 0.3): "paper",
    (0.6, 0.6): "person",
}


@pytest.mark.parametrize(("cell", "place"), CELLS.items())
def test_where_a_spike_lies(cell, place):
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 10:, 10:] = 1  # of the padding, too
    assert spikes.place_of(cell, mask, Padding(left=2, top=4, right=1, bottom=0)) == place


@pytest.mark.parametrize("demodulated", ["none", "decoder", "blocks"])
def test_spikes_are_looked_for_before_each_activation(tiny, data, monkeypatch, capsys, demodulated):
    config = tiny(crop_size=None, demodulated=demodulated)
    trainer = Trainer(config, data, quiet=True)
    assert list(spikes.before_activations(trainer.translator.generator)) == ["1", "4", "8", "18", "22"]
    trainer.save()
    monkeypatch.setattr("sys.argv", ["spikes", "--run", str(config.out), "--data", str(data)])
    spikes.main()
    count, head, _, *rows = capsys.readouterr().out.splitlines()
    assert count == "2 photos" and head.startswith("| layer |")
    table = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in table] == ["1", "4", "8", "18", "22"]
    for _, middle, most, *places in table:
        assert 1 <= float(middle) <= float(most)
        assert sum(map(int, places)) == 2


def test_the_largest_cell_is_the_one_that_is_reported(tiny, data, monkeypatch, capsys):
    """A convolution that gives its largest values in one corner of the canvas, which is padding there."""
    config = tiny(crop_size=None, canvas="square")
    trainer = Trainer(config, data, quiet=True)
    trainer.save()

    def load(path):
        generator = load_generator(path)
        first = generator.model[1]
        first.register_forward_hook(lambda _l, _i, out: out.index_fill(3, torch.tensor([0]), 1e3))
        return generator

    load_generator = spikes.load_generator
    monkeypatch.setattr(spikes, "load_generator", load)
    monkeypatch.setattr("sys.argv", ["spikes", "--run", str(config.out), "--data", str(data)])
    spikes.main()
    first = next(row for row in capsys.readouterr().out.splitlines() if row.startswith("| 1 |"))
    assert [cell.strip() for cell in first.strip("|").split("|")][3:] == ["2", "0", "0"]


def test_without_a_mask_channel_it_says_so(tiny, data, monkeypatch, capsys):
    config = tiny(mask=False)
    Trainer(config, data, quiet=True).save()
    monkeypatch.setattr("sys.argv", ["spikes", "--run", str(config.out), "--data", str(data)])
    with pytest.raises(SystemExit):
        spikes.main()
    assert "--run must be of a generator with a mask channel" in capsys.readouterr().err
