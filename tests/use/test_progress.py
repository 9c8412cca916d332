"""Progress in a log."""

import time

from fastsketch.progress import progress_bar


def test_each_state_is_a_line_in_a_log(capsys, monkeypatch):
    monkeypatch.setattr("fastsketch.progress.LOG_INTERVAL", 0.0)
    for _ in (bar := progress_bar(range(3), desc="draw", unit="image")):
        bar.set_postfix_str("x" * 300)
    written = capsys.readouterr().err
    assert "\r" not in written
    lines = written.splitlines()
    assert written.endswith("\n") and all(line.startswith("draw: ") for line in lines)
    assert all(any(f" {n}/3 " in line for line in lines) for n in range(4))
    assert " 3/3 " in lines[-1]


def test_the_last_state_is_written_however_short_it_was(capsys):
    list(progress_bar(range(3)))
    first, last = capsys.readouterr().err.splitlines()
    assert " 0/3 " in first and " 3/3 " in last


def test_steps_that_become_slow_are_still_shown_in_time_and_once(capsys, monkeypatch):
    """tqdm's own count of steps to wait for would go by the fast ones, and its monitor show a state once more."""
    monkeypatch.setattr("fastsketch.progress.LOG_INTERVAL", 0.05)
    with progress_bar(total=5003) as bar:
        for _ in range(5000):
            bar.update()
        capsys.readouterr()
        for _ in range(3):
            time.sleep(0.06)
            bar.update()
        shown = [line.split("/5003")[0].split()[-1] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["5001", "5002", "5003"]
