"""setup.py: what a build leaves behind."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = ("_C.so", "_C_cuda.so", f"_facts{sysconfig.get_config_var('EXT_SUFFIX')}")


@pytest.mark.parametrize("in_place", [True, False])
def test_a_build_that_made_nothing_leaves_no_older_library(tmp_path, in_place):
    """Kernels of other sources would be installed, and used, beside a report that says there are none."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    folder = tmp_path / ("" if in_place else "build") / "fastsketch"
    for package in {folder, tmp_path / "fastsketch"}:
        package.mkdir(parents=True)
        shutil.copy(ROOT / "fastsketch" / "__init__.py", package)  # the version stands there
    for name in LIBRARIES:
        (folder / name).touch()
    command = [sys.executable, "setup.py", "-q", "build_ext", *(["--inplace"] if in_place else ["-b", "build"])]
    environment = {**os.environ, "FASTSKETCH_BUILD": "0", "FASTSKETCH_CUDA": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "It runs on plain PyTorch instead" in done.stderr, done.stderr
    there = sorted(path.name for path in folder.iterdir())
    assert there == ["__init__.py", "_build_report.txt", "_cuda_report.txt"]
