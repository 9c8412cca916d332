"""Runs: every part switched off once, resumed bit for bit, stopped, broken, and never torn."""

import copy
import errno
import json
import os
import pickle
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fastsketch.errors import FastsketchError
from fastsketch.nn import ResnetGenerator
from fastsketch.training.checkpoint import load_checkpoint, load_generator, save_checkpoint, save_generator
from fastsketch.training.config import PRESETS, TrainConfig
from fastsketch.training.trainer import NonFiniteLoss, Trainer, choose_device


def trainer(config: TrainConfig) -> Trainer:
    return Trainer(config, Path(config.data), quiet=True)


def state_of(run: Trainer) -> dict:
    return load_checkpoint(run.paths.checkpoint, torch.device("cpu"))


def assert_same_state(a: object, b: object, where: str = "") -> None:
    """Equal to the last bit, through nested dicts and lists."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_state(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}/{i}")
    else:
        assert a == b, where


def stop_at(run: Trainer, step: int, number: int = signal.SIGINT) -> None:
    """Send this process Ctrl-C (or another signal) during step number `step`."""
    original = run.train_step

    def train_step(batch):
        if run.step + 1 == step:
            os.kill(os.getpid(), number)
        return original(batch)

    run.train_step = train_step


def without_settings(state: dict) -> dict:
    return {name: value for name, value in state.items() if name != "settings"}


def test_a_run_leaves_everything_it_should(tiny):
    run = trainer(tiny())
    assert run.run()
    files = {p.name for p in run.paths.root.iterdir()}
    assert {"settings.json", "checkpoint.pt", "generator.safetensors", "losses.csv", "losses.png"} <= files
    assert sorted(p.name for p in run.paths.pictures.iterdir()) == ["epoch_0001.png", "epoch_0002.png"]
    assert len(run.history.steps) == 10
    assert run.history.names == ["discriminator", "gan", "nce", "nce_identity", "pixel"]
    assert any(run.paths.tensorboard.iterdir())
    assert not [p for p in run.paths.root.rglob("*") if p.name.startswith(".")]
    assert TrainConfig.from_json(run.paths.settings.read_text(), "settings") == run.config


@pytest.mark.parametrize(
    ("stop", "batch_size", "preset", "changes"),
    [
        *((stop, size, "fastcut" if stop == 5 else "fsscl", {}) for stop in (3, 5, 7) for size in (1, 2)),
        (7, 2, "fsscl", {"precision": "bfloat16"}),
        (7, 1, "fsscl", {"random_affine": 0.1, "color_jitter": 0.2}),
        (7, 1, "fsscl", {"random_affine": 0.1, "augment_decay": False}),
    ],
)
@pytest.mark.filterwarnings("ignore:precision is bfloat16")
def test_resume_is_bit_exact(tiny, tmp_path, stop, batch_size, preset, changes):
    settings = tiny(preset, batch_size=batch_size, **changes)
    straight = trainer(settings)
    assert straight.run()
    config = replace(settings, out=tmp_path / "broken")
    first = trainer(config)
    stop_at(first, min(stop, 2 * -(-5 // batch_size) - 1))
    assert not first.run()
    second = trainer(replace(config, resume=True))
    assert second.step == first.step > 0
    assert second.run()
    assert_same_state(without_settings(state_of(second)), without_settings(state_of(straight)))
    assert second.paths.losses.read_text() == straight.paths.losses.read_text()
    assert second.paths.generator.read_bytes() == straight.paths.generator.read_bytes()


def test_the_number_of_pictures_may_change_and_changes_nothing(tiny, tmp_path):
    straight = trainer(tiny())
    assert straight.run()
    config = replace(tiny(), out=tmp_path / "fewer")
    first = trainer(config)
    stop_at(first, 3)
    assert not first.run()
    second = trainer(replace(config, resume=True, pictures=0))
    assert second.run() and not second.paths.pictures.exists()
    assert_same_state(without_settings(state_of(second)), without_settings(state_of(straight)))


def test_a_killed_run_goes_on_from_its_last_checkpoint(tiny, tmp_path):
    straight = trainer(tiny(save_every=2))
    assert straight.run()
    config = replace(tiny(save_every=2), out=tmp_path / "killed")
    killed = trainer(config)
    original = killed.train_step

    def train_step(batch):
        if killed.step == 7:
            raise SystemError("killed")
        return original(batch)

    killed.train_step = train_step
    with pytest.raises(SystemError):
        killed.run()
    resumed = trainer(replace(config, resume=True))
    assert resumed.step == 6
    assert resumed.run()
    assert_same_state(without_settings(state_of(resumed)), without_settings(state_of(straight)))
    assert resumed.paths.losses.read_text() == straight.paths.losses.read_text()


def test_same_seed_same_run_and_another_seed_another(tiny, tmp_path):
    losses = []
    for number, seed in enumerate((0, 0, 1)):
        run = trainer(replace(tiny(seed=seed, decay_epochs=0), out=tmp_path / str(number)))
        run.run()
        losses.append(run.paths.losses.read_text())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"regions": False},
        {"dynamic": False},
        {"mask": False},
        {"lambda_pixel": 0.0},
        {"lambda_perceptual": 1.0},
        {"lambda_perceptual": 1.0, "perceptual_distance": "l1"},
        {"attention": False, "regions": False, "dynamic": False},
        {"identity": False},
        {"lambda_gan": 0.0},
        {"lambda_nce": 0.0},
        {"multiplicity": True},
        {"negatives": "same_region"},
        {"negatives": "other_regions"},
        {"negatives": "batch", "batch_size": 2},
        {"precision": "bfloat16"},
        {"sketch_channels": 3},
        {"unpaired": True, "lambda_pixel": 0.0},
        {"workers": 1},
        {"preset": "cut"},
        {"preset": "fastcut"},
        {"preset": "fastcut", "mask": True},
    ],
    ids=lambda changes: "-".join(f"{n}={v}" for n, v in changes.items()),
)
def test_each_part_can_be_switched(tiny, changes):
    run = trainer(tiny(changes.pop("preset", "fsscl"), decay_epochs=0, **changes))
    before = {n: p.clone() for n, p in run.translator.named_parameters()}
    assert run.run()
    moved = {n for n, p in run.translator.named_parameters() if not torch.equal(p, before[n])}
    assert any(n.startswith("generator.") for n in moved) and any(n.startswith("discriminator.") for n in moved)
    assert any(n.startswith("projection.") for n in moved) == bool(run.config.lambda_nce)
    assert all(torch.isfinite(p).all() for p in run.translator.parameters())


def test_presets_differ_only_in_what_the_method_names():
    networks = {"init_gain", "demodulated", "attention"}
    parts = {*networks, "regions", "dynamic", "mask", "lambda_pixel", "lambda_perceptual"}
    schedule = {"epochs", "decay_epochs"}
    assert PRESETS["fsscl"] == {}
    assert set(PRESETS["cut"]) == parts | schedule
    assert set(PRESETS["fastcut"]) == parts | schedule | {"lambda_nce", "identity", "flip_equivariance"}


def test_nan_stops_before_the_weights_and_names_the_picture(tiny):
    run = trainer(tiny(save_every=1))
    original = run.train_step

    def train_step(batch):
        if run.step == 2:
            batch["sketch"][:] = float("nan")
            train_step.picture = run.dataset.pairs[int(batch["index"])].photo
        return original(batch)

    run.train_step = train_step
    with pytest.raises(NonFiniteLoss) as caught:
        run.run()
    message = str(caught.value)
    assert "step 3" in message and str(train_step.picture) in message and "\n" not in message
    assert str(run.paths.checkpoint) in message
    state = state_of(run)
    assert state["step"] == 2
    for network in state["networks"].values():
        assert all(torch.isfinite(t).all() for t in network.values())


def test_a_nan_that_is_looked_for_late_is_told_of_its_own_step(tiny):
    """As on a GPU, where a look after each step would wait."""
    run = trainer(tiny(log_every=3))
    run.device = torch.device("meta")
    first, broken, last, *_ = run.batches.of_epoch(0)
    broken["sketch"][:] = float("nan")
    picture = run.dataset.pairs[int(broken["index"])].photo
    with pytest.raises(NonFiniteLoss, match=rf"loss is not finite at step 2 \(pictures: {re.escape(str(picture))}\)"):
        for batch in (first, broken, last):
            run.train_step(batch)
            run.step += 1
    assert run.step == 2 and all(torch.isfinite(p).all() for p in run.translator.parameters())


def test_a_full_disk_keeps_the_last_checkpoint(tiny, monkeypatch):
    run = trainer(tiny())
    run.save()
    before = run.paths.checkpoint.read_bytes()

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FastsketchError, match=r"checkpoint.pt: .*No space left"):
        save_checkpoint(run.paths.checkpoint, {"step": 1})
    assert run.paths.checkpoint.read_bytes() == before
    assert not [p for p in run.paths.root.iterdir() if p.name.startswith(".")]


def test_a_run_is_not_overwritten_and_not_resumed_with_other_settings(tiny):
    config = tiny(decay_epochs=0)
    trainer(config).run()
    with pytest.raises(FastsketchError, match="--resume"):
        trainer(config)
    with pytest.raises(FastsketchError, match=r"width 4 -> 8"):
        trainer(replace(config, resume=True, width=8))
    longer = trainer(replace(config, resume=True, epochs=2))
    assert longer.run() and longer.step == 10


def test_resuming_nothing_or_damaged_files(tiny, tmp_path):
    with pytest.raises(FastsketchError, match="no run to resume"):
        trainer(tiny(resume=True))
    config = tiny(decay_epochs=0)
    run = trainer(config)
    run.run()
    whole = run.paths.checkpoint.read_bytes()
    run.paths.checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FastsketchError, match=r"checkpoint\.pt: not a readable checkpoint"):
        trainer(replace(config, resume=True))
    settings = json.loads(run.paths.settings.read_text())
    run.paths.settings.write_text(json.dumps({**settings, "widht": 3}))
    with pytest.raises(FastsketchError, match="unknown settings widht"):
        trainer(replace(config, resume=True))
    run.paths.settings.write_bytes(b"\xff\xfe{")
    with pytest.raises(FastsketchError, match=r"settings\.json: damaged"):
        trainer(replace(config, resume=True))
    run.paths.settings.write_text("{")
    with pytest.raises(FastsketchError, match="not the settings"):
        trainer(replace(config, resume=True))


@pytest.mark.parametrize(
    ("name", "then", "now"),
    [
        ("perceptual_distance", "l1", "normalized"),
        ("init_gain", 0.02, 1.0),
        ("canvas", "square", "tight"),
        ("demodulated", "none", "decoder"),
    ],
)
def test_a_run_of_before_keeps_what_had_no_name_then(tiny, name, then, now):
    config = tiny(decay_epochs=0, **{name: then})
    run = trainer(config)
    run.run()
    settings = json.loads(run.paths.settings.read_text())
    assert settings.pop(name) == then
    run.paths.settings.write_text(json.dumps(settings))
    again = replace(config, resume=True, epochs=2)
    assert trainer(again).step == run.step
    run.paths.settings.write_text(json.dumps(settings))
    with pytest.raises(FastsketchError, match=f"changed: {name} {then} -> {now}"):
        trainer(replace(again, **{name: now}))


def test_a_run_goes_on_with_its_own_pictures_alone(tiny, data, tmp_path):
    """Wherever they lie; with others it is refused, and its settings stay as they were."""
    config = tiny(decay_epochs=0)
    run = trainer(config)
    run.run()
    settings = run.paths.settings.read_bytes()
    moved, fewer = tmp_path / "moved", tmp_path / "fewer"
    for folder in (moved, fewer):
        shutil.copytree(data, folder)
    for kind in ("photos", "sketches"):
        next(iter(sorted(fewer.rglob(f"train/{kind}/*")))).unlink()
    with pytest.raises(FastsketchError, match="trained on other pictures than --data"):
        trainer(replace(config, data=str(fewer), resume=True, epochs=2))
    assert run.paths.settings.read_bytes() == settings
    assert trainer(replace(config, data=str(moved), resume=True, epochs=2)).run()


def test_an_unpaired_run_takes_photos_and_sketches_that_share_a_name_alone(tiny, data):
    """Their sizes differ: there is no picture of both, and no error."""
    for path in data.rglob("test/sketches/*"):
        Image.open(path).resize((90, 40)).save(path)
    for path in data.rglob("train/sketches/*"):
        Image.open(path).resize((60, 70)).save(path)
    assert trainer(tiny(decay_epochs=0, unpaired=True, lambda_pixel=0.0)).run()


def test_a_checkpoint_of_another_architecture_is_named(tiny):
    config = tiny(decay_epochs=0)
    run = trainer(config)
    run.run()
    settings = json.loads(run.paths.settings.read_text())
    run.paths.settings.write_text(json.dumps({**settings, "width": 8}))
    with pytest.raises(FastsketchError, match=r"checkpoint\.pt \(generator\): weights of another architecture"):
        trainer(replace(config, resume=True, width=8))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pickle-was-run",)


def test_a_hostile_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    torch.save({"format": 1, "networks": Evil()}, path)
    with pytest.raises(FastsketchError, match="not a readable checkpoint"):
        load_checkpoint(path, torch.device("cpu"))
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FastsketchError, match="not a readable checkpoint"):
        load_checkpoint(path, torch.device("cpu"))
    assert not (tmp_path / "pickle-was-run").exists()


def test_generator_weights_give_the_same_drawing(tiny):
    run = trainer(tiny(decay_epochs=0))
    run.run()
    loaded = load_generator(run.paths.generator)
    trained = run.translator.generator.eval().to(memory_format=torch.contiguous_format)  # as the loaded one is
    photo, mask = torch.rand(1, 3, 48, 40), torch.ones(1, 1, 48, 40)
    with torch.no_grad():
        assert torch.equal(loaded(photo, mask), trained(photo, mask))
    with pytest.raises(FastsketchError, match="not a generator"):
        load_generator(run.paths.checkpoint)
    with pytest.raises(FastsketchError, match="no such weights file"):
        load_generator(run.paths.root / "nothing.safetensors")


@pytest.mark.parametrize("parts", [{}, {"mask_channel": False, "attention": False, "tap_layers": (0, 4, 8, 12, 16)}])
def test_a_generator_is_rebuilt_from_its_file_alone(tmp_path, parts):
    generator = ResnetGenerator(1, 3, 2, 6, **parts)
    save_generator(tmp_path / "g.safetensors", copy.deepcopy(generator))
    with safe_open(tmp_path / "g.safetensors", framework="pt") as file:
        said = file.metadata()
    on = "false" if parts else "true"
    shape = f'"in_channels": 1, "out_channels": 3, "width": 2, "blocks": 6, "mask_channel": {on}, "attention": {on}'
    assert said == {"fastsketch": f'{{{shape}, "demodulated": "none"}}'}
    loaded = load_generator(tmp_path / "g.safetensors")
    assert loaded.architecture == generator.architecture
    for name, value in generator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_taps_that_the_file_does_not_keep_are_refused(tmp_path):
    other = ResnetGenerator(3, 1, 2, 6, tap_layers=(0, 12))  # attention stands behind the last: another drawing
    with pytest.raises(ValueError, match=r"tap_layers \(0, 4, 8, 12, 16\) to be saved, got \(0, 12\)"):
        save_generator(tmp_path / "g.safetensors", other)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_patches": 65}, r"num_patches must be at most 64"),
        ({"crop_size": 30}, "multiple of 4"),
        ({"crop_size": 44}, "at most image_size"),
        ({"blocks": 4}, "blocks"),
        ({"attention": False}, "need attention"),
        ({"unpaired": True}, "--lambda-pixel 0"),
        ({"lr": 0.0}, "lr"),
        ({"lambda_nce": float("nan")}, "lambda_nce"),
        ({"batch_size": 0}, "batch_size"),
        ({"sketch_channels": 2}, "sketch_channels"),
        ({"regions": False, "negatives": "same_region"}, "negatives same_region need regions"),
        ({"preset": "cut", "negatives": "other_regions"}, "negatives other_regions need regions"),
        ({"dynamic": False, "multiplicity": True}, "multiplicity needs dynamic"),
        ({"augment_decay": False}, "augment_decay is off but there is no augmentation"),
        ({"density_window": -1}, "density_window must be odd and at least 1, got -1"),
        ({"betas": (2.0, 3.0)}, "betas"),
        ({"betas": (0.5, 1.0)}, "betas"),
        ({"seed": 2**63}, "seed must be below"),
        ({"lambda_gan": 0.0, "lambda_nce": 0.0, "lambda_pixel": 0.0}, "all losses are off"),
        ({"precision": "float16"}, "precision must be one of auto, float32, bfloat16, got 'float16'"),
        ({"winograd": "yes"}, "winograd must be one of auto, on, off, got 'yes'"),
        ({"compile": True}, "compile must be one of auto, on, off, got True"),
        ({"masks": "grab"}, "masks"),
        ({"negatives": "others"}, "negatives must be one of image"),
        ({"perceptual_weights": "none"}, "perceptual_weights"),
    ],
)
def test_bad_settings_are_named(tiny, changes, message):
    with pytest.raises(FastsketchError, match=message):
        tiny(changes.pop("preset", "fsscl"), **changes)


def test_an_unknown_preset_is_named(tiny):
    with pytest.raises(FastsketchError, match="preset must be one of cut, fastcut, fsscl, got 'nonsense'"):
        replace(tiny(), preset="nonsense")


def test_the_largest_seed_trains(tiny):
    assert trainer(tiny(seed=2**63 - 1, decay_epochs=0)).run()


@pytest.mark.parametrize("name", ["quantum", "meta", "hpu"])
def test_bad_device(tiny, name):
    with pytest.raises(FastsketchError, match=f"device '{name}' cannot be used"):
        trainer(tiny(device=name))


def test_a_device_that_fails_without_a_word_is_one_line(tiny, monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(torch, "zeros", fail)
        with pytest.raises(FastsketchError, match=r"device 'cpu' cannot be used: AssertionError$"):
            choose_device("cpu")


def test_learning_rate_is_constant_then_falls_to_almost_zero(tiny):
    run = trainer(tiny(epochs=3, decay_epochs=3, lr=1.0))
    assert [run.learning_rate(epoch) for epoch in range(6)] == [1, 1, 1, 0.75, 0.5, 0.25]
