"""Runs that begin with the networks of another run."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import run

from fastsketch.errors import FastsketchError
from fastsketch.training.config import TrainConfig
from fastsketch.training.run_files import load_settings
from fastsketch.training.trainer import Trainer


def weights_of(run: Trainer) -> dict[str, dict[str, torch.Tensor]]:
    return {name: module.state_dict() for name, module in run.translator.networks().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def first(tiny) -> Trainer:
    run = Trainer(tiny(), Path(tiny().data), quiet=True)
    assert run.run()
    return run


@pytest.fixture
def next_run(tiny, tmp_path):
    """next_run(source, **changes): settings of a second run, from `source`."""

    def make(source: Path, **changes) -> TrainConfig:
        return replace(tiny(), out=tmp_path / "next", init_from=source, **changes)

    return make


def begin(config: TrainConfig) -> Trainer:
    return Trainer(config, Path(config.data), quiet=True)


def test_all_networks_of_a_run_at_another_size(first, next_run):
    run = begin(next_run(first.paths.root, image_size=48, crop_size=48, seed=7))
    assert run.begun_with == ["generator", "discriminator", "projection"]
    for name, state in weights_of(run).items():
        assert equal(state, weights_of(first)[name]), name
    assert (run.step, run.epoch, run.seen) == (0, 0, 0)
    assert not any(optimizer.state for optimizer in run.update.optimizers.values())
    assert run.run()
    assert not equal(weights_of(run)["generator"], weights_of(first)["generator"])


@pytest.mark.parametrize("folder", [False, True])
def test_the_generator_alone(first, next_run, tmp_path, folder):
    source = first.paths.generator
    if folder:  # a run's folder whose checkpoint was not kept
        source = tmp_path / "shared"
        source.mkdir()
        shutil.copy(first.paths.generator, source)
    run, plain = begin(next_run(source)), begin(replace(next_run(source), init_from=None))
    assert run.begun_with == ["generator"]
    assert equal(weights_of(run)["generator"], weights_of(first)["generator"])
    assert equal(weights_of(run)["discriminator"], weights_of(plain)["discriminator"])  # of the seed, as ever


def test_a_resumed_run_goes_on_from_itself_without_its_source(first, next_run, tmp_path):
    straight = begin(next_run(first.paths.root))
    assert straight.run()
    config = next_run(first.paths.root)
    shutil.rmtree(config.out)
    assert begin(replace(config, epochs=1)).run()
    shutil.rmtree(first.paths.root)
    resumed = begin(replace(config, resume=True))
    assert resumed.begun_with == []
    assert resumed.run()
    assert equal(weights_of(resumed)["generator"], weights_of(straight)["generator"])


def test_paths_are_kept_whole_and_may_not_change(first, next_run, monkeypatch):
    monkeypatch.chdir(first.paths.root.parent)
    config = next_run(Path(first.paths.root.name))
    run = begin(config)
    run.save()
    assert load_settings(run.paths.settings).init_from == first.paths.root
    begin(replace(config, resume=True))
    with pytest.raises(FastsketchError, match=r"keeps its settings; changed: init_from .* -> None"):
        begin(replace(config, resume=True, init_from=None))


def test_what_does_not_fit_is_named(first, next_run, tmp_path):
    root = first.paths.root
    with pytest.raises(FastsketchError, match=r"init_from .*: networks of other settings: width 4, here 8"):
        begin(next_run(root, width=8))
    with pytest.raises(FastsketchError, match="projection_dim 8, here 16"):
        begin(next_run(root, projection_dim=16))
    with pytest.raises(FastsketchError, match=r"init_from .*generator.safetensors: weights of another architecture"):
        begin(next_run(first.paths.generator, width=8))
    theirs, mine = first.config.demodulated, "none"
    assert theirs != mine
    for source in (root, first.paths.generator):
        with pytest.raises(FastsketchError, match=rf"init_from .*: demodulated {theirs}, here {mine}"):
            begin(next_run(source, demodulated=mine))
    with pytest.raises(FastsketchError, match="no such file or run"):
        begin(next_run(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FastsketchError, match=r"no generator.safetensors in this folder"):
        begin(next_run(tmp_path / "empty"))
    first.paths.checkpoint.write_bytes(b"PK")
    with pytest.raises(FastsketchError, match="not a readable checkpoint"):
        begin(next_run(root))
    assert not (tmp_path / "next").exists()  # a refused run leaves nothing behind


def test_command_says_what_it_began_with(first, tmp_path, capsys):
    config = first.config
    sizes = {
        name: getattr(config, name)
        for name in ("image_size", "crop_size", "width", "blocks", "discriminator_width", "projection_dim")
    }
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    options += ["--num-patches=16", "--lambda-perceptual=0", "--epochs=1", "--decay-epochs=0", "--device=cpu"]
    options += [f"--data={config.data}", f"--out={tmp_path / 'next'}", f"--init-from={config.out}"]
    code, text, _ = run(capsys, "train", *options)
    assert code == 0
    assert f"begun with the networks of {config.out}: generator, discriminator, projection\n" in text
