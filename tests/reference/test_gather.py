"""gather_patches and tap_patches against loops over positions, and the tap against gather plus identity."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

import fastsketch

KERNELS = ("gather_patches_forward", "gather_patches_backward", "tap_patches_backward")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(2, 5, 11), (2, 3, 4, 6), (3, 2, 2, 3, 4), (1, 1, 1), (1, 17, 1, 9), (2, 64, 8, 8)]


def draw(features: Tensor, samples: int, seed: int = 0) -> Tensor:
    """[B, S] positions; some stand more than once where S is large."""
    size = (features.shape[0], samples)
    positions = features.shape[2:].numel()
    return torch.randint(positions, size, generator=torch.Generator().manual_seed(seed)).to(features.device)


def loop_gather(features: Tensor, index: Tensor) -> Tensor:
    """[B, S, C], one position at a time, unravelled by numpy."""
    spatial = tuple(features.shape[2:])
    rows = []
    for b in range(index.shape[0]):
        places = [np.unravel_index(p, spatial) for p in index[b].tolist()]
        rows.append(torch.stack([features[(b, slice(None), *place)] for place in places]))
    return torch.stack(rows)


def loop_scatter(grad_patches: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
    """[B, C, *spatial] float64: the dense gradient of a gather, one position at a time."""
    dense = torch.zeros(shape, dtype=torch.float64, device=grad_patches.device)
    for b, s in itertools.product(range(index.shape[0]), range(index.shape[1])):
        place = np.unravel_index(int(index[b, s]), tuple(shape[2:]))
        dense[(b, slice(None), *place)] += grad_patches[b, s].double()
    return dense


def close(got: Tensor, want: Tensor) -> None:
    """Equal up to the rounding of a few sums in the result's dtype."""
    eps = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), want.double(), rtol=2 * eps, atol=2 * eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("call", ["gather", "tap"])
def test_values_and_gradient(backend, randn, shape, dtype, call):
    features = randn(*shape, dtype=dtype, grad=True)
    index = draw(features, 7)  # with duplicates: SHAPES[3] has one position
    if call == "gather":
        patches = fastsketch.gather_patches(features, index)
    else:
        same, patches = fastsketch.tap_patches(features, index)
        assert torch.equal(same, features)
        assert same.stride() == features.stride()
    assert torch.equal(patches, loop_gather(features.detach(), index))
    assert patches.is_contiguous()
    grad = randn(*patches.shape, dtype=dtype, seed=1)
    patches.backward(grad)
    assert features.grad.dtype == dtype
    close(features.grad, loop_scatter(grad, index, features.shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_duplicates_add_up_in_float32(backend, device, dtype):
    """512 ones and 512 times 1/512: 513, rounded once. A running bfloat16 sum stops at 256, a float16 one at 512."""
    features = torch.zeros(1, 1, 4, dtype=dtype, device=device, requires_grad=True)
    index = torch.full((1, 1024), 2, device=device)
    grad = torch.tensor([1, 1 / 512], dtype=dtype, device=device).repeat_interleave(512).view(1, 1024, 1)
    fastsketch.gather_patches(features, index).backward(grad)
    assert features.grad.flatten().tolist() == [0, 0, torch.tensor(513.0).to(dtype).item(), 0]


@pytest.mark.parametrize("call", ["gather", "tap"])
def test_index_forms(backend, randn, device, call):
    features = randn(3, 4, 5, 6)

    def patches(index: Tensor) -> Tensor:
        if call == "gather":
            return fastsketch.gather_patches(features, index)
        return fastsketch.tap_patches(features, index)[1]

    row = torch.tensor([0, 29, 7, 7], device=device)
    want = loop_gather(features, row.expand(3, -1))
    spaced = torch.stack([row, row + 1], dim=-1).repeat(3, 1, 1)[..., 0]
    assert spaced.stride() == (8, 2)
    transposed = row[:, None].repeat(1, 3).mT
    for index in (row, row.expand(3, -1), row.repeat(3, 1), row.int(), spaced, spaced.int(), transposed):
        assert torch.equal(patches(index), want)
    assert patches(row[:0]).shape == (3, 0, 4)


@pytest.mark.parametrize("shape", [(0, 4, 6), (2, 0, 6), (2, 4, 0)], ids=str)
@pytest.mark.parametrize("call", ["gather", "tap"])
def test_empty_features(backend, randn, device, shape, call):
    features = randn(*shape, grad=True)
    samples = 0 if shape[2] == 0 else 3
    index = torch.zeros(shape[0], samples, dtype=torch.int64, device=device)
    function = {"gather": fastsketch.gather_patches, "tap": lambda f, i: fastsketch.tap_patches(f, i)[1]}[call]
    patches = function(features, index)
    assert patches.shape == (shape[0], samples, shape[1])
    patches.sum().backward()
    assert features.grad.shape == shape
    assert (features.grad == 0).all()


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 4, 5), (2, 3, 2, 3, 4)], ids=str)
def test_strides_of_features_and_gradient_do_not_matter(backend, randn, restrided, shape):
    features, index = randn(*shape), draw(randn(*shape), 6)
    odd = restrided(features).requires_grad_()
    grad_patches, grad_features = randn(2, 6, 3, seed=1), randn(*shape, seed=2)
    want = loop_scatter(grad_patches, index, features.shape)
    patches = fastsketch.gather_patches(odd, restrided(index))
    assert torch.equal(patches, loop_gather(features, index))
    (grad,) = torch.autograd.grad(patches, odd, restrided(grad_patches))
    close(grad, want)
    arriving = restrided(grad_features)
    outputs = fastsketch.tap_patches(odd, restrided(index))
    (grad,) = torch.autograd.grad(outputs, odd, (arriving, restrided(grad_patches)))
    close(grad, want + grad_features)
    assert torch.equal(arriving, grad_features)  # a gradient handed in is not written into


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("call", ["gather", "tap"])
def test_gradient_has_the_features_layout(backend, randn, shape, call):
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)]
    for memory_format in (torch.contiguous_format, layout):
        features = randn(*shape).contiguous(memory_format=memory_format).requires_grad_()
        index = draw(features, 6)
        if call == "gather":
            patches = fastsketch.gather_patches(features, index)
        else:
            same, patches = fastsketch.tap_patches(features, index)
            assert same.stride() == features.stride()
        (grad,) = torch.autograd.grad(patches.square().sum(), features)
        assert grad.is_contiguous(memory_format=memory_format)
        close(grad, loop_scatter(2 * loop_gather(features.detach(), index), index, features.shape))


@pytest.mark.parametrize("shape", [(2, 3, 7), (1, 2, 3, 3), (1, 2, 2, 2, 2)], ids=str)
def test_gradcheck(backend, randn, shape):
    features = randn(*shape, grad=True)
    index = draw(features, 5)
    torch.autograd.gradcheck(lambda f: fastsketch.gather_patches(f, index), features)
    torch.autograd.gradgradcheck(lambda f: fastsketch.gather_patches(f, index).pow(3), features)
    torch.autograd.gradcheck(lambda f: fastsketch.tap_patches(f, index), features)
    torch.autograd.gradcheck(lambda f: fastsketch.tap_patches(f.sin(), index), features)


# The tap: whatever follows it, the gradient is that of a gather beside the plain features.


def _both(same: Tensor, patches: Tensor) -> Tensor:
    return (same**3).sum() + patches.sin().sum()


CONSUMERS = {
    "features only": lambda same, patches: (same**2).sum(),
    "patches only": lambda same, patches: (patches**2).sum(),
    "both": _both,
    "sums (stride 0 gradients)": lambda same, patches: same.sum() + patches.sum(),
    "mean of features": lambda same, patches: same.mean() + (patches**2).sum(),
    "features twice": lambda same, patches: (same * same.exp()).sum() + patches.exp().sum(),
    "two branches": lambda same, patches: same.relu().sum() + (same**2).sum() + patches.relu().sum(),
    "patches twice": lambda same, patches: same.sin().sum() + (patches**2).sum() + patches.sum(),
    "transposed gradients": lambda same, patches: (same.mT.contiguous() ** 2).sum() + (patches.mT.clone() ** 2).sum(),
    "slices": lambda same, patches: (same[..., 1:] ** 2).sum() + (patches[:, ::2, 1:] ** 2).sum(),
    "concatenated": lambda same, patches: _both(torch.cat([same, same * 2], 1), torch.cat([patches, patches], 1)),
    "one image only": lambda same, patches: (same[0] ** 2).sum() + (patches[1] ** 2).sum(),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CONSUMERS)
def test_tap_is_gather_beside_identity(backend, randn, name, channels_last):
    consumer = CONSUMERS[name]
    features = randn(2, 5, 4, 6)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    index = draw(features, 30)  # of 24 positions: with duplicates

    def grads(tap: bool, leaf: bool, again: bool) -> Tensor:
        x = features.clone().requires_grad_()
        inner = x if leaf else x.sin()
        if tap:
            same, patches = fastsketch.tap_patches(inner, index)
            same, patches = (same, patches) if not again else (fastsketch.tap_patches(same, index)[0], patches)
        else:
            same, patches = inner, loop_gather(inner, index)
        second = (inner**2).sum() if again else 0  # another consumer of what is tapped
        return torch.autograd.grad(consumer(same, patches) + second, x)[0]

    for leaf, again in itertools.product((False, True), repeat=2):
        got, want = grads(True, leaf, again), grads(False, leaf, again)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_tapped_at_two_places(backend, randn):
    """A tap of a tap, at other positions: both patch gradients arrive."""
    features = randn(2, 3, 4, 4, grad=True)
    first, second = draw(features, 5, seed=1), draw(features, 9, seed=2)
    same, one = fastsketch.tap_patches(features, first)
    same, two = fastsketch.tap_patches(same, second)
    (got,) = torch.autograd.grad(_both(same, one) + (two**2).sum(), features)
    one, two = loop_gather(features, first), loop_gather(features, second)
    (want,) = torch.autograd.grad(_both(features, one) + (two**2).sum(), features)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_tap_leaves_the_gradients_of_others_alone(backend, randn):
    """What a hook, a retained gradient or another branch holds is what arrived, without the patch gradients."""
    features = randn(2, 3, 4, 4, grad=True)
    index = draw(features, 6)
    inner = features.sin()
    same, patches = fastsketch.tap_patches(inner, index)
    kept = []
    same.register_hook(lambda grad: kept.append(grad))
    same.retain_grad()
    out = same.view(2, -1)
    out.retain_grad()
    upstream = randn(2, 48, seed=4)
    before = upstream.clone()
    torch.autograd.backward([out, patches], [upstream, torch.ones_like(patches)])
    for held in (upstream, out.grad, same.grad.view(2, -1), kept[0].view(2, -1)):
        assert torch.equal(held, before)
    want = (before.view_as(features) + loop_scatter(torch.ones_like(patches), index, features.shape)) * features.cos()
    torch.testing.assert_close(features.grad, want, rtol=1e-12, atol=1e-12)


def test_tap_backward_twice_over_a_kept_graph(backend, randn):
    features = randn(2, 3, 4, 4, grad=True)
    same, patches = fastsketch.tap_patches(features.sin(), draw(features, 6))
    loss = _both(same, patches)
    (once,) = torch.autograd.grad(loss, features, retain_graph=True)
    (twice,) = torch.autograd.grad(loss, features)
    torch.testing.assert_close(once, twice, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=lambda d: str(d)[6:])
def test_tap_adds_once_rounded(backend, randn, dtype):
    """The arriving gradient and all its duplicates are summed in float32, and rounded once."""
    features = randn(2, 3, 4, 4, dtype=dtype, grad=True)
    index = draw(features, 40)
    outputs = fastsketch.tap_patches(features, index)
    grad_features, grad_patches = randn(2, 3, 4, 4, dtype=dtype, seed=1), randn(2, 40, 3, dtype=dtype, seed=2)
    (got,) = torch.autograd.grad(outputs, features, (grad_features, grad_patches))
    want = grad_features.double() + loop_scatter(grad_patches, index, features.shape)
    assert got.dtype == dtype
    bound = torch.finfo(dtype).eps / 2 * want.abs() + 32 * torch.finfo(torch.float32).eps
    assert ((got.double() - want).abs() <= bound).all()


def test_no_gradient_wanted(backend, randn):
    features = randn(2, 3, 4, 4)
    same, patches = fastsketch.tap_patches(features, draw(features, 6))
    assert not same.requires_grad
    assert not patches.requires_grad
    assert same.data_ptr() == features.data_ptr()  # a view: nothing is copied
    with torch.no_grad():
        patches = fastsketch.gather_patches(features.requires_grad_(), draw(features, 6))
    assert not patches.requires_grad


@pytest.mark.parametrize("call", [fastsketch.gather_patches, fastsketch.tap_patches], ids=["gather", "tap"])
@pytest.mark.parametrize(("bad", "message"), [(-1, "got -1 to 5"), (12, "got 0 to 12"), (2**40, "got 0 to")])
def test_position_out_of_range(backend, randn, device, call, bad, message):
    features = randn(2, 3, 3, 4)
    index = torch.tensor([[0, 5, 3], [1, 2, bad]], device=device)
    with pytest.raises(ValueError, match=rf"index must lie in \[0, 12\).*{message}"):
        call(features, index)


F, I = torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, dtype=torch.int64)  # noqa: E741


@pytest.mark.parametrize("call", [fastsketch.gather_patches, fastsketch.tap_patches], ids=["gather", "tap"])
@pytest.mark.parametrize(
    ("error", "message", "features", "index"),
    [
        (TypeError, "features must be a torch.Tensor, got ndarray", np.zeros((2, 3, 4)), I),
        (TypeError, "features must be one of float32.* got torch.int64", F.long(), I),
        (ValueError, r"features must be \[B, C, \*spatial\].* got shape \[4, 5\]", F[0, 0], I),
        (ValueError, r"features must be .* got shape \[2, 3, 4, 5, 1, 1\]", F[..., None, None], I),
        (TypeError, "index must be a torch.Tensor, got list", F, [1, 2]),
        (TypeError, "index must be one of int64, int32, got torch.float32", F, I.float()),
        (TypeError, "index must be one of int64, int32, got torch.bool", F, I.bool()),
        (ValueError, r"index must be \[S\] or \[2, S\].* got shape \[3, 6\]", F, I[:1].repeat(3, 1)),
        (ValueError, r"index must be \[S\] or \[2, S\].* got shape \[1, 6\]", F, I[:1]),
        (ValueError, r"index must be \[S\] or \[2, S\].* got shape \[2, 6, 1\]", F, I[..., None]),
        (ValueError, r"index must be \[S\] or \[2, S\].* got shape \[\]", F, I[0, 0]),
        (ValueError, "index must be on cpu, got meta", F, I.to("meta")),
    ],
)
def test_bad_input_is_named(call, error, message, features, index):
    with pytest.raises(error, match=message):
        call(features, index)
