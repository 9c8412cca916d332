"""When a call may go straight to its kernel: the way through the dispatcher can cost more than the kernel."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter


def are_plain(tensors: Iterable[Tensor | None]) -> bool:
    """Whether these are tensors with values of their own, and no dispatch mode (a tracer, say) is looking on."""
    return torch._C._len_torch_dispatch_stack() == 0 and all(
        tensor is None
        or (
            type(tensor) in (Tensor, Parameter)
            and tensor.layout == torch.strided
            and not tensor.is_meta
            and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        )
        for tensor in tensors
    )


def nothing_looks_on(*tensors: Tensor | None) -> bool:
    """Whether only autograd, which the caller sees to, could want to know of a call with these arguments."""
    return not torch.compiler.is_compiling() and are_plain(tensors)
