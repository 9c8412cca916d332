"""Shared by all tests: the implementations at hand, the device, seeded random tensors and the error bound.

A test that asks for `backend` runs once for every implementation that has all the kernels its module names in
`KERNELS` and runs on the device under test. Every test runs on the CPU; FASTSKETCH_TEST_DEVICE=cuda moves those that
ask for `device` to a GPU.

`make test` shares the files out to several processes, which then share the processor's cores too.
"""

import os
from collections.abc import Callable, Iterator

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # for what the tests start as well; torch reads it when it is imported
    share = max((os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]), 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))

import pytest
import torch
from torch import Tensor

from fastsketch import _backend

DEVICE = os.environ.get("FASTSKETCH_TEST_DEVICE", "cpu")


def _implementations(kernels: tuple[str, ...]) -> list[str]:
    """The implementations that run all of `kernels` on the device under test."""
    here = (*_backend.PREFERENCE.get(DEVICE, ()), "reference")
    return [
        name
        for name in _backend.IMPLEMENTATIONS
        if name in here and not any(_backend._why_not(name, kernel) for kernel in kernels)
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        kernels = getattr(metafunc.module, "KERNELS", _backend.KERNELS)
        metafunc.parametrize("backend", _implementations(kernels), indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The implementation that all operators run inside the test."""
    with _backend.use_backend(request.param):
        yield request.param


@pytest.fixture
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def _checked_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are checked on every device; no test depends on the ones before it."""
    monkeypatch.setenv("FASTSKETCH_CHECK", "1")
    monkeypatch.delenv("FASTSKETCH_BACKEND", raising=False)
    torch.manual_seed(0)


@pytest.fixture
def randn(device: torch.device) -> Callable[..., Tensor]:
    """randn(*shape, dtype, seed, grad, scale): normal numbers, the same for all devices and (rounded) all dtypes."""

    def make(*shape: int, dtype=torch.float64, seed: int = 0, grad: bool = False, scale: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        return values.to(device, dtype).requires_grad_(grad)

    return make


@pytest.fixture
def assert_as_good_as_naive() -> Callable[..., None]:
    """assert_as_good_as_naive(got, naive, truth, units): the largest error against the float64 truth is at most that of
    the naive formula in the inputs' dtype, plus half a unit of the result's rounding and `units` of the accumulation's.
    """

    def check(got: Tensor, naive: Tensor, truth: Tensor, units: int = 8) -> None:
        assert got.shape == truth.shape
        assert got.isfinite().all()
        size = truth.abs().max().item()
        accumulation = torch.finfo(torch.float64 if got.dtype == torch.float64 else torch.float32).eps
        slack = (torch.finfo(got.dtype).eps / 2 + units * accumulation) * size
        error = (got.double() - truth).abs().max().item()
        naive_error = (naive.double() - truth).abs().max().item()
        assert error <= naive_error + slack, f"error {error:.3g}, naive {naive_error:.3g} + {slack:.3g}"

    return check


@pytest.fixture
def with_threads() -> Callable[..., list]:
    """with_threads(run): what run() gives on one, two and three of torch's threads, in a list."""

    def collect(run: Callable, counts: tuple[int, ...] = (1, 2, 3)) -> list:
        before, results = torch.get_num_threads(), []
        try:
            for count in counts:
                torch.set_num_threads(count)
                results.append(run())
        finally:
            torch.set_num_threads(before)
        return results

    return collect


def relayout(x: Tensor, how: str) -> Tensor:
    """The same values in other strides: "sliced" out of a larger tensor, "transposed" in memory, or "offset"."""
    if how == "sliced":
        larger = x.new_full([2 * n + 1 for n in x.shape], float("nan") if x.is_floating_point() else -1)
        view = larger[tuple(slice(1, None, 2) for _ in x.shape)]
    elif how == "transposed":
        view = x.new_empty(x.shape[::-1]).permute(*range(x.dim() - 1, -1, -1))
    elif how == "offset":
        view = x.new_empty(x.numel() + 3)[3:].view(x.shape)
    else:
        raise ValueError(how)
    return view.copy_(x)


@pytest.fixture(params=["sliced", "transposed", "offset"])
def restrided(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    """restrided(x): the values of x in odd strides, detached."""
    return lambda x: relayout(x.detach(), request.param)
