"""Whether a gradient that arrives in a backward may be written to: only where nothing else can come to see it.

Three things count owners of a tensor, and each is blind to some: the tensor's own use count (blind to Python), its
storage's use count (sees views and arrays made of it), and Python's reference counts (see hooks that keep it). What
they are when nobody else holds a gradient depends on the versions of Python and torch, and on how Python makes calls
at the moment (`_call_references`), so it is measured, once for each, on a graph made for it. The same rule, in its C++
half, lets torch's engine accumulate gradients in place.

From Python 3.14 on a function borrows an argument that its caller keeps, and no count shows it. So the function that
calls a backward, or a hook, must be the one that called it while the counts were measured, which keeps nothing more.
"""

import sys
import weakref
from functools import cache
from types import CodeType, FrameType

import torch
from torch import Tensor

from fastsketch.ops.eager import are_plain

Found = tuple[CodeType | None, tuple[int, ...]]
"""Who called, and what was counted."""


def _holders(grad: Tensor) -> tuple[int, ...]:
    """Everything that counts who can reach the values; two more counts of its base for a view."""
    storage = grad.untyped_storage()
    counts = (
        sys.getrefcount(grad),
        weakref.getweakrefcount(grad),
        grad._use_count(),
        sys.getrefcount(storage),
        torch._C._storage_Use_Count(storage._cdata),
    )
    base = grad._base
    if base is None:
        return counts
    return (*counts, sys.getrefcount(base), weakref.getweakrefcount(base), base._use_count())


def _caller(frame: FrameType) -> CodeType | None:
    """The function that a frame was called from; None in a thread of the engine's own."""
    return frame.f_back.f_code if frame.f_back else None


def _references(_: None, x: object) -> int:
    return sys.getrefcount(x)


def _references_spread(*args: object) -> int:
    return _references(None, *args)


def _call_references() -> tuple[int, int]:
    """How often a call holds an argument that nobody else holds: by position, and spread out of a tuple, as torch calls
    a backward.

    Fewer times where Python runs the call within its caller's loop. A frame hook (PEP 523) keeps it from both, such as
    the one that torch.compile leaves behind when a compilation fails; a profiler from the second on Python 3.13.
    """
    return _references(None, object()), _references_spread(object())


class _Probe(torch.autograd.Function):
    """Writes down the holders of the gradient that arrives, through the calls that `is_exclusive` is reached by."""

    @staticmethod
    def forward(ctx, x, found):
        ctx.found = found
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        is_exclusive(grad, ctx.found)
        return grad, None


class _HookProbe:
    """The same as a hook on a tensor."""

    def __init__(self, found: list[Found]) -> None:
        self.found = found

    def __call__(self, grad):
        is_exclusive(grad, self.found)


@cache
def _unheld(by_hook: bool, device: str, call_references: tuple[int, int]) -> tuple[Found, ...]:
    """Caller and holders of a gradient that only the engine holds: of a new tensor, and of a view of all of one.

    By the device's type, since on a GPU another thread runs the backward, and by what calls hold now.
    """
    found: list[Found] = []
    with torch.enable_grad():
        x = torch.zeros(2, 3, device=device, requires_grad=True)
        for above in (lambda y: y, lambda y: y.view(3, 2)):
            y = x * 1 if by_hook else _Probe.apply(x, found)
            if by_hook:
                y.register_hook(_HookProbe(found))
            (above(y) * 2).sum().backward()
    return tuple(found)


def _is_private(grad: Tensor) -> bool:
    """Whether torch's own memory, shared with no process, holds the values of `grad`, each in a place of its own."""
    storage = grad.untyped_storage()
    shared = grad.device.type == "cpu" and storage.is_shared()  # which torch says of any storage on a GPU
    if not storage.resizable() or shared or storage.nbytes() != grad.numel() * grad.element_size():
        return False
    if grad.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(grad.stride(), grad.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def is_exclusive(grad: Tensor, found: list[Found] | None = None, *, by_hook: bool = False) -> bool:
    """Whether only the caller, a backward or a hook called by the autograd engine, can see the values of `grad`.

    To be called from `backward` (or a hook object's `__call__`) itself, with its own argument: callers in between
    would count as holders.

    Args:
        grad: a gradient as it arrived.
        found: for measuring: takes the caller and the holders that were counted.
        by_hook: the caller is a hook on a tensor.

    Returns:
        False where in doubt: subclasses and wrapped tensors, memory that is not torch's own or is shared between
        processes, views of a part, active dispatch modes (they see tensors too), a gradient anyone else holds.
    """
    if not are_plain((grad,)) or grad.requires_grad:
        return False
    if found is not None:
        found.append((_caller(sys._getframe(1)), _holders(grad)))
        return False
    if not _is_private(grad):
        return False
    seen = _caller(sys._getframe(1)), _holders(grad)
    return seen in _unheld(by_hook, grad.device.type, _call_references())
