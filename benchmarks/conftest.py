"""What the suite prints: pytest-benchmark's table, and below it each contender's ratio to its group's baseline."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    if session is None:
        return
    done = [bench for bench in session.benchmarks if "baseline" in bench.extra_info and bench.stats.data]
    groups: dict[str, dict[str, float]] = {}
    baselines: dict[str, str] = {}
    for bench in done:
        groups.setdefault(bench.group, {})[bench.extra_info["contender"]] = bench.stats.median
        baselines[bench.group] = bench.extra_info["baseline"]
    if not groups:
        return
    terminalreporter.section("times as fast as the group's baseline (medians)")
    for group, medians in groups.items():
        base = medians.get(baselines[group])
        for contender, median in medians.items():
            ratio = "-" if base is None else f"{base / median:8.2f}×"
            mark = "  (baseline)" if contender == baselines[group] else ""
            terminalreporter.write_line(f"{group:32}{contender:22}{ratio}{mark}")
