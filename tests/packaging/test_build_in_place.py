"""`setup.py build_ext --inplace` where nothing may be installed, with the setuptools that is there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_needs_nothing_of_the_metadata(tmp_path):
    """setuptools before 77 fails at a license given as an expression."""
    (tmp_path / "fastsketch").mkdir()
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 1\n")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {**os.environ, "FASTSKETCH_BUILD": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "FASTSKETCH_BUILD=0" in (tmp_path / "fastsketch" / "_build_report.txt").read_text()
