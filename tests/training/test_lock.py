"""One training at a time in a folder, and other people's files in it."""

import fcntl
import gc
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from processes import run_together, start

from fastsketch import files
from fastsketch.errors import FastsketchError
from fastsketch.training.distributed import World
from fastsketch.training.lock import hold_folder
from fastsketch.training.run_files import RunPaths
from fastsketch.training.trainer import Trainer


def trainer(config, **world) -> Trainer:
    return Trainer(config, Path(config.data), quiet=True, **world)


def train(config) -> None:
    trainer(config).run()


def refusal(world, config) -> str:
    """What a training that must not begin says."""
    try:
        trainer(config, **({} if world is None else {"world": world}))
    except FastsketchError as error:
        return str(error)
    return "began"


def write_refusal(config, path: Path) -> None:
    path.write_text(refusal(None, config))


def test_two_trainings_in_one_folder(tiny, tmp_path):
    """Before the first checkpoint, and after it; a kill lets the folder go."""
    endless = tiny(epochs=10**6, decay_epochs=0, save_every=1, workers=1)
    paths = RunPaths(endless.out)
    first = start(train, endless)
    deadline = time.monotonic() + 60
    try:
        while not paths.settings.exists():
            assert first.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        assert refusal(None, endless) == f"{endless.out} is being trained already, by another process"
        while not paths.checkpoint.exists():
            assert first.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        for resume in (False, True):
            assert "is being trained already" in refusal(None, replace(endless, resume=resume))
        assert first.is_alive()
    finally:
        first.kill()
        first.join()
    assert trainer(replace(endless, resume=True, epochs=1)).step


def test_several_processes_are_refused_together(tiny, tmp_path):
    mine = trainer(tiny())
    said = run_together(refusal, 2, tmp_path / "two", tiny(batch_size=2))
    assert "is being trained already" in said[0] and said[1] == "the first process could not go on, and says why"
    assert mine.run()


def test_a_folder_is_let_go(tiny, tmp_path):
    """By run's end, and by trainers that are no more; those of one process share it."""
    config = tiny(decay_epochs=0)
    told = tmp_path / "told.txt"

    def asked_elsewhere() -> str:
        other = start(write_refusal, replace(config, resume=True), told)
        other.join(60)
        return told.read_text()

    first = trainer(config)
    second = trainer(replace(config, resume=True))
    assert "is being trained already" in asked_elsewhere()
    del first
    gc.collect()
    assert "is being trained already" in asked_elsewhere()
    assert second.run()
    assert asked_elsewhere() == "began"


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_holds_nothing(tmp_path):
    """A loading process, which may outlive a killed trainer."""
    hold = hold_folder(tmp_path, World())
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"forked")  # and what is done after a fork is done
        time.sleep(60)
        os._exit(0)
    try:
        assert os.read(reading, 6) == b"forked"
        del hold
        gc.collect()
        assert hold_folder(tmp_path, World()) is not None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_a_run_that_does_not_begin_leaves_no_folder(tiny, tmp_path):
    with pytest.raises(FastsketchError, match="no such data folder"):
        Trainer(tiny(), tmp_path / "nowhere", quiet=True)
    gc.collect()
    assert not tiny().out.exists()


def test_where_there_are_no_locks_it_goes_on_without(tiny, monkeypatch):
    def refused(handle, how):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert trainer(tiny(decay_epochs=0)).run()


def test_other_peoples_files_stay(tiny):
    config = tiny(decay_epochs=0)
    paths = RunPaths(config.out)
    theirs = [config.out / "sub" / ".tmp-notes.txt", config.out / ".tmp-notes.txt", config.out / "pictures" / ".tmp-a"]
    theirs.append(config.out / "sub" / f"{files.UNFINISHED}notes.txt")  # no folder that a run writes to
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (config.out / ".tmp-folder").mkdir()
    (config.out / f"{files.UNFINISHED}folder").mkdir()
    torn = [folder / f"{files.UNFINISHED}abc.png" for folder in (paths.root, paths.pictures, paths.masks)]
    for path in torn:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    trainer(config)
    assert [path.read_text() for path in theirs] == ["mine"] * 4
    assert (config.out / ".tmp-folder").is_dir() and (config.out / f"{files.UNFINISHED}folder").is_dir()
    assert not any(path.exists() for path in torn)
