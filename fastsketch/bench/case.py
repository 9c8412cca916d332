"""What a measurement consists of: inputs, contenders, a check of their results, and bars."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OURS = "fastsketch"


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    Attributes:
        run: what is timed: (inputs, prepared) to anything.
        prepare: inputs to what `run` takes second; not timed.
        compiled: made by torch.compile; its first call is slow, and its operators cannot be counted.
    """

    run: Callable[[Any, Any], Any]
    prepare: Callable[[Any], Any] = lambda inputs: None
    compiled: bool = False


@dataclass(frozen=True)
class Bar:
    """`OURS` must be at least `ratio` times as fast as `other`, or need at most 1/ratio of its memory."""

    other: str
    ratio: float
    of: str = "time"


@dataclass(frozen=True)
class Case:
    """Contenders that compute the same.

    Attributes:
        make: fresh random inputs; called more than once, so that timed calls do not find theirs in the cache.
        contenders: by name; all of them are given the same inputs.
        check: raises AssertionError when contenders disagree; called before anything is timed.
        baseline: the contender that ratios are against.
        bars: what `OURS` is held to.
    """

    make: Callable[[], Any]
    contenders: dict[str, Contender]
    check: Callable[[Any], None]
    baseline: str
    bars: tuple[Bar, ...] = ()


def against_eager(
    make: Callable[[], Any],
    ours: Callable[[Any, Any], Any],
    theirs: Callable[[Any, Any, Callable], Any],
    function: Callable,
    check: Callable[[Any], None],
    bars: tuple[Bar, ...] = (),
    prepare: Callable[[Any], Any] = lambda inputs: None,
) -> Case:
    """`ours` against `theirs` given `function` as it is ("eager", the baseline) and compiled whole ("compiled")."""
    compiled = torch.compile(function, fullgraph=True)
    contenders = {
        OURS: Contender(ours, prepare),
        "eager": Contender(lambda inputs, prepared: theirs(inputs, prepared, function), prepare),
        "compiled": Contender(lambda inputs, prepared: theirs(inputs, prepared, compiled), prepare, compiled=True),
    }
    return Case(make, contenders, check, "eager", bars)


@dataclass(frozen=True)
class Recipe:
    """How to build a case, in a form that another process can be told.

    Attributes:
        build: a module-level function that takes `arguments` and a device.
        arguments: of the case.
        small: arguments that warm up the same code at little cost.
    """

    build: Callable[..., Case]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    small: Mapping[str, Any] = field(default_factory=dict)

    def case(self, device: str = "cpu") -> Case:
        """The case itself."""
        return self.build(**self.arguments, device=torch.device(device))

    def warm_up(self, device: str = "cpu") -> Case:
        """A small case of the same kind."""
        return self.build(**{**self.arguments, **self.small}, device=torch.device(device))


def random(*shape: int, device: torch.device, block: int = 2**20) -> Tensor:
    """Normal random numbers; large tensors repeat one block of them, since drawing would take longer than measuring."""
    count = torch.Size(shape).numel()
    if count <= block:
        return torch.randn(shape, device=device)
    row = torch.randn(block - 3, device=device)  # no power of two, so that channels do not repeat each other
    return row.repeat(-(-count // row.numel()))[:count].view(shape)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples, mappings and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dict__"):
        yield from tensors(list(vars(value).values()))


def size_of(value: Any) -> int:
    """Bytes of every tensor in it."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(value))
