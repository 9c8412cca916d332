"""`kill -9`, broken files, full disks: a run goes on from where it was, and nothing it left is torn."""

import csv
import errno
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import start
from test_trainer import assert_same_state, without_settings

from fastsketch import files
from fastsketch.errors import FastsketchError
from fastsketch.training.checkpoint import load_checkpoint, load_generator
from fastsketch.training.run_files import RunPaths, load_settings
from fastsketch.training.trainer import Trainer

CPU = torch.device("cpu")
KILLS = 20


def train(config) -> None:
    torch.set_num_threads(1)
    resume = RunPaths(config.out).settings.exists()
    Trainer(replace(config, resume=resume), Path(config.data), quiet=True).run()


def assert_whole(paths: RunPaths) -> int:
    """Every file that is there can be read; the checkpoint's step."""
    if paths.settings.exists():
        load_settings(paths.settings)
    if paths.generator.exists():
        load_generator(paths.generator)
    if paths.losses.exists():
        with paths.losses.open(newline="") as file:
            assert all(None not in row.values() for row in csv.DictReader(file))
    return load_checkpoint(paths.checkpoint, CPU)["step"] if paths.checkpoint.exists() else 0


def test_kill_9_twenty_times(tiny, tmp_path):
    """Whenever it comes, mostly during a save (there is one after every step)."""
    endless = replace(tiny(epochs=10**6, decay_epochs=0, save_every=1), out=tmp_path / "killed")
    paths, steps, moments = RunPaths(endless.out), [0], random.Random(0)
    for _ in range(KILLS):
        process = start(train, endless)
        time.sleep(moments.uniform(0.05, 1.5))
        assert process.is_alive()
        process.kill()
        process.join()
        steps.append(assert_whole(paths))
    assert steps == sorted(steps)
    patience = 5
    while not steps[-1]:  # a slow machine: no kill came late enough for a step
        process = start(train, endless)
        process.join(patience)
        patience *= 2
        process.kill()
        process.join()
        steps.append(assert_whole(paths))

    config = replace(endless, epochs=steps[-1] // 5 + 1)
    for run in (config, replace(config, out=tmp_path / "straight")):
        process = start(train, run)
        process.join(300)
        assert process.exitcode == 0
    ended, straight = RunPaths(config.out), RunPaths(tmp_path / "straight")
    states = [without_settings(load_checkpoint(p.checkpoint, CPU)) for p in (ended, straight)]
    assert states[0]["step"] == 5 * config.epochs
    assert_same_state(*states)
    assert ended.generator.read_bytes() == straight.generator.read_bytes()
    assert ended.losses.read_text() == straight.losses.read_text()
    assert not list(config.out.rglob(f"{files.UNFINISHED}*"))  # what a kill left was swept up


@pytest.mark.parametrize("stage", ["before the generator", "before the checkpoint"])
def test_killed_between_two_files_of_a_save(tiny, tmp_path, monkeypatch, stage):
    config = tiny()
    straight = Trainer(replace(config, out=tmp_path / "straight"), Path(config.data), quiet=True)
    assert straight.run()
    run = Trainer(config, Path(config.data), quiet=True)
    last = {"before the generator": "generator.safetensors", "before the checkpoint": "checkpoint.pt"}[stage]
    original, count = os.replace, [0]

    def replace_file(source, target):
        if Path(target).name == last:
            count[0] += 1
            if count[0] == 2:  # the end of the second epoch
                raise SystemError("killed")
        original(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace_file)
        with pytest.raises(SystemError):
            run.run()
    resumed = Trainer(replace(config, resume=True), Path(config.data), quiet=True)
    assert resumed.step == 5 and resumed.run()
    for name in ("generator", "losses"):
        assert getattr(resumed.paths, name).read_bytes() == getattr(straight.paths, name).read_bytes()


def test_a_file_is_on_the_disk_before_it_is_in_its_place(tmp_path, monkeypatch):
    """A power cut leaves the old one or the new; and it can be read by whom the umask lets."""
    done, fsync, replace_file = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.fstat(handle).st_size) or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda *names: done.append("in its place") or replace_file(*names))
    before = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "new", b"whole")
    finally:
        os.umask(before)
    assert done == [5, "in its place"] and (tmp_path / "new").read_bytes() == b"whole"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_killed_before_its_first_checkpoint(tiny):
    config = tiny(decay_epochs=0)
    Trainer(config, Path(config.data), quiet=True)
    run = Trainer(replace(config, resume=True), Path(config.data), quiet=True)
    assert run.step == 0 and run.run() and run.step == 5


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("how", "data"), [("vanished", "png"), ("truncated", "png"), ("truncated", "jpg")], indirect=["data"]
)
def test_a_picture_lost_on_the_way_is_named_and_the_run_saved(tiny, tmp_path, how, data, workers):
    config = replace(tiny(workers=workers), out=tmp_path / f"run-{how}")
    run = Trainer(config, Path(config.data), quiet=True)
    run.dataset._cache = None  # as where the pictures were not read before
    run.batches.order.set_epoch(0)
    victim = run.dataset.pairs[list(run.batches.order)[3]].photo
    whole = victim.read_bytes()
    if how == "vanished":
        victim.unlink()
    else:
        victim.write_bytes(whole[: len(whole) * 9 // 10])  # in the midst of the pixels, the header whole
    with pytest.raises(FastsketchError) as caught:
        run.run()
    message = str(caught.value)
    assert message.startswith(str(victim)) and "\n" not in message
    assert ("no such image file" if how == "vanished" else "unreadable image") in message
    assert load_checkpoint(run.paths.checkpoint, CPU)["step"] == 3
    victim.write_bytes(whole)
    assert Trainer(replace(config, resume=True), Path(config.data), quiet=True).run()


def test_a_disk_that_fills_up_stops_the_run_and_keeps_the_last_state(tiny, monkeypatch):
    config = tiny(save_every=2)
    run = Trainer(config, Path(config.data), quiet=True)
    original, saves = files.write_bytes, []

    def write(self, content):
        if self.suffix == ".pt":
            saves.append(run.step)
            if len(saves) == 2:
                with self.open("wb") as file:
                    file.write(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with self.open("wb") as file:
            return file.write(content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", write)
        with pytest.raises(FastsketchError, match=r"checkpoint\.pt: cannot write \(No space left"):
            run.run()
    assert original is files.write_bytes and saves == [2, 4]
    assert assert_whole(run.paths) == 2
    resumed = Trainer(replace(config, resume=True), Path(config.data), quiet=True)
    assert resumed.step == 2 and resumed.run()


def resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the resident memory")
def test_memory_stays_flat(tiny):
    """A few hundred steps with all that goes with them; benchmarks/long_run.py does ten thousand."""
    config = tiny(epochs=60, decay_epochs=0, log_every=10, pictures=0)
    run = Trainer(config, Path(config.data), quiet=True)
    original, seen = run.train_step, {}

    def train_step(batch):
        if run.step in (100, 295):
            seen[run.step] = resident_kib()
        return original(batch)

    run.train_step = train_step
    assert run.run()
    assert seen[295] - seen[100] < 8 * 1024
