"""The trial of captured steps, with captures that merely take the step again: it passes what is right, and no other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastsketch import _backend
from fastsketch.training.config import PRESETS, TrainConfig
from fastsketch.training.graph import WARM_UP
from fastsketch.training.speed import Speed, choose_speed
from fastsketch.training.step import TrainingStep
from fastsketch.trial import captured, run, verdict

CPU = torch.device("cpu")
SPEED = Speed(torch.float32, False, True, False, False, False, False)


def again(call, rng):
    return call


def settings(preset: str = "fsscl", **changes) -> TrainConfig:
    return TrainConfig(data="", out=Path(), **{"preset": preset, **PRESETS[preset], **changes})


SMALL = replace(captured._SMALL, lambda_perceptual=0.0)
UNPAIRED = {"unpaired": True, "lambda_pixel": 0.0, "lambda_perceptual": 0.0}


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("fsscl", {}),
        ("fsscl", {"batch_size": 8, "negatives": "batch", "multiplicity": True, "lambda_perceptual": 0.0}),
        ("fsscl", {**UNPAIRED, "sketch_channels": 3}),
        ("cut", {}),
        ("fastcut", {}),
        ("fsscl", {"lambda_nce": 0.0, "lambda_perceptual": 0.0}),
    ],
    ids=str,
)
def test_what_is_right_passes(preset, changes):
    captured.check_case(captured.case_name(settings(preset, **changes), SPEED), CPU)


def test_a_case_is_the_run_s_own_settings_with_small_sizes(monkeypatch):
    tried = []
    monkeypatch.setattr(captured, "check", lambda config, speed, *_: tried.append((config, speed)))
    config = settings(
        "fastcut", width=64, batch_size=8, lambda_pixel=3.0, mask=True, negatives="batch", image_size=512, lr=1.0
    )
    name = captured.case_name(config, replace(SPEED, precision=torch.bfloat16, channels_last=True))
    captured.check_case(name, CPU)
    [(small, speed)] = tried
    same = {"flip_equivariance": True, "identity": False, "attention": False, "mask": True, "negatives": "batch"}
    assert {name: getattr(small, name) for name in same} == same
    assert (small.lambda_pixel, small.lambda_perceptual, small.lambda_nce) == (1.0, 0.0, 1.0)
    assert (small.image_size, small.width, small.batch_size, small.lr) == (64, 8, 2, 2e-4)
    assert (speed.precision, speed.channels_last) == (torch.bfloat16, True)
    assert name == captured.case_name(replace(config, image_size=256, seed=5, batch_size=2, lr=2e-4), speed)
    with _backend.use_backend("reference"):
        assert captured.case_name(config, speed) != name


def stale_numbers(call, rng):
    """Every replay has the random numbers of the capture."""
    state = rng.get_state()

    def replay():
        rng.set_state(state)
        call()

    return replay


def nothing(call, rng):
    """The capture itself takes a step, and its replays none."""
    call()
    return lambda: None


def twice(call, rng):
    def replay():
        call()
        call()

    return replay


@pytest.mark.parametrize("preset", ["fsscl", "fastcut"])
@pytest.mark.parametrize("capture", [stale_numbers, nothing, twice], ids=lambda capture: capture.__name__)
def test_what_is_wrong_is_found(preset, capture):
    with pytest.raises(AssertionError, match=r"^replay \d: (losses|gradient|update) off by"):
        captured.check(replace(SMALL, **PRESETS[preset] | {"lambda_perceptual": 0.0}), SPEED, CPU, capture)


def test_a_learning_rate_of_the_capture_is_found(monkeypatch):
    right, calls = TrainingStep.set_learning_rate, []

    def until_the_first_replay(self, rate):
        calls.append(self)
        if self is not calls[0] or calls.count(self) <= WARM_UP + 1:
            right(self, rate)

    monkeypatch.setattr(TrainingStep, "set_learning_rate", until_the_first_replay)
    with pytest.raises(AssertionError, match="replay 2: "):
        captured.check(SMALL, SPEED, CPU, again)


def test_pictures_of_the_capture_are_found(monkeypatch):
    monkeypatch.setattr(captured, "GraphedStep", FirstPictures)
    with pytest.raises(AssertionError, match="replay 2: losses off by"):
        captured.check(SMALL, SPEED, CPU, again)


class FirstPictures(captured.GraphedStep):
    def _call(self, batch, flipped):
        for memory, *_ in self._captured.values():
            batch = memory
        return super()._call(batch, flipped)


def test_what_is_not_finite_is_found(monkeypatch):
    broken = captured._batch

    def batch(*args):
        pictures = broken(*args)
        pictures["photo"][0, 0, 0, 0] = float("nan")
        return pictures

    monkeypatch.setattr(captured, "_batch", batch)
    with pytest.raises(AssertionError, match="not finite"):
        captured.check(SMALL, SPEED, CPU, again)


def test_noise_that_would_hide_everything_is_no_excuse(monkeypatch):
    right = TrainingStep.__call__
    monkeypatch.setattr(
        TrainingStep,
        "__call__",
        lambda self, *args: {name: loss * (1 + torch.rand(())) for name, loss in right(self, *args).items()},
    )
    with pytest.raises(AssertionError, match="two plain steps, 0: losses off by"):
        captured.check(SMALL, SPEED, CPU, again)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine that seems to have a GPU, whose kernels passed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(verdict, "gpu_at", lambda index: ("Toy GPU (sm_90)", "cpu"))
    monkeypatch.setattr(_backend, "select", lambda kernel, device, index=None: "triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTSKETCH_GPU_CHECK", raising=False)
    verdict.forget()
    yield torch.device("cuda", 0)
    verdict.forget()


def test_auto_captures_what_passed_in_a_process_of_its_own(gpu, caplog):
    config = settings("cut")
    for _ in range(2):
        assert choose_speed(config, gpu).cuda_graph
        verdict.forget()  # as a new process
    assert [m for m in caplog.messages if "checking a captured training step on Toy GPU" in m] == caplog.messages
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("changes", "processes"), [({"compile": "on"}, 1), ({"fused_adam": "off"}, 1), ({}, 2), ({"cuda_graph": "off"}, 1)]
)
def test_auto_does_not_try_what_cannot_be(gpu, monkeypatch, changes, processes):
    monkeypatch.setattr(verdict, "try_cases", None)
    assert not choose_speed(settings(**changes), gpu, processes).cuda_graph


def test_auto_goes_on_plainly_where_it_failed(gpu, monkeypatch, caplog):
    def failed(module, device, names, show):
        return dict.fromkeys(names, "replay 1: losses off by 1")

    monkeypatch.setattr(verdict, "try_cases", failed)
    assert not choose_speed(settings(), gpu).cuda_graph
    assert "replay 1: losses off by 1): kernels are launched one by one" in caplog.messages[-1]
    assert choose_speed(settings(cuda_graph="on"), gpu).cuda_graph, "by name, whoever wants it"


@pytest.mark.parametrize("how", ["untried", "reference", "not_tried"])
def test_auto_goes_on_plainly_where_nothing_can_be_tried(gpu, monkeypatch, how):
    def not_tried(*args, **kwargs):
        raise run.NotTried("no memory")

    monkeypatch.setattr(verdict, "try_cases", not_tried)
    if how == "untried":
        monkeypatch.setenv("FASTSKETCH_GPU_CHECK", "0")
    elif how == "reference":
        monkeypatch.setattr(_backend, "select", lambda kernel, device, index=None: "reference")
    assert not choose_speed(settings(), gpu).cuda_graph
