"""What an argument must be: a clear error that names it, for whatever asks (`fastsketch.functional`)."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.uint8)


def check_tensor(name: str, value: object, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be one of {allowed}, got {value.dtype}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got {value.layout}")


def check_list(name: str, value: object) -> None:
    if isinstance(value, Tensor) or not hasattr(value, "__len__"):
        raise TypeError(f"{name} must be a list of tensors, one a layer, got {type(value).__name__}")


def check_like(name: str, value: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
    if value.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {value.device}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_number(name: str, value: object) -> None:
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise TypeError(f"{name} must be a number, got a tensor that wants a gradient, which would be lost")
        if value.numel() != 1:
            raise TypeError(f"{name} must be a number, got a tensor of shape {list(value.shape)}")
    elif not isinstance(value, (int, float)) and (not hasattr(value, "__float__") or getattr(value, "ndim", 0)):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_above_zero(name: str, value: float) -> None:
    """Of a factor or divisor: positive and finite, and in float32, in which kernels compute, its reciprocal too."""
    check_number(name, value)
    # math.isfinite would break the graph where torch.compile makes the float symbolic
    if not 2.0**-126 <= value <= 2.0**126:
        wanted = "positive and finite" if not 0 < value < math.inf else "between 2^-126 and 2^126, as float32's numbers"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def check_values(name: str, x: Tensor, wanted: str, fits: Callable[[float], bool]) -> None:
    """One look at all values: the least and the largest must fit, and NaN must not; `wanted` ends in a comma or so."""
    if x.numel():
        low, high = (end.item() for end in x.aminmax())
        if not (fits(low) and fits(high)):
            raise ValueError(f"{name} must {wanted} got {low} to {high}")


def check_sides(name: str, value: Sequence[int]) -> None:
    """A pair of positive whole numbers; sizes of a compiled graph are symbolic."""
    if isinstance(value, (Tensor, str)) or not hasattr(value, "__len__"):
        raise TypeError(f"{name} must be a pair of ints, height and width, got {type(value).__name__}")
    if len(value) != 2:
        raise ValueError(f"{name} must be a pair of ints, height and width, got {len(value)} of them")
    for side in value:
        check_whole(name, side)
    if value[0] < 1 or value[1] < 1:
        raise ValueError(f"{name} must be positive, got {tuple(value)}")


def is_whole(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt, Integral)) and not isinstance(value, bool)


def check_whole(name: str, value: object) -> None:
    if not is_whole(value):
        raise TypeError(f"{name} must hold ints, got {value!r}")


def check_int(name: str, value: object) -> None:
    if not is_whole(value):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
