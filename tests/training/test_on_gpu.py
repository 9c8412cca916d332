"""Training on a GPU: plainly, captured in a CUDA graph, stopped and resumed."""

import copy
import shutil

import pytest
import torch
from torch import Tensor

from fastsketch.training.checkpoint import load_generator
from fastsketch.training.graph import WARM_UP
from fastsketch.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ON_GPU = {"device": "cuda", "epochs": 2, "decay_epochs": 0}
ROUNDING = 1e-3
"""Of losses and of gradients as a whole: sums of other orders, in one step from one state."""


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """As in training: a look at values would wait, which no captured step may."""
    monkeypatch.delenv("FASTSKETCH_CHECK", raising=False)


def taken(trainer: Trainer, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Losses of a step, and all gradients as one vector."""
    losses = trainer.train_step(batch)
    grads = [p.grad.flatten() for p in trainer.translator.parameters() if p.grad is not None]
    return torch.stack(list(losses.values())).clone(), torch.cat(grads).clone()


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=ROUNDING, atol=ROUNDING)
    assert one[1].norm() > 0
    assert (one[1] - other[1]).norm() <= ROUNDING * one[1].norm()


@pytest.mark.parametrize("preset", ["fsscl", "cut"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run(tiny, data, preset, precision):
    trainer = Trainer(tiny(preset, precision=precision, **ON_GPU), data, quiet=True)
    assert trainer.run()
    assert trainer.step == 2 * trainer.batches.per_epoch == len(trainer.history.rows)
    assert torch.tensor([list(row.values()) for row in trainer.history.rows]).isfinite().all()
    drawn = load_generator(trainer.paths.generator, torch.device("cuda"))
    for mine, kept in zip(trainer.translator.generator.parameters(), drawn.parameters(), strict=True):
        assert torch.equal(mine, kept)


@pytest.mark.parametrize("preset", ["fsscl", "cut"])
def test_a_captured_step_is_the_plain_step(tiny, data, tmp_path, preset):
    """From the same weights and state, twice: a replay has random numbers and a learning rate of its own."""
    both = {graph: tiny(preset, out=tmp_path / graph, cuda_graph=graph, **ON_GPU) for graph in ("on", "off")}
    captured, plain = (Trainer(config, data, quiet=True) for config in both.values())
    batch = next(captured.batches.of_epoch(0, 0))
    for captured.step in range(WARM_UP + 1):
        captured.train_step(batch)
    for step, rate in ((10, 2e-4), (11, 1e-4)):
        plain.translator.load_state_dict(captured.translator.state_dict())
        states = {name: copy.deepcopy(o.state_dict()) for name, o in captured.update.optimizers.items()}
        plain.update.load_optimizers(states)
        for trainer in (captured, plain):
            trainer.step = step
            trainer.update.set_learning_rate(rate)
        before = torch.cat([p.detach().flatten() for p in captured.translator.generator.parameters()])
        same(taken(captured, batch), taken(plain, batch))
        after = torch.cat([p.detach().flatten() for p in captured.translator.generator.parameters()])
        assert 0 < (after - before).abs().max() < 10 * rate  # Adam moves a weight by its rate, or a few times that


@pytest.mark.parametrize("graph", ["off", "on"])
def test_a_resumed_run_goes_on(tiny, data, tmp_path, graph):
    """The first step after a resumption, however the run was trained before, is the same; and it ends well."""
    Trainer(tiny(out=tmp_path / "half", cuda_graph=graph, **{**ON_GPU, "epochs": 1}), data, quiet=True).run()
    shutil.copytree(tmp_path / "half", tmp_path / "again")
    resumed, other = (
        Trainer(tiny(out=tmp_path / name, cuda_graph=how, resume=True, **ON_GPU), data, quiet=True)
        for name, how in (("half", "on"), ("again", "off"))
    )
    batch = next(resumed.batches.of_epoch(1, 0))
    same(taken(resumed, batch), taken(other, batch))
    resumed.step += 1
    resumed.seen += len(batch["index"])
    assert resumed.run()
    assert resumed.step == 2 * resumed.batches.per_epoch
