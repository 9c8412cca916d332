"""Starts the kernels' tests in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")


def version(module) -> tuple[int, ...]:
    return tuple(int(x) for x in module.__version__.split(".")[:2])


@pytest.mark.interpret
@pytest.mark.skipif(
    version(triton) < (3, 7) and version(numpy) >= (2, 4),
    reason="the interpreter of this Triton cannot loop up to an argument with NumPy 2.4 or later",
)
def test_kernels_in_the_interpreter():
    # One thread: the programs are numpy on small tiles, where threads only wait for each other.
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    env.pop("FASTSKETCH_TEST_DEVICE", None)
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, env=env, cwd=folder.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
