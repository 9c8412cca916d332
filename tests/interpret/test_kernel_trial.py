"""The kernels pass the trial that they are put to on a GPU (`fastsketch.trial`), as far as the interpreter shows.

In float32; the other tests here have the kernels in half precision too.
"""

import pytest
import torch

from fastsketch import triton
from fastsketch.trial import smallest
from fastsketch.trial.cases import CASES


@pytest.mark.parametrize("name", [name for name in CASES if "float16" not in name])
def test_case(name):
    CASES[name].check(triton, torch.device("cpu"))


def test_the_smallest_kernel_runs():
    smallest.check(torch.device("cpu"))
