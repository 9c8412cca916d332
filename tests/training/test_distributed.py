"""Several processes: the gradients of one, negatives of all, a fair share of the data, and one that writes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import run_together
from torch import Tensor

from fastsketch.errors import FastsketchError
from fastsketch.functional import patch_nce
from fastsketch.nn import PatchSample
from fastsketch.training.batches import ShardedBatches
from fastsketch.training.checkpoint import load_checkpoint
from fastsketch.training.data import EpochSampler
from fastsketch.training.distributed import World, patch_nce_over_ranks
from fastsketch.training.speed import choose_speed
from fastsketch.training.step import TrainingStep
from fastsketch.training.trainer import NonFiniteLoss, Trainer
from fastsketch.training.translator import Translator

CPU = torch.device("cpu")


class FixedPositions(Translator):
    """The same positions in every picture, however the pictures are shared out."""

    def draw_positions(self, structure, mask, features, rng):
        batch = structure.shape[0]
        positions = []
        for height, width in features.sizes:
            drawn = torch.randperm(height * width, generator=torch.Generator().manual_seed(height))
            positions.append(drawn[: self.config.num_patches].expand(batch, -1))
        sample = PatchSample(positions[-1], torch.zeros_like(positions[-1]), None, features.sizes[-1])
        return sample, positions


def one_step(world: World, config, batch: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Gradients, losses and weights after a step in float64 on this process's share of the batch."""
    torch.manual_seed(0)
    translator = FixedPositions(config).double()
    update = TrainingStep(translator, config, choose_speed(config, CPU, world.size), world)
    mine = {name: value[world.rank :: world.size] for name, value in batch.items()}
    losses = update(mine, False)
    return {
        "losses": losses,
        "gradients": {n: p.grad for n, p in translator.named_parameters() if p.grad is not None},
        "weights": {n: p.detach() for n, p in translator.named_parameters()},
    }


def global_batch(count: int = 4) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)

    def pictures(channels: int) -> Tensor:
        return torch.rand(count, channels, 32, 32, generator=rng, dtype=torch.float64) * 2 - 1

    return {"photo": pictures(3), "sketch": pictures(1), "mask": (pictures(1) > -0.5).double()}


@pytest.mark.parametrize("changes", [{}, {"negatives": "batch"}, {"lambda_nce": 0.0}], ids=str)
def test_gradients_are_those_of_one_process(tiny, tmp_path, changes):
    config = tiny(batch_size=4, **changes)
    alone = one_step(World(), config, global_batch())
    together = run_together(one_step, 2, tmp_path / "together", config, global_batch())
    # A bias in front of a norm has no gradient but rounding: the scale is that of all gradients.
    rounding = 1e-12 * max(gradient.abs().max().item() for gradient in alone["gradients"].values())
    for result in together:
        assert result["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            torch.testing.assert_close(result["gradients"][name], gradient, rtol=1e-7, atol=rounding)
        for name, loss in alone["losses"].items():
            torch.testing.assert_close(result["losses"][name], loss, rtol=1e-5, atol=1e-6)
    for name, weight in together[0]["weights"].items():
        assert torch.equal(weight, together[1]["weights"][name])


def contrast(world: World, query: Tensor, key: Tensor, arriving: Tensor) -> dict[str, Tensor]:
    query, key, arriving = (x.chunk(world.size, 1)[world.rank].clone() for x in (query, key, arriving))
    query.requires_grad_()
    key.requires_grad_()
    loss = patch_nce_over_ranks(query, key, 0.2)
    (loss * arriving).sum().backward()
    return {"loss": loss.detach(), "query": query.grad, "key": key.grad}


@pytest.mark.parametrize("size", [2, 3])
def test_batch_negatives_over_all_processes(tmp_path, size):
    """Against the matrix of everything in one process, gradients of queries and keys included."""
    query, key = (torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    arriving = torch.rand(2, 6, dtype=torch.float64)
    unit = [x / (x.norm(dim=-1, keepdim=True) + 1e-7) for x in (query, key)]
    logits = torch.einsum("lid,ljd->lij", *unit) / 0.2
    want = -logits.log_softmax(-1).diagonal(dim1=1, dim2=2)
    (want * arriving).sum().backward()
    torch.testing.assert_close(want, patch_nce(query, key, temperature=0.2, normalize=True, reduction="none"))
    parts = run_together(contrast, size, tmp_path / "run", query.detach(), key.detach(), arriving)
    for name, whole in {"loss": want.detach(), "query": query.grad, "key": key.grad}.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts], 1), whole)


@pytest.mark.parametrize(("length", "batch_size", "size"), [(12, 4, 2), (11, 4, 2), (13, 4, 2), (14, 6, 3), (5, 8, 4)])
def test_shares_do_not_overlap_and_leave_out_less_than_one_each(length, batch_size, size):
    seen: list[list[int]] = []
    for epoch in range(3):
        order = EpochSampler(length, seed=1)
        order.set_epoch(epoch)
        shares = [list(ShardedBatches(order, batch_size, World(rank, size))) for rank in range(size)]
        assert {len(share) for share in shares} == {ShardedBatches(order, batch_size, World(0, size)).per_epoch}
        for batches in zip(*shares, strict=True):
            assert len({len(batch) for batch in batches}) == 1
        together = [index for share in shares for batch in share for index in batch]
        assert len(set(together)) == len(together) == length - length % batch_size % size
        alone = [i for batch in ShardedBatches(order, batch_size, World()) for i in batch]
        assert sorted(alone) == list(range(length)) and set(together) <= set(alone)
        seen.append(sorted(together))
    if length % batch_size % size:
        assert seen[0] != seen[1] or seen[1] != seen[2]


def test_resuming_inside_an_epoch_shares_the_rest(tmp_path):
    order = EpochSampler(13, seed=1)
    order.set_epoch(2)
    shards = [ShardedBatches(order, 4, World(rank, 2)) for rank in range(2)]
    whole = [list(shard) for shard in shards]
    order.set_epoch(2, start=8)
    assert [list(shard) for shard in shards] == [batches[2:] for batches in whole]
    assert len(shards[0]) == 1 and shards[0].per_epoch == 3


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(FastsketchError, match=r"batch_size .* multiple of their number, 2; got 3"):
        ShardedBatches(EpochSampler(9), 3, World(0, 2))
    with pytest.raises(FastsketchError, match="2 pictures cannot be shared by 4 processes"):
        ShardedBatches(EpochSampler(2), 4, World(0, 4))


def run_in_world(world: World, config, broken_rank: int | None, stop_rank: int | None) -> dict:
    """A run of two processes, one of which meets a NaN or a Ctrl-C."""
    run = Trainer(config, Path(config.data), quiet=True, world=world)
    original, seeds = run.train_step, []

    def train_step(batch):
        if run.step == 3 and world.rank == broken_rank:
            batch["photo"][:] = float("nan")
        if run.step == 1 and world.rank == stop_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        losses = original(batch)
        seeds.append(run.update.rng.initial_seed())
        return losses

    run.train_step = train_step
    message = ""
    try:
        ended = run.run()
    except NonFiniteLoss as error:
        ended, message = False, str(error)
    finite = all(bool(torch.isfinite(p).all()) for p in run.translator.parameters())
    return {"ended": ended, "message": message, "finite": finite, "step": run.step, "seeds": seeds}


def test_a_nan_in_one_process_stops_both(tiny, tmp_path):
    config = tiny(batch_size=2, save_every=2)
    results = run_together(run_in_world, 2, tmp_path / "nan", config, 1, None)
    for result in results:
        assert not result["ended"] and result["finite"]
        assert "step 4" in result["message"] and result["message"].count("photos/") == 2  # the batch's two pictures
    assert load_checkpoint(config.out / "checkpoint.pt", CPU)["step"] == 2
    assert not set(results[0]["seeds"]) & set(results[1]["seeds"])  # no random positions in common


def test_a_signal_to_one_process_stops_both_and_another_number_of_them_goes_on(tiny, tmp_path):
    config = tiny(batch_size=2)
    results = run_together(run_in_world, 2, tmp_path / "stop", config, None, 1)
    assert [result["step"] for result in results] == [2, 2] and not results[0]["ended"]
    assert load_checkpoint(config.out / "checkpoint.pt", CPU)["step"] == 2
    alone = Trainer(replace(config, resume=True), Path(config.data), quiet=True)
    assert alone.step == 2 and alone.run()
    again = run_together(run_in_world, 2, tmp_path / "again", replace(config, resume=True, epochs=2), None, None)
    assert again[0]["ended"] and again[0]["step"] == again[1]["step"] > alone.step


@pytest.mark.slow
def test_torchrun_trains_saves_on_sigterm_and_refuses_what_it_must(tiny):
    config = tiny()
    sizes = "--image-size 40 --crop-size 32 --width 4 --blocks 5 --discriminator-width 4 --projection-dim 8"
    options = f"{sizes} --num-patches 16 --pictures 1 --device cpu --lambda-perceptual 0 --save-every 1"
    run = f"-m torch.distributed.run --nproc-per-node=2 -m fastsketch train --data {config.data} --out {config.out}"

    def torchrun(more: str) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, *run.split(), *options.split(), *more.split()]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    running = torchrun("--batch-size 2 --epochs 1000")
    deadline = time.monotonic() + 120
    while not (config.out / "checkpoint.pt").exists():
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=60)
    assert output.count("stopped and saved at step") == 1, output
    step = load_checkpoint(config.out / "checkpoint.pt", CPU)["step"]
    assert f"saved at step {step};" in output
    output, _ = torchrun("--batch-size 1 --resume").communicate(timeout=120)
    assert "changed: batch_size 2 -> 1" in output
