"""These tests need the C++ kernels; without a compiler there are none, and the reason is shown."""

import pytest
import torch


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
