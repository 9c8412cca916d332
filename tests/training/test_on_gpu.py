"""Training on a GPU: plainly, captured in a CUDA graph, stopped and resumed."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastsketch.training.checkpoint import load_generator
from fastsketch.training.speed import choose_speed
from fastsketch.training.trainer import Trainer
from fastsketch.trial import captured

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = torch.device("cuda", 0)
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


@pytest.mark.parametrize("channels_last", ["on", "off"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset", ["fsscl", "cut", "fastcut"])
def test_a_captured_step_is_the_plain_step(tiny, preset, precision, channels_last):
    """From the same weights and state, several times: a replay has random numbers and a learning rate of its own."""
    config = tiny(preset, precision=precision, channels_last=channels_last, cuda_graph="off", **ON_GPU)
    captured.check_case(captured.case_name(config, choose_speed(config, CUDA)), CUDA)


def test_auto_captures_what_passed_in_a_process_of_its_own(tiny, monkeypatch):
    monkeypatch.delenv("FASTSKETCH_GPU_CHECK", raising=False)
    config = tiny(**ON_GPU)
    assert captured.why_not(config, choose_speed(replace(config, cuda_graph="off"), CUDA), CUDA) == ""
    assert choose_speed(config, CUDA).cuda_graph


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
