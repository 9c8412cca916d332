"""Speed switches: what auto chooses, what is refused, and that none changes what is learnt beyond rounding."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastsketch import _backend
from fastsketch.errors import FastsketchError
from fastsketch.nn.convolution import WinogradConv2d
from fastsketch.training import speed as module
from fastsketch.training.checkpoint import load_checkpoint
from fastsketch.training.graph import WARM_UP, GraphedStep
from fastsketch.training.run_files import load_settings
from fastsketch.training.speed import Speed, choose_speed
from fastsketch.training.trainer import NonFiniteLoss, Trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HALF = torch.bfloat16


def trainer(config) -> Trainer:
    return Trainer(config, Path(config.data), quiet=True)


def weights(run: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.translator.parameters()]


def instructions(monkeypatch, avx: bool = False, amx: bool = False) -> None:
    """A processor that multiplies in bfloat16 by these, or does not."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("avx", [False, True])
@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.filterwarnings("ignore:precision is bfloat16")
def test_auto_on_a_processor(tiny, monkeypatch, avx, amx, kernels):
    instructions(monkeypatch, avx, amx)
    monkeypatch.setattr(module, "winograd_is_available", lambda: kernels)
    got = choose_speed(tiny(precision="auto"), CPU)
    half = amx or (avx and not kernels)
    assert got == Speed(HALF if half else torch.float32, amx, True, False, False, False, kernels and not half)
    layout = "channels last, " if amx else ""
    assert str(got).startswith(f"bfloat16, {layout}fused adam" if half else "float32, fused adam")
    named = choose_speed(tiny(precision="bfloat16"), CPU)
    assert named.precision == HALF and named.winograd == (kernels and not amx) and named.channels_last == amx
    assert not choose_speed(tiny(precision="bfloat16", channels_last="off"), CPU).channels_last
    assert not choose_speed(tiny(precision="float32"), CPU).channels_last
    without = choose_speed(tiny(precision="auto", winograd="off"), CPU)
    assert without.precision == (HALF if amx or avx else torch.float32) and not without.winograd


def test_on_a_gpu(tiny, monkeypatch):
    """Without one; what auto makes of a captured step there: tests/trial/test_captured.py."""
    monkeypatch.setattr(module, "has_bfloat16", lambda device: True)
    assert choose_speed(tiny(precision="auto"), CUDA) == Speed(torch.bfloat16, True, True, False, False, True, False)
    monkeypatch.setattr(_backend, "select", lambda kernel, device, index: "reference")
    with pytest.raises(FastsketchError, match="sampling runs on the reference"):
        choose_speed(tiny(cuda_graph="on"), CUDA)
    monkeypatch.setattr(_backend, "select", lambda kernel, device, index: "triton")
    with pytest.raises(FastsketchError, match="cuda_graph needs the fused Adam"):
        choose_speed(tiny(cuda_graph="on", fused_adam="off"), CUDA)
    asked = tiny(compile="on", cuda_graph="on", data_on_device="off", precision="float32", channels_last="off")
    assert choose_speed(asked, CUDA) == Speed(torch.float32, False, True, True, True, False, False)


def test_winograd_needs_its_kernels(tiny):
    with _backend.use_backend("reference"):
        assert not choose_speed(tiny(precision="float32"), CPU).winograd
        with pytest.raises(FastsketchError, match="winograd is on, but the C"):
            choose_speed(tiny(precision="float32", winograd="on"), CPU)


def test_processor_is_asked_for_its_instructions(monkeypatch):
    for amx, avx in ((False, False), (True, False), (False, True)):
        instructions(monkeypatch, avx, amx)
        assert module.has_bfloat16(CPU) == (amx or avx)


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_slow_bfloat16_is_warned_of_once_a_run(tiny, monkeypatch, recwarn, precision, amx):
    instructions(monkeypatch, amx=amx)
    used = trainer(tiny(precision=precision)).speed.precision
    assert used == (torch.float32 if precision == "float32" or (precision, amx) == ("auto", False) else HALF)
    choose_speed(tiny(precision="bfloat16"), CUDA)  # a processor's instructions say nothing of a GPU
    said = [str(w.message) for w in recwarn if w.category is UserWarning and "precision" in str(w.message)]
    assert len(said) == ((precision, amx) == ("bfloat16", False))
    assert all("Use precision float32, or auto" in text for text in said)


@pytest.mark.filterwarnings("ignore:precision is bfloat16")
def test_a_run_keeps_its_precision_on_another_processor(tiny, monkeypatch):
    config = tiny(precision="auto")
    for amx in (True, False):
        instructions(monkeypatch, amx=amx)
        run = trainer(replace(config, resume=not amx))
        assert run.speed.precision == HALF
        assert load_settings(run.paths.settings).precision == "bfloat16"
    with pytest.raises(FastsketchError, match="precision bfloat16 -> float32"):
        trainer(replace(config, resume=True, precision="float32"))


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        ({"cuda_graph": "on"}, 1, "cuda_graph is on, but the device is cpu"),
        ({"compile": "on"}, 1, "compile is on, but the device is cpu"),
        ({"winograd": "on", "channels_last": "on"}, 1, "exclude each other"),
    ],
)
def test_what_cannot_be_had_is_refused(tiny, changes, processes, message):
    with pytest.raises(FastsketchError, match=message):
        choose_speed(tiny(**changes), CPU, processes)


def test_winograd_is_for_processors(tiny, monkeypatch):
    monkeypatch.setattr(module, "has_bfloat16", lambda device: True)
    with pytest.raises(FastsketchError, match="winograd is for CPUs"):
        choose_speed(tiny(winograd="on"), CUDA)


def test_a_graph_is_for_one_process(tiny, monkeypatch):
    with pytest.raises(FastsketchError, match="one process"):
        choose_speed(tiny(cuda_graph="on"), CUDA, 2)


PLAIN = {"precision": "float32", "channels_last": "off", "fused_adam": "off", "winograd": "off"}


@pytest.mark.parametrize("preset", ["fsscl", "fastcut"])
@pytest.mark.parametrize(
    "changes",
    [{"channels_last": "on"}, {"fused_adam": "on"}, {"winograd": "on", "width": 64}, {"data_on_device": "on"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_switch_changes_no_more_than_rounding(tiny, tmp_path, preset, changes):
    wide = {"width": changes.get("width", 4), "decay_epochs": 0, "batch_size": 2}
    plain = trainer(replace(tiny(preset, **{**PLAIN, **wide}), out=tmp_path / "plain"))
    switched = trainer(replace(tiny(preset, **{**PLAIN, **wide, **changes}), out=tmp_path / "switched"))
    if "winograd" in changes:
        assert any(m.winograd for m in switched.translator.modules() if isinstance(m, WinogradConv2d))
    start = weights(plain)
    batch = next(plain.batches.of_epoch(0)), next(switched.batches.of_epoch(0))
    for name in batch[0]:
        assert torch.equal(batch[0][name], batch[1][name])
    losses = plain.train_step(batch[0]), switched.train_step(batch[1])
    for name in losses[0]:
        torch.testing.assert_close(losses[1][name], losses[0][name], rtol=1e-4, atol=1e-5)
    # Adam's first step moves each weight by the learning rate in its gradient's direction, which rounding may turn
    # where the gradient is next to nothing (biases in front of a norm): all but a few weights must agree.
    pairs = zip(weights(plain), weights(switched), strict=True)
    apart = torch.cat([(a - b).abs().flatten() for a, b in pairs if a.dim() > 1])
    assert (apart < 0.05 * plain.config.lr).float().mean() > 0.97
    assert any(not torch.equal(a, b) for a, b in zip(weights(plain), start, strict=True))


def test_data_on_the_device_changes_nothing_at_all(tiny, tmp_path):
    runs = [trainer(replace(tiny(data_on_device=how), out=tmp_path / how)) for how in ("on", "off")]
    for run in runs:
        assert run.run()
    for a, b in zip(*(weights(run) for run in runs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("preset", ["fsscl", "fastcut"])
def test_a_replayed_step_is_a_step(tiny, tmp_path, preset):
    """The graph's bookkeeping, with a capture that only remembers the call: fixed memory, kinds, whose losses."""
    config = tiny(preset, batch_size=2, epochs=4, decay_epochs=0)
    plain = trainer(replace(config, out=tmp_path / "plain"))
    graphed = trainer(replace(config, out=tmp_path / "graphed"))
    captured = []

    def capture(call, rng):
        assert rng is graphed.update.rng
        captured.append(call)
        return call

    graphed.call = GraphedStep(graphed.update, graphed.update.rng, capture)
    assert plain.run() and graphed.run()
    for a, b in zip(weights(plain), weights(graphed), strict=True):
        assert torch.equal(a, b)
    assert plain.paths.losses.read_text() == graphed.paths.losses.read_text()
    kinds = graphed.call._calls
    assert len(kinds) == (4 if preset == "fastcut" else 2)  # flipped or not, whole or last batch
    assert len(captured) == sum(calls > WARM_UP for calls in kinds.values()) > 0


class NoWaiting(TorchDispatchMode):
    """Refuses whatever would make the host wait for a device: values asked for, shapes that depend on values."""

    waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        assert name.strip("_") not in {w.strip("_") for w in self.waits}, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [{}, {"preset": "fastcut"}, {"preset": "cut"}, {"lambda_perceptual": 1.0}, {"unpaired": True, "lambda_pixel": 0.0}],
    ids=str,
)
def test_a_step_never_waits_for_its_device(tiny, monkeypatch, changes):
    monkeypatch.setattr(_backend, "checks_values", lambda tensor: False)  # as on a GPU
    run = trainer(tiny(changes.pop("preset", "fsscl"), fused_adam="on", **changes))
    batch = next(run.batches.of_epoch(0))
    run.train_step(batch)
    with _backend.use_backend("reference"), NoWaiting():
        for flipped in {False, run.config.flip_equivariance}:
            run.update(batch, flipped)


@pytest.mark.parametrize("fused", ["on", "off"])
def test_a_broken_gradient_lets_nothing_through_ever_after(tiny, fused):
    run = trainer(tiny(fused_adam=fused))
    batches = list(run.batches.of_epoch(0))
    run.train_step(batches[0])
    drawing = [*run.translator.generator.parameters(), *run.translator.projection.parameters()]
    before = [p.detach().clone() for p in drawing]
    handle = run.translator.generator.model[1].weight.register_hook(lambda g: g * float("nan"))
    with pytest.raises(NonFiniteLoss, match="a gradient is not finite at step 1"):
        run.train_step(batches[1])
    handle.remove()
    for a, b in zip(drawing, before, strict=True):
        assert torch.equal(a, b)
    stopped = weights(run)
    run.update(batches[2], False)
    for a, b in zip(weights(run), stopped, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(NonFiniteLoss):
        run.train_step(batches[2])


@pytest.mark.parametrize("first", ["on", "off"])
def test_a_run_resumes_with_other_switches(tiny, first):
    config = tiny(decay_epochs=0, fused_adam=first)
    assert trainer(config).run()
    other = "off" if first == "on" else "on"
    run = trainer(replace(config, resume=True, epochs=2, fused_adam=other, data_on_device="on"))
    assert all(
        g["fused"] == (True if other == "on" else None) for o in run.update.optimizers.values() for g in o.param_groups
    )
    assert run.run() and load_checkpoint(run.paths.checkpoint, CPU)["step"] == 10


@pytest.mark.parametrize("first", ["on", "off"])
def test_a_run_resumes_in_another_layout(tiny, tmp_path, first):
    """Adam's moments go by memory: they must take the layout of the weights as they are now."""
    config = tiny(epochs=1, decay_epochs=0, channels_last=first, winograd="off", flip=False)
    assert trainer(config).run()
    shutil.copytree(config.out, tmp_path / "same")
    other = "off" if first == "on" else "on"
    runs = [
        trainer(replace(config, resume=True, epochs=2, out=tmp_path / "same")),
        trainer(replace(config, resume=True, epochs=2, channels_last=other)),
    ]
    moved = []
    for run in runs:
        for optimizer in run.update.optimizers.values():
            for parameter, state in optimizer.state.items():
                assert parameter.stride() == state["exp_avg"].stride() == state["exp_avg_sq"].stride()
        before = [x.clone() for x in weights(run)]
        run.train_step(next(run.batches.of_epoch(1, 0)))
        moved.append([new - old for new, old in zip(weights(run), before, strict=True)])
    same, changed = (torch.cat([x.flatten() for x in run]) for run in moved)
    assert (same - changed).norm() < 0.1 * same.norm()
