"""Autotuning with a clock of its own: what is timed, what is kept, and when nothing is."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from fastsketch.triton import autotune, configs, launch, patch_nce
from fastsketch.triton.patch_nce_kernels import forward_kernel

TILES = ("wide", "narrow", "tall")


@pytest.fixture(autouse=True)
def nothing_known():
    autotune.forget()
    yield
    autotune.forget()


class Clock:
    """Launches that take as long as they are told."""

    def __init__(self, **times: list[float]) -> None:
        self.times = {tile: iter(values) for tile, values in times.items()}
        self.started: list[str] = []

    def start(self, tile: str) -> None:
        self.started.append(tile)

    def seconds(self, run) -> float:
        run()
        return next(self.times[self.started[-1]])


def fastest(clock: Clock, case=("a",), capturing=False) -> str:
    return autotune.fastest(case, TILES, clock.start, seconds=clock.seconds, capturing=lambda: capturing)


def test_the_least_median_wins_and_is_kept():
    """One outlier, fast or slow, decides nothing; tiles take turns."""
    clock = Clock(wide=[3.0] * 7, narrow=[9.0, 9.0, *[1.0] * 5], tall=[0.1, *[2.0] * 6])
    assert fastest(clock) == "narrow"
    assert clock.started == list(TILES) * (1 + autotune.ROUNDS)  # once to compile
    silent = Clock()
    assert fastest(silent) == "narrow"
    assert not silent.started


def test_the_first_of_equals_wins():
    assert fastest(Clock(**{tile: [1.0] * 7 for tile in TILES})) == "wide"


def test_cases_are_apart():
    assert fastest(Clock(wide=[2.0] * 7, narrow=[1.0] * 7, tall=[3.0] * 7), ("a",)) == "narrow"
    assert fastest(Clock(wide=[2.0] * 7, narrow=[3.0] * 7, tall=[1.0] * 7), ("b",)) == "tall"
    assert fastest(Clock(), ("a",)) == "narrow"


def test_nothing_is_timed_during_capture():
    assert fastest(Clock(), capturing=True) == "wide"
    assert fastest(Clock(wide=[2.0] * 7, narrow=[1.0] * 7, tall=[3.0] * 7)) == "narrow"  # and nothing was kept
    assert fastest(Clock(), capturing=True) == "narrow"


def test_it_is_asked_for_and_only_on_a_gpu(monkeypatch):
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.delenv("FASTSKETCH_AUTOTUNE", raising=False)
    assert not autotune.wanted(cuda)
    monkeypatch.setenv("FASTSKETCH_AUTOTUNE", "1")
    assert autotune.wanted(cuda)
    assert not autotune.wanted(cpu)  # the interpreter
    monkeypatch.setenv("FASTSKETCH_AUTOTUNE", "yes")
    with pytest.raises(ValueError, match="FASTSKETCH_AUTOTUNE must be 0 or 1, got 'yes'"):
        autotune.wanted(cuda)


def test_a_case_is_kernel_tiles_shape_class_dtype_device_and_constants():
    tiles = (configs.Tile(64, 64, 64, 1, 4, 2), configs.Tile(32, 64, 64, 1, 4, 2))
    first, constants = torch.empty(5, 200, 256), {"NORMALIZE": True}
    case = autotune.case(forward_kernel, tiles, first, constants)
    assert case == autotune.case(forward_kernel, tiles, torch.empty(8, 256, 256), constants)
    others = [
        autotune.case(forward_kernel, tiles[::-1], first, constants),
        autotune.case(forward_kernel, tiles, torch.empty(5, 300, 256), constants),
        autotune.case(forward_kernel, tiles, first.half(), constants),
        autotune.case(forward_kernel, tiles, first.to("meta"), constants),
        autotune.case(forward_kernel, tiles, first, {"NORMALIZE": False}),
        autotune.case(patch_nce.backward_kernel, tiles, first, constants),
    ]
    assert len({case, *others}) == 7


class Kernel:
    """In a kernel's place: which tiles it was launched with."""

    __name__, arg_names = "kernel", ["BLOCK_M"]

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __getitem__(self, grid):
        return lambda *arguments, BLOCK_M, **options: self.rows.append(BLOCK_M)


def test_a_launch_uses_the_winner_and_without_autotuning_the_first(monkeypatch):
    tiles = (configs.Tile(64, 1, 1, 1, 4, 1), configs.Tile(32, 1, 1, 1, 4, 1))
    kernel, arguments = Kernel(), (torch.empty(4),)
    launch.run(kernel, tiles, lambda tile: 1, arguments, {})
    assert kernel.rows == [64]
    monkeypatch.setattr(autotune, "wanted", lambda device: True)
    monkeypatch.setattr(autotune, "_device_seconds", lambda run: run() or kernel.rows[-1])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    launch.run(kernel, tiles, lambda tile: 1, arguments, {})
    assert kernel.rows[1:] == [64, 32] * (1 + autotune.ROUNDS) + [32]
    launch.run(kernel, tiles[:1], lambda tile: 1, arguments, {})
    assert kernel.rows[-1] == 64  # no choice, nothing to time
