"""A step captured in CUDA graphs: a few hundred kernel launches become one.

**Not run on a GPU yet.** The capture itself is `capture_cuda`, a dozen lines; all around it is tested on the CPU with a
capture that merely calls the step again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[dict[str, Tensor], bool], dict[str, Tensor]]

WARM_UP = 3
"""Steps of a kind run plainly before one is captured: libraries choose their algorithms in them."""


def capture_cuda(call: Callable[[], None], rng: torch.Generator) -> Callable[[], None]:
    """Record what `call` launches; what is returned launches it again, with new random numbers."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(rng)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


class GraphedStep:
    """A step that reads its batch from fixed memory, captured once for every kind of call.

    A kind is FastCUT's flip with the shapes of the batch: an epoch's last, smaller batch has a graph of its own. The
    first calls of a kind run plainly, on a side stream as capturing asks for; they are steps as good as any.

    Args:
        step: on the device without waiting for it, as `TrainingStep`.
        rng: its source of random numbers.
        capture: records a call and returns its replay.
    """

    def __init__(self, step: Step, rng: torch.Generator, capture: Callable = capture_cuda) -> None:
        self.step, self.rng, self.capture = step, rng, capture
        self._calls: dict[tuple, int] = {}
        self._captured: dict[tuple, tuple[dict[str, Tensor], Callable[[], None], dict[str, Tensor]]] = {}

    def __call__(self, batch: dict[str, Tensor], flipped: bool) -> dict[str, Tensor]:
        """One step; the losses are the caller's own."""
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
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            losses = self.step(batch, flipped)
        torch.cuda.current_stream().wait_stream(side)
        return losses

    def _capture(self, batch: dict[str, Tensor], flipped: bool) -> tuple:
        memory = {name: value.clone() for name, value in batch.items()}
        losses: dict[str, Tensor] = {}
        replay = self.capture(lambda: losses.update(self.step(memory, flipped)), self.rng)
        return memory, replay, losses
