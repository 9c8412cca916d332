"""The package where no kernel was built: it works on plain PyTorch, and says why."""

import shutil
import subprocess
import sys
from pathlib import Path

import fastsketch

PACKAGE = Path(fastsketch.__file__).parent

SCRIPT = """
import torch
import fastsketch
from fastsketch import _backend
from fastsketch.info import report

loss = fastsketch.patch_nce(torch.randn(1, 4, 3), torch.randn(1, 4, 3))
assert torch.isfinite(loss)
assert {used for used, _ in _backend.explain("cpu").values()} == {"reference"}
print(fastsketch.__file__)
print(report())
try:
    with fastsketch.use_backend("cpp"):
        fastsketch.patch_nce(torch.randn(1, 4, 3), torch.randn(1, 4, 3))
except RuntimeError as error:
    print("refused:", error)
"""


def test_works_and_says_why(tmp_path):
    copy = tmp_path / "fastsketch"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.so", "_*_report.txt"))
    (copy / "_build_report.txt").write_text("not built at installation: no C++ compiler\n")
    run = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert str(copy) in run.stdout
    assert "no C++ compiler" in run.stdout
    assert "refused: backend 'cpp' was asked for" in run.stdout  # asked for by name: never a silent fallback
    told = [line for line in run.stderr.splitlines() if line.startswith("fastsketch: no kernels for cpu, ")]
    assert len(told) == 1 and "not built at installation: no C++ compiler" in told[0]
