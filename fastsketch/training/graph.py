"""A step captured in CUDA graphs: a few hundred kernel launches become one.

**Not run on a GPU yet.** The capture itself is `CudaCapture`, a dozen lines; all around it is tested on the CPU with a
capture that merely calls the step again.
"""

import contextlib
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[dict[str, Tensor], bool], dict[str, Tensor]]

WARM_UP = 3
"""Steps of a kind run plainly before one is captured: libraries choose their algorithms in them."""


class CudaCapture:
    """Captures calls. Graphs share their memory: one is replayed at a time, and what it leaves is copied at once."""

    def __init__(self) -> None:
        self.pool = None

    def __call__(self, call: Callable[[], None], rng: torch.Generator) -> Callable[[], None]:
        """Record what `call` launches; what is returned launches it again, with new random numbers."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(rng)
        torch.cuda.synchronize()
        # Other threads, which may put pictures into pinned memory meanwhile, do not disturb it.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            call()
        self.pool = graph.pool()
        return graph.replay


class GraphedStep:
    """A step that reads its batch from fixed memory, captured once for every kind of call.

    A kind is FastCUT's flip with the shapes of the batch: an epoch's last, smaller batch has a graph of its own. The
    first calls of a kind run plainly, on a side stream as capturing asks for; they are steps as good as any.

    Args:
        step: on the device without waiting for it, as `TrainingStep`.
        rng: its source of random numbers.
        capture: records a call and returns its replay; None: `CudaCapture`.
    """

    def __init__(self, step: Step, rng: torch.Generator, capture: Callable | None = None) -> None:
        self.step, self.rng, self.capture = step, rng, capture or CudaCapture()
        self._side: torch.cuda.Stream | None = None  # one: memory is kept for each stream that was ever used
        self._calls: dict[tuple, int] = {}
        self._captured: dict[tuple, tuple[dict[str, Tensor], Callable[[], None], dict[str, Tensor]]] = {}

    def __call__(self, batch: dict[str, Tensor], flipped: bool) -> dict[str, Tensor]:
        """One step; the losses are the caller's own."""
        on_gpu = self.rng.device.type == "cuda"  # and its streams are those of the current device
        with torch.cuda.device(self.rng.device) if on_gpu else contextlib.nullcontext():
            return self._call(batch, flipped)

    def _call(self, batch: dict[str, Tensor], flipped: bool) -> dict[str, Tensor]:
        kind = (flipped, *((name, tuple(value.shape)) for name, value in batch.items()))
        calls = self._calls[kind] = self._calls.get(kind, 0) + 1
        if calls <= WARM_UP:
            return self._plainly(batch, flipped)
        if kind not in self._captured:
            self._captured[kind] = self._capture(batch, flipped)
        memory, replay, losses = self._captured[kind]
        for name, value in batch.items():
            memory[name].copy_(value, non_blocking=True)
        replay()
        return {name: loss.clone() for name, loss in losses.items()}

    def _plainly(self, batch: dict[str, Tensor], flipped: bool) -> dict[str, Tensor]:
        if self.rng.device.type != "cuda":
            return self.step(batch, flipped)
        side = self._side = self._side or torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*capturable=True")  # these steps are the warm-up of a capture
            losses = self.step(batch, flipped)
        torch.cuda.current_stream().wait_stream(side)
        return losses

    def _capture(self, batch: dict[str, Tensor], flipped: bool) -> tuple:
        memory = {name: value.clone() for name, value in batch.items()}
        losses: dict[str, Tensor] = {}
        replay = self.capture(lambda: losses.update(self.step(memory, flipped)), self.rng)
        return memory, replay, losses
