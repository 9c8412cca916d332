"""Ctrl-C, SIGTERM and a closed terminal: alone, together, and again."""

import errno
import os
import signal
from dataclasses import replace

import pytest
from test_trainer import state_of, stop_at, trainer

from fastsketch.training.signals import WORDS


def test_a_closed_terminal_stops_and_saves(tiny, monkeypatch):
    """It tells more than once, and takes no words; nohup's run goes on."""
    config = tiny(decay_epochs=0)
    run = trainer(config)
    stop_at(run, 2, signal.SIGHUP)
    stopping = run.train_step

    def closed(descriptor, words):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def twice(batch):
        if run.step + 1 == 2:
            os.kill(os.getpid(), signal.SIGHUP)
        return stopping(batch)

    monkeypatch.setattr("fastsketch.training.signals.os.write", closed)
    run.train_step = twice
    before = signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        assert not run.run() and state_of(run)["step"] == run.step == 2
        assert signal.signal(signal.SIGHUP, signal.SIG_IGN) == signal.default_int_handler
        resumed = trainer(replace(config, resume=True))
        stop_at(resumed, 4, signal.SIGHUP)
        assert resumed.run() and resumed.step == 5
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_come_at_once_stop_and_save(tiny, capfd, monkeypatch, first):
    """make and timeout send SIGTERM twice; here the second meets the words about the first."""
    run = trainer(tiny())
    stop_at(run, 2, first)
    write = os.write

    def write_and_stop(descriptor, words):
        if WORDS in words.decode():
            os.kill(os.getpid(), signal.SIGTERM)
        return write(descriptor, words)

    monkeypatch.setattr("fastsketch.training.signals.os.write", write_and_stop)
    assert not run.run() and state_of(run)["step"] == run.step == 2
    assert capfd.readouterr().err == f"{WORDS}\n"


def test_a_second_ctrl_c_interrupts(tiny):
    """What was saved is of the time before."""
    run = trainer(tiny(save_every=1))
    stop_at(run, 2)
    stopping = run.train_step

    def twice(batch):
        losses = stopping(batch)
        if run.step + 1 == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return losses

    run.train_step = twice
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert state_of(run)["step"] == 1
