"""fastsketch::gather_patches_forward, _backward and tap_patches_backward."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function

from fastsketch import _backend
from fastsketch._checks import check_values
from fastsketch.ops import exclusive
from fastsketch.ops.eager import are_plain, is_transformed, nothing_looks_on
from fastsketch.reference import gather as plain
from fastsketch.reference.layout import empty_features, is_channels_last


def _check_positions(index: Tensor, size: int) -> None:
    if _backend.checks_values(index):
        check_values("index", index, f"lie in [0, {size}), the features' positions;", lambda value: 0 <= value < size)


def _gather_patches(features: Tensor, index: Tensor) -> Tensor:
    def check() -> None:
        _check_positions(index, features.shape[2:].numel())

    return _backend.run_checked("gather_patches_forward", features.device, check, features, index)


@torch.library.custom_op("fastsketch::gather_patches_forward", mutates_args=())
def gather_patches_forward(features: Tensor, index: Tensor) -> Tensor:
    """Dispatch; see `fastsketch.reference.gather`."""
    return _gather_patches(features, index)


@gather_patches_forward.register_fake
def _(features, index):
    return features.new_empty(index.shape[0], index.shape[1], features.shape[1])


def _gather_layers(features: Sequence[Tensor], index: Sequence[Tensor]) -> list[Tensor]:
    """Dispatch; see `fastsketch.reference.gather`."""

    def check() -> None:
        for layer, i in zip(features, index, strict=True):
            _check_positions(i, layer.shape[2:].numel())

    return _backend.run_checked("gather_layers", features[0].device, check, features, index)


gather_layers = torch.library.custom_op("fastsketch::gather_layers", _gather_layers, mutates_args=())


@gather_layers.register_fake
def _(features, index):
    return [x.new_empty(i.shape[0], i.shape[1], x.shape[1]) for x, i in zip(features, index, strict=True)]


@torch.library.custom_op("fastsketch::gather_patches_backward", mutates_args=())
def gather_patches_backward(grad_patches: Tensor, index: Tensor, spatial: Sequence[int], channels_last: bool) -> Tensor:
    """Dispatch; see `fastsketch.reference.gather`."""
    kernel = _backend.kernel("gather_patches_backward", grad_patches.device)
    return kernel(grad_patches, index, spatial, channels_last)


@gather_patches_backward.register_fake
def _(grad_patches, index, spatial, channels_last):
    shape = (grad_patches.shape[0], grad_patches.shape[2], *spatial)
    return empty_features(grad_patches, shape, channels_last)


@torch.library.custom_op("fastsketch::tap_patches_backward", mutates_args=())
def tap_patches_backward(grad_features: Tensor, grad_patches: Tensor, index: Tensor) -> Tensor:
    """Dispatch; see `fastsketch.reference.gather`."""
    kernel = _backend.kernel("tap_patches_backward", grad_features.device)
    return kernel(grad_features, grad_patches, index)


@tap_patches_backward.register_fake
def _(grad_features, grad_patches, index):
    return torch.empty_like(grad_features)


def _setup_context(ctx, inputs, output):
    features, index = inputs
    ctx.save_for_backward(index)
    ctx.layout = (list(features.shape[2:]), is_channels_last(features))


def _backward(ctx, grad_patches):
    (index,) = ctx.saved_tensors
    return gather_patches_backward(grad_patches, index, *ctx.layout), None


def _double_backward_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _double_backward(ctx, grad_features):
    (index,) = ctx.saved_tensors
    return gather_patches_forward(grad_features, index), None, None, None


def _tap_double_backward_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[2])


def _tap_double_backward(ctx, grad):
    (index,) = ctx.saved_tensors
    return grad, gather_patches_forward(grad, index), None


gather_patches_forward.register_autograd(_backward, setup_context=_setup_context)
gather_patches_backward.register_autograd(_double_backward, setup_context=_double_backward_context)
tap_patches_backward.register_autograd(_tap_double_backward, setup_context=_tap_double_backward_context)


def gather_patches(features: Tensor, index: Tensor) -> Tensor:
    """The operator, or the plain formula for a transform."""
    if not is_transformed():
        return gather_patches_forward(features, index)
    if are_plain((index,)):
        _check_positions(index, features.shape[2:].numel())
    return plain.gather_patches_forward(features, index)


def _gather(features: Tensor, index: Tensor) -> Tensor:
    """The patches; what autograd has to know is above this call."""
    return (_gather_patches if nothing_looks_on(features, index) else gather_patches_forward)(features, index)


def gather_without_gradient(features: Sequence[Tensor], index: Sequence[Tensor]) -> list[Tensor]:
    """`gather_layers`, straight to the kernel where nothing looks on; the plain formula for a transform."""
    if is_transformed():
        return [gather_patches(layer, i) for layer, i in zip(features, index, strict=True)]
    return (_gather_layers if nothing_looks_on(*features, *index) else gather_layers)(features, index)


def tap_patches(features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """`TapPatches` in the form that suits the caller; for a transform, which makes its own derivatives, the formula."""
    if is_transformed():
        return features.view_as(features), gather_patches(features, index)
    return (_EagerTap if nothing_looks_on(features, index) else TapPatches).apply(features, index)


class TapPatches(Function):
    """Identity on the features beside a gather; backward adds the patch gradients to the arriving one."""

    @staticmethod
    def forward(features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Features as a view of themselves, and the patches."""
        return features.view_as(features), _gather(features, index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep the positions alone, not the features."""
        features, index = inputs
        ctx.save_for_backward(index)
        ctx.layout = (list(features.shape[2:]), is_channels_last(features))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_features, grad_patches):
        """Add where both gradients arrive; scatter where only the patches' does."""
        (index,) = ctx.saved_tensors
        if grad_patches is None:
            return grad_features, None
        if grad_features is None:
            return gather_patches_backward(grad_patches, index, *ctx.layout), None
        if not torch.compiler.is_compiling() and not torch.is_grad_enabled():
            add = _backend.optional_kernel("tap_patches_add_", grad_features.device)
            if add is not None and exclusive.is_exclusive(grad_features):
                return add(grad_features, grad_patches, index), None
        return tap_patches_backward(grad_features, grad_patches, index), None


class _EagerTap(Function):
    """`TapPatches` in the older form of a Function, whose `apply` takes a tenth of the time; transforms and compilers
    want the newer one.
    """

    @staticmethod
    def forward(ctx, features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """As above, both parts in one."""
        TapPatches.setup_context(ctx, (features, index), None)
        return features.view_as(features), _gather_patches(features, index)

    backward = TapPatches.backward
