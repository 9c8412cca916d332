"""The benchmarks themselves, small: contenders agree, rows are kept, fits and figures are right. Nothing is timed."""

import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastsketch
from benchmarks import shortfall
from fastsketch.bench import command, machine, memory, operators, plot, profile, record, scaling, step
from fastsketch.bench.case import OURS, Case, Contender, Recipe, random, size_of
from fastsketch.bench.cases import CASES
from fastsketch.bench.threads import start_bound
from fastsketch.bench.timing import copies_needed, measure
from fastsketch.cli import main
from fastsketch.errors import FastsketchError

ABOUT = dict.fromkeys(("device", "threads", "kernels", "fastsketch", "commit", "torch", "python", "date"), "x")


@pytest.mark.parametrize("name", list(CASES))
def test_contenders_agree_and_run(name):
    """Every case, at its warm-up size: the check, and each contender once (not compiled ones)."""
    torch.manual_seed(0)
    case = CASES[name].warm_up()
    inputs = case.make()
    case.check(inputs)
    assert case.baseline in case.contenders and OURS in case.contenders
    assert all(bar.other in case.contenders for bar in case.bars)
    for contender in case.contenders.values():
        if not contender.compiled:
            contender.run(inputs, contender.prepare(inputs))
    assert memory.launches(case, OURS) > 0


def test_a_check_that_fails_stops_the_measurement():
    def check(inputs):
        raise AssertionError("they differ")

    case = Case(lambda: torch.zeros(3), {OURS: Contender(lambda x, _: x)}, check, OURS)
    with pytest.raises(AssertionError, match="they differ"):
        measure(case, rounds=1, least=0)


def test_turns_and_rotation():
    """Contenders take turns, each call has the next inputs, and each contender meets all of them."""
    made, seen = [], []

    def make():
        made.append(torch.zeros(8 * 2**20))  # 32 MiB: four hold more than any cache
        return made[-1]

    def contender(name):
        return Contender(lambda x, _: seen.append((name, next(i for i, y in enumerate(made) if y is x))))

    case = Case(make, {"a": contender("a"), "b": contender("b")}, lambda inputs: None, "a")
    times = measure(case, rounds=10, least=0, warm_up=0)
    assert [len(values) for values in times.values()] == [10, 10]
    assert [name for name, _ in seen] == ["a", "b"] * 10
    assert [place for _, place in seen] == [i % len(made) for i in range(20)]
    assert len(made) == 5 and {place for name, place in seen if name == "b"} == set(range(5))
    assert copies_needed(made[0], 2, "cpu") == 5 and copies_needed(torch.zeros(2**26), 2, "cpu") == 1
    assert size_of({"x": [made[0], made[1]]}) == 2 * 2**25
    large = random(3, 2**20, device=torch.device("cpu"))
    assert large.std().sub(1).abs() < 0.01 and not torch.equal(large[0], large[1])


def test_rounds_that_warm_up_are_not_counted():
    calls = []
    case = Case(lambda: torch.zeros(2**26), {OURS: Contender(lambda x, _: calls.append(x))}, lambda inputs: None, OURS)
    assert [len(values) for values in measure(case, rounds=4, least=0, warm_up=3).values()] == [4]
    assert len(calls) == 7


def test_peak_memory_is_what_a_call_takes():
    """A contender that takes 64 MiB more than another, found to the nearest few MiB."""
    recipe = Recipe(allocating, {"mib": 80}, {"mib": 1})
    much, little = (memory.peak(recipe, name, threads=1) for name in (OURS, "little"))
    if much is None:
        pytest.skip("no /proc/self/clear_refs here")
    assert 78 < much / 2**20 < 90 and 14 < little / 2**20 < 26


def allocating(mib: int, device: torch.device) -> Case:
    def take(share):
        return Contender(lambda inputs, _: torch.ones(int(mib * share * 2**18)))

    return Case(lambda: None, {OURS: take(1), "little": take(0.2)}, lambda inputs: None, "little")


def test_fitted_exponents():
    quadratic = [(n, 5 + 1e-3 * n**2) for n in (64, 256, 1024, 4096, 16384)]
    exponent = scaling.fit(quadratic)
    assert abs(exponent.value - 2) < 0.05 and (exponent.first, exponent.last) == (1024, 16384)
    assert scaling.fit(quadratic[:2]) is None


def tiny_sweep(**changes):
    recipe = Recipe(CASES["patch_nce S=4096"].build, {"images": 1}, {"samples": 16})
    values = {
        "title": "patch_nce",
        "axis": "S",
        "sizes": (32, 64, 128, 256),
        "recipe": lambda size: Recipe(recipe.build, {"images": 1, "samples": size}, {"samples": 16}),
        "expected": {OURS: (2, 1), "eager": (2, 2)},
        "needs": lambda name, size: 0.0,
        "power": 2,
    }
    return scaling.Sweep(**(values | changes))


def test_sweep_skips_what_does_not_fit_and_says_so():
    sweep = tiny_sweep(needs=lambda name, size: math.inf if name == "eager" and size == 256 else 0)
    rows, times = scaling.run_sweep(sweep, ABOUT, operators.Effort(rounds=2, memory=False))
    assert len(rows) == 8 and len(times) == 7
    (missing,) = [row for row in rows if row.calls == 0]
    assert missing.implementation == "eager" and "GiB" in missing.note and missing.case.endswith("S = 256")
    says = scaling.exponents(sweep, rows)
    assert "expected 2   (S = 64 to 256)" in says and "memory  too few sizes were measured" in says


def test_rows_are_kept_merged_and_read_back(tmp_path):
    path = tmp_path / "r.csv"
    times = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]
    first = record.make_row("a", OURS, ABOUT, times=times, baseline="eager", baseline_times=[2e-3] * 4 + [1.0])
    assert (first.p20_ms, first.p50_ms, first.p80_ms) == pytest.approx((1.8, 3, 4.2))
    assert first.ratio == pytest.approx(2 / 3)  # of medians
    record.save(path, [first, record.make_row("b", OURS, ABOUT, note="too large")])
    again = record.make_row("a", OURS, ABOUT, times=[4e-3], baseline="eager", baseline_times=[2e-3], peak=2**21)
    record.save(path, [again])
    rows = record.read(path)
    assert [(row.case, row.p50_ms, row.ratio, row.peak_mib) for row in rows] == [
        ("a", 4, 0.5, 2),
        ("b", None, None, None),
    ]
    table = record.table(rows)
    assert "0.5×" in table and "not measured: too large" in table
    path.write_text("nonsense\n1\n")
    with pytest.raises(FastsketchError, match="not a table of results"):
        record.read(path)


@pytest.mark.parametrize(("preset", "portraits"), [("cut", False), ("fsscl", False), ("fsscl", True)])
def test_a_step_is_the_same_step_both_ways(preset, portraits):
    """All losses, and the generator's gradient, of the trainer's step and of CUT's, at the same positions."""
    case = step.training_step(40, torch.device("cpu"), preset, batch=2, width=8, portraits=portraits)
    torch.manual_seed(0)
    inputs = case.make()
    assert inputs.tight["photo"].shape == (2, 3, 40, 32 if portraits else 40)
    assert inputs.square["photo"].shape == (2, 3, 40, 40)
    assert ("fastsketch, square" in case.contenders) == portraits
    case.check(inputs)
    for contender in case.contenders.values():
        losses = contender.run(inputs, None)
        assert all(math.isfinite(loss) for loss in losses.values()) and "nce_identity" in losses


def test_on_a_gpu_steps_are_measured_captured_too(monkeypatch):
    """After the plain ones, which a failed capture must not cost; there is no GPU here, so only what is asked for."""
    asked = []

    def measure_case(name, recipe, about, effort):
        asked.append((name, recipe.arguments["captured"], effort.memory, effort.warm_up))
        raise RuntimeError("no GPU")

    monkeypatch.setattr(command, "measure_case", measure_case)
    command._step(command.Bench(device="cuda", presets=("cut",), batches=(1, 8)), {})
    names = [f"training step, cut, 128², B={batch}" for batch in (1, 8)]
    assert asked == [(name, False, True, 5) for name in names] + [(f"{n}, captured", True, False, 5) for n in names]
    asked.clear()
    command._step(command.Bench(presets=("cut",)), {})
    command._step(command.Bench(presets=("cut",), portraits=True), {})
    assert asked == [(f"training step, cut, {size}, B=1", False, True, 3) for size in ("128²", "128×102")]
    with pytest.raises(FastsketchError, match="cuda_graph is on, but the device is cpu"):
        step.training_step(32, torch.device("cpu"), width=8, captured=True)


def test_the_command_measures_saves_and_draws(tmp_path, capsys, monkeypatch):
    small = {name: Recipe(r.build, {**r.arguments, **r.small}, r.small) for name, r in CASES.items() if "monce" in name}
    monkeypatch.setattr(command, "CASES", small)
    monkeypatch.setitem(command.scaling.SWEEPS, "S", tiny_sweep())
    arguments = ["operators", "scaling", "--sweeps", "S", "--rounds", "2", "--seconds", "0"]
    arguments += ["--no-compiled", "--no-memory", "--save", str(tmp_path), "--plot", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "baseline" in said and "expected 2" in said and "MoNCE" not in said
    (results,) = [path for path in tmp_path.glob("cpu-*.csv") if not path.stem.endswith("raw")]
    rows = record.read(results)
    assert {row.case for row in rows if "scaling" not in row.case} == set(small)
    assert all(row.calls >= 2 and row.commit is not None and row.torch == torch.__version__ for row in rows)
    assert {path.name for path in tmp_path.glob("*.png")} == {"ratios.png", "scaling.png"}
    assert json.dumps([row.case for row in rows]) and results.with_name(f"{results.stem}-raw.csv").is_file()


def test_the_command_names_what_is_wrong(capsys, tmp_path):
    wrong = {"--only nothing": "no case's name contains 'nothing'", "--threads 0": "at least 1"}
    for arguments, says in wrong.items():
        with pytest.raises(SystemExit) as end:
            main(["bench", *arguments.split()])
        assert end.value.code == 1 and says in capsys.readouterr().err
    with pytest.raises(FastsketchError, match="no rows to draw"):
        plot.plot_all([], tmp_path)


def test_threads_are_bound_by_starting_again(monkeypatch):
    started = []
    monkeypatch.delenv("OMP_PROC_BIND", raising=False)
    monkeypatch.setattr("os.execv", lambda path, words: started.append((path, words)))
    monkeypatch.setattr(sys, "argv", ["fastsketch", "bench", "--only", "tap"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "fastsketch", "bench", "--only", "tap"])
    start_bound(["bench"], ["--only", "nce"])  # this process is another command
    monkeypatch.setenv("OMP_PROC_BIND", "false")
    start_bound(["bench"], ["--only", "tap"])  # the user's choice stands
    assert not started
    monkeypatch.delenv("OMP_PROC_BIND")
    start_bound(["bench"], ["--only", "tap"])
    assert started == [(sys.executable, [sys.executable, "-m", "fastsketch", "bench", "--only", "tap"])]
    assert os.environ["OMP_PROC_BIND"] == "true"
    started.clear()
    monkeypatch.delenv("OMP_PROC_BIND")
    for words in (["--device", "cuda"], ["--device=cuda"]):
        monkeypatch.setattr(sys, "argv", ["fastsketch", "bench", *words])
        start_bound(["bench"], words)
    assert not started


def test_rows_name_the_allocator_and_have_a_file_of_their_own(monkeypatch):
    about = {"device": "A processor"}
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert machine.allocator() == "" and machine.file_stem("cpu", about) == "cpu-a-processor"
    monkeypatch.setenv("LD_PRELOAD", "/lib/libother.so /usr/lib/libtcmalloc_minimal.so.4")
    assert machine.allocator() == "tcmalloc_minimal"
    assert memory.peak(next(iter(CASES.values())), OURS, threads=1) is None  # what it keeps would be counted
    assert machine.facts()["kernels"].endswith(", tcmalloc_minimal") or machine.facts()["kernels"] == "reference"
    assert machine.file_stem("cpu", about) == "cpu-a-processor-tcmalloc-minimal"
    assert machine.file_stem("cuda", about) == "cuda-a-processor"


def test_parts_of_a_picture_that_the_artist_draws():
    """Each pixel is in one part, all parts are there, and the sketch in every part is the sketch."""
    number = shortfall.part_of(64, 48)
    assert np.bincount(number.ravel(), minlength=4).min() > 0 and number.max() == 3
    assert (number[[0, 0, -1, 32, 32], [0, 24, -1, 10, 24]] == [0, 0, 0, 2, 3]).all() and number[5, 5] == 1
    drawing, sketch = Image.new("L", (48, 64), 200), Image.new("L", (48, 64), 20)
    assert np.array_equal(np.asarray(shortfall.truth_in(3)(drawing, sketch)) == 20, number == 3)
    for part in range(4):
        drawing = shortfall.truth_in(part)(drawing, sketch)
    assert (np.asarray(drawing) == 20).all()
    assert shortfall.inked(2)(Image.new("L", (1, 1), 200), sketch).getpixel((0, 0)) == 145


def test_our_triton_kernels_are_known_by_name():
    source = "".join(path.read_text() for path in (Path(fastsketch.__file__).parent / "triton").glob("*.py"))
    assert set(re.findall(r"^def (\w+_kernel)\(", source, re.M)) == set(profile.TRITON_KERNELS)
    assert profile.kind_of("forward_kernel") == profile.kind_of("fastsketch::patch_nce_forward") == profile.OPERATORS
    assert profile.kind_of("batch_norm_backward_kernel") == profile.kind_of("moments_kernel") == "normalisation"
