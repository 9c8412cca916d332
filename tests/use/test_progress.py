"""Progress in a log."""

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
