"""project_patches: against a formula in float64, its derivatives, layouts, and what it refuses."""

import pytest
import torch

import fastsketch
from fastsketch.functional import project_and_normalize
from fastsketch.nn import PatchProjection

KERNELS = ("gather_layers",)
SIZES = [((3, 5, 8), 16, 12), ((1, 130, 3), 7, 5), ((2, 100, 33), 20, 19)]
"""(B, S, C of the first layer), H and D; odd on purpose."""


def problem(shape=(2, 37, 8), hidden=16, dim=12, dtype=torch.float64, layers=3, grad=True):
    batch, samples, width = shape
    generator = torch.Generator().manual_seed(0)
    patches, parameters = [], []

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)

    for layer in range(layers):
        c = width + 3 * layer
        patches.append(normal(batch, samples, c))
        parameters += [normal(hidden, c), normal(hidden), normal(dim, hidden), normal(dim)]
    return patches, parameters


def formula(patches, parameters):
    """Written with einsum and clamp."""
    out = []
    for layer, x in enumerate(patches):
        w1, b1, w2, b2 = parameters[4 * layer : 4 * layer + 4]
        hidden = (torch.einsum("bsc,hc->bsh", x, w1) + b1).clamp_min(0)
        out.append(torch.einsum("bsh,dh->bsd", hidden, w2) + b2)
    return torch.stack(out)


@pytest.mark.parametrize(("shape", "hidden", "dim"), SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients(backend, shape, hidden, dim, dtype, assert_as_good_as_naive):
    patches, parameters = problem(shape, hidden, dim, dtype)
    weight = torch.randn(3, *shape[:2], dim, dtype=torch.float64)
    results = []
    for function, to in ((fastsketch.project_patches, dtype), (formula, dtype), (formula, torch.float64)):
        inputs = [x.detach().to(to).requires_grad_() for x in (*patches, *parameters)]
        out = function(inputs[:3], inputs[3:])
        results.append([out, *torch.autograd.grad(out, inputs, weight.to(to))])
    for got, naive, truth in zip(*results, strict=True):
        assert got.dtype == dtype
        assert_as_good_as_naive(got, naive, truth)


def test_gradcheck(backend):
    patches, parameters = problem((1, 5, 3), 6, 4, layers=2)
    inputs = (*patches, *parameters)
    call = lambda *x: fastsketch.project_patches(x[:2], x[2:])  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_only_what_is_needed(backend):
    """Gradients are made for the patches alone, the weights alone, or some of them."""
    patches, parameters = problem()
    weight = torch.randn(3, 2, 37, 12, dtype=torch.float64)
    wanted = torch.autograd.grad(formula(patches, parameters), (*patches, *parameters), weight)
    everything = [*patches, *parameters]
    for chosen in ([0, 1, 2], list(range(3, 15)), [1], [4, 13]):
        inputs = [x.detach().requires_grad_(n in chosen) for n, x in enumerate(everything)]
        out = fastsketch.project_patches(inputs[:3], inputs[3:])
        grads = torch.autograd.grad(out, [inputs[n] for n in chosen], weight)
        for n, grad in zip(chosen, grads, strict=True):
            torch.testing.assert_close(grad, wanted[n])


def test_strides(backend, restrided):
    patches, parameters = problem(grad=False)
    odd = fastsketch.project_patches([restrided(x) for x in patches], [restrided(x) for x in parameters])
    torch.testing.assert_close(odd, fastsketch.project_patches(patches, parameters))
    out = fastsketch.project_patches([x.requires_grad_() for x in patches], parameters)
    grads = torch.autograd.grad(out.sum(), patches)  # a gradient of strides 0
    wanted = torch.autograd.grad(formula(patches, parameters).sum(), patches)
    for one, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_empty_and_nan(backend):
    patches, parameters = problem((2, 0, 4))
    out = fastsketch.project_patches(patches, parameters)
    assert out.shape == (3, 2, 0, 12)
    out.sum().backward()
    assert all((x.grad == 0).all() for x in parameters)
    patches, parameters = problem(grad=False)
    patches[1][0, 3] = float("nan")
    assert fastsketch.project_patches(patches, parameters)[1, 0, 3].isnan().all()


def test_same_bits_for_any_number_of_threads(backend, with_threads):
    patches, parameters = problem((2, 300, 40), 64, 48, torch.float32)
    weight = torch.randn(3, 2, 300, 48)

    def run():
        out = fastsketch.project_patches(patches, parameters)
        return out, *torch.autograd.grad(out, (*patches, *parameters), weight)

    runs = with_threads(run, (1, 2, 3, 2))
    if backend == "cpp":  # the framework's products are not held to it
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_compiles_without_a_break(backend):
    patches, parameters = problem((1, 5, 3), 6, 4)
    compiled = torch.compile(fastsketch.project_patches, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(patches, parameters), formula(patches, parameters))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda p, w: w.pop(), ValueError, "parameters must hold four tensors"),
        (lambda p, w: p.clear(), ValueError, "at least one"),
        (lambda p, w: p.__setitem__(1, p[1][0]), ValueError, r"patches\[1\] must be \[B, S, C\]"),
        (lambda p, w: p.__setitem__(1, p[1][:, :3]), ValueError, r"patches\[1\] must have shape"),
        (lambda p, w: p.__setitem__(1, p[1].float()), TypeError, r"patches\[1\] must be one of float64"),
        (lambda p, w: w.__setitem__(4, w[4][:, :2]), ValueError, r"parameters\[4\] must have shape \[16, 11\]"),
        (lambda p, w: p.__setitem__(0, None), TypeError, r"patches\[0\] must be a torch.Tensor, got NoneType"),
        (lambda p, w: w.__setitem__(7, w[7].int()), TypeError, r"parameters\[7\]"),
        (lambda p, w: w.__setitem__(3, None), TypeError, r"parameters\[3\] must be a torch.Tensor, got NoneType"),
        (lambda p, w: w.__setitem__(0, w[0][0, 0]), ValueError, r"parameters\[0\] must be \[H, C\]"),
        (lambda p, w: w.__setitem__(2, None), TypeError, r"parameters\[2\] must be a torch.Tensor, got NoneType"),
    ],
)
def test_bad_input(change, error, match):
    patches, parameters = problem()
    change(patches, parameters)
    with pytest.raises(error, match=match):
        fastsketch.project_patches(patches, parameters)


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"hidden": 0}, r"parameters\[0\] must be \[H, C\] with H at least 1, got shape \[0, 8\]"),
        ({"dim": 0}, r"parameters\[2\] must be \[D, H\] with D at least 1, got shape \[0, 16\]"),
        ({"shape": (2, 37, 0)}, r"patches\[0\] must be \[B, S, C\] with C at least 1, got shape \[2, 37, 0\]"),
    ],
)
@pytest.mark.parametrize("call", [fastsketch.project_patches, project_and_normalize])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_width_of_0_is_refused(backend, sizes, match, call, grad, dtype):
    patches, parameters = problem(**sizes, grad=grad, dtype=dtype)
    with pytest.raises(ValueError, match=match):
        call(patches, parameters)


@pytest.mark.parametrize("call", [fastsketch.project_patches, project_and_normalize])
def test_a_single_tensor_is_no_list(backend, call):
    patches, parameters = problem()
    with pytest.raises(TypeError, match="patches must be a list of tensors, one a layer, got Tensor"):
        call(patches[0], parameters[:4])
    with pytest.raises(TypeError, match="parameters must be a list of tensors, one a layer, got Tensor"):
        call(patches, parameters[0])


def test_a_projection_to_nothing_is_refused():
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        PatchProjection([3, 5], 0)
    with pytest.raises(ValueError, match="channels must hold at least one layer"):
        PatchProjection([], 8)


def test_the_module_steps_aside_for_hooks_and_other_layers():
    """A projection that somebody watches or has changed runs as its modules say."""
    patches = [torch.randn(1, 4, 3), torch.randn(1, 4, 5)]
    projection = PatchProjection([3, 5], 8)
    plain = projection(patches)
    seen = []
    hook = projection.mlp_1[2].register_forward_hook(lambda module, inputs, out: seen.append(out))
    torch.testing.assert_close(projection(patches), plain)
    assert len(seen) == 1
    hook.remove()
    projection.mlp_0[1] = torch.nn.Tanh()
    changed = projection(patches)
    torch.testing.assert_close(changed[1], plain[1])
    torch.testing.assert_close(changed[0], projection.mlp_0(patches[0]))
    assert not torch.allclose(changed[0], plain[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_autocast_leaves_the_dtype_alone(backend, dtype):
    patches = [torch.randn(1, 4, 8, dtype=dtype)]
    parameters = [torch.randn(size, dtype=dtype) for size in ((16, 8), (16,), (16, 16), (16,))]
    want = fastsketch.project_patches(patches, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        got = fastsketch.project_patches(patches, parameters)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want)
