"""These tests need the C++ kernels; without a compiler there are none, and the reason is shown."""

import contextlib
import sys

import pytest
import torch
import torch._dynamo
from torch._C._dynamo.eval_frame import set_eval_frame

from fastsketch.ops import exclusive


@pytest.fixture(scope="session")
def cpp():
    return pytest.importorskip("fastsketch.cpp", reason="C++ kernels", exc_type=ImportError)


@pytest.fixture(
    params=[
        lambda g: g,
        lambda g: g.detach(),
        lambda g: g.view(-1),
        lambda g: g[0],
        lambda g: g.numpy(),
        lambda g: g.untyped_storage(),
        lambda g: memoryview(g.numpy()),
        lambda g: torch.utils.dlpack.to_dlpack(g),
        lambda g: __import__("weakref").ref(g),
    ],
    ids=["tensor", "detached", "view", "part", "numpy", "storage", "memoryview", "dlpack", "weakref"],
)
def keep(request):
    """Ways to hold on to a gradient."""
    return request.param


@contextlib.contextmanager
def _frame_hook():
    before = set_eval_frame(False)
    try:
        yield
    finally:
        set_eval_frame(before)


@contextlib.contextmanager
def _profiler():
    before = sys.getprofile()
    sys.setprofile(lambda *_: None)
    try:
        yield
    finally:
        sys.setprofile(before)


@pytest.fixture(params=[_frame_hook, _profiler], ids=["frame_hook", "profiler"])
def looked_on(request):
    """What makes Python hold the arguments of a call more often: a frame hook (torch.compile's), a profiler."""
    exclusive._unheld.cache_clear()
    yield request.param
    exclusive._unheld.cache_clear()
