"""When a call may go straight to its kernel: the way through the dispatcher can cost more than the kernel."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from fastsketch import _backend

_PLAIN = (Tensor, Parameter)


def are_plain(tensors: Iterable[Tensor | None]) -> bool:
    """Whether these are tensors with values of their own, and no dispatch mode (a tracer, say) is looking on."""
    if torch._C._len_torch_dispatch_stack():
        return False
    for tensor in tensors:  # a loop: it runs for every operator, and takes half the time of all(...)
        if tensor is not None and (
            type(tensor) not in _PLAIN
            or tensor.layout != torch.strided
            or tensor.is_meta
            or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
            or torch._C._functorch.is_legacy_batchedtensor(tensor)  # a batched gradient's, of torch.autograd
        ):
            return False
    return True


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: they see through torch's own operators alone."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def wants_formula(*grads: Tensor | None) -> bool:
    """Whether a backward must take torch's own operators: a graph of it is wanted, or its gradients are batched."""
    return torch.is_grad_enabled() or not are_plain(grads)


def nothing_looks_on(*tensors: Tensor | None) -> bool:
    """Whether only autograd, which the caller sees to, could want to know of a call with these arguments."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not traced and are_plain(tensors) and not is_transformed()


def by_kernel(formula: Callable, *args):
    """`formula(*args)`, a tensor first; by the optional kernel of its name where there is one and nothing looks on."""
    tensors = [x for x in args if isinstance(x, Tensor)]
    kernel = None
    if nothing_looks_on(*tensors) and tensors[0].numel():
        kernel = _backend.optional_kernel(formula.__name__, tensors[0].device)
    return (kernel or formula)(*args)
