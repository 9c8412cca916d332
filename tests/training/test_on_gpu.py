"""Training on a GPU: plainly, captured in a CUDA graph, stopped and resumed."""

import pytest
import torch

from fastsketch.training.checkpoint import load_generator
from fastsketch.training.graph import WARM_UP
from fastsketch.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ON_GPU = {"device": "cuda", "epochs": 2, "decay_epochs": 0}


def losses(trainer: Trainer) -> list[list[float]]:
    """Of each step."""
    assert trainer.run()
    return [list(row.values()) for row in trainer.history.rows]


@pytest.mark.parametrize("preset", ["fsscl", "cut"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run(tiny, data, preset, precision):
    trainer = Trainer(tiny(preset, precision=precision, **ON_GPU), data, quiet=True)
    rows = losses(trainer)
    assert len(rows) == 2 * trainer.batches.per_epoch
    assert torch.tensor(rows).isfinite().all()
    drawn = load_generator(trainer.paths.generator, torch.device("cuda"))
    for mine, kept in zip(trainer.translator.generator.parameters(), drawn.parameters(), strict=True):
        assert torch.equal(mine, kept)


@pytest.mark.parametrize("preset", ["fsscl", "fastcut"])
def test_captured_steps_are_the_plain_steps(tiny, data, tmp_path, preset):
    """The same random numbers, learning rates and batches; sums of other orders on the way."""
    rows = {}
    for graph in ("off", "on"):
        config = tiny(preset, out=tmp_path / graph, precision="float32", cuda_graph=graph, **ON_GPU)
        rows[graph] = torch.tensor(losses(Trainer(config, data, quiet=True)))
    assert len(rows["on"]) > 2 * WARM_UP
    torch.testing.assert_close(rows["on"], rows["off"], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("graph", ["off", "on"])
def test_a_resumed_run_goes_on(tiny, data, tmp_path, graph):
    whole = torch.tensor(losses(Trainer(tiny(out=tmp_path / "whole", cuda_graph=graph, **ON_GPU), data, quiet=True)))
    half = {**ON_GPU, "cuda_graph": graph, "out": tmp_path / "half"}
    Trainer(tiny(**half | {"epochs": 1}), data, quiet=True).run()
    resumed = torch.tensor(losses(Trainer(tiny(**half, resume=True), data, quiet=True)))
    torch.testing.assert_close(resumed, whole, rtol=2e-3, atol=2e-3)
