"""These tests need the C++ kernels; without a compiler there are none, and the reason is shown."""

import pytest


@pytest.fixture(scope="session")
def cpp():
    return pytest.importorskip("fastsketch.cpp", reason="C++ kernels", exc_type=ImportError)
