"""Who may see the networks' own kernels, and who must not: tracers, other devices."""

import copy
import io

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastsketch import _backend
from fastsketch.nn import PatchDiscriminator, ResnetGenerator
from fastsketch.nn.attend import attend
from fastsketch.nn.convolution import convolve, use_winograd
from fastsketch.nn.instance_norm import InstanceNorm
from fastsketch.nn.own_kernels import kernel, use_own_kernels

NAMES = ["attend_forward", "blur_downsample", "convolve", "instance_norm"]
SIZE = 2, 3, 32, 36


class Drawing(torch.nn.Module):
    """A generator and a judge behind it, of one input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.judge = ResnetGenerator(3, 1, 8, 5, mask_channel=False), PatchDiscriminator(1, 8)
        use_winograd(self)

    def forward(self, image):
        return self.judge(self.generator(image))


@pytest.fixture(scope="module")
def drawing():
    return Drawing()


def _close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_networks_are_the_same_functions_either_way():
    torch.manual_seed(0)
    generator, judge = ResnetGenerator(3, 1, 8, 5).double(), PatchDiscriminator(1, 8).double()
    image, mask = torch.rand(2, 3, 36, 52, dtype=torch.float64), torch.ones(2, 1, 36, 52, dtype=torch.float64)
    parameters = [*generator.parameters(), *judge.parameters()]

    def run():
        out = judge(generator(image, mask)).square().sum()
        return out.detach(), *torch.autograd.grad(out, parameters)

    got = run()
    with _backend.use_backend("reference"):
        want = run()
    for network in (generator, judge):
        use_own_kernels(network, False)
    for one, other, same in zip(got, want, run(), strict=True):
        assert torch.equal(other, same)
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_compiles_to_one_graph(drawing):
    image = torch.rand(SIZE)
    _close(torch.compile(drawing, fullgraph=True, backend="eager")(image), drawing(image))


@pytest.mark.parametrize("strict", [True, False])
def test_is_exported(drawing, strict):
    image = torch.rand(SIZE)
    _close(torch.export.export(drawing, (image,), strict=strict).module()(image), drawing(image))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_is_traced_and_saved(drawing):
    image = torch.rand(SIZE)
    with torch.no_grad():
        traced = torch.jit.trace(drawing, (image,))
        torch.jit.save(traced, io.BytesIO())
        _close(traced(image), drawing(image))


def test_symbolic_tracing_of_the_discriminator():
    judge, image = PatchDiscriminator(3, 8), torch.rand(SIZE)
    _close(torch.fx.symbolic_trace(judge)(image), judge(image))


def test_fake_tensors_have_the_right_shapes(drawing):
    want = drawing(torch.rand(SIZE)).shape
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert drawing(torch.rand(SIZE)).shape == want


def test_weights_load_into_networks_made_without_memory():
    state = PatchDiscriminator(1, 8).state_dict()
    with torch.device("meta"):
        judge = PatchDiscriminator(1, 8)
    assigned, filled = copy.deepcopy(judge), judge.to_empty(device="cpu")
    assigned.load_state_dict(state, assign=True)
    filled.load_state_dict(state)
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(assigned(image), filled(image))


def test_a_backend_asked_for_on_another_device_is_no_error(drawing):
    image = torch.rand(SIZE)
    with _backend.use_backend("reference"):
        want = PatchDiscriminator.forward(drawing.judge, image[:, :1])
    with _backend.use_backend("triton"):
        assert all(kernel(name, image.device) is None for name in NAMES)
        assert torch.equal(drawing.judge(image[:, :1]), want)


def test_nothing_to_do_is_no_error():
    query, key, value = (torch.zeros(1, c, n, requires_grad=True) for c, n in ((4, 0), (4, 50), (6, 50)))
    attend(query, key, value).sum().backward()
    assert not key.grad.any() and not value.grad.any() and query.grad.shape == (1, 4, 0)
    assert attend(torch.zeros(1, 4, 3), torch.zeros(1, 4, 0), torch.zeros(1, 6, 0)).shape == (1, 6, 3)
    for size in (3, 4, 7):
        given = torch.zeros(1, 0, 8, 8), torch.zeros(4, 0, size, size), torch.ones(4)
        assert torch.equal(convolve(*given), torch.conv2d(*given))


def test_overflow_is_seen():
    pytest.importorskip("fastsketch.cpp", reason="the framework's norm hides it", exc_type=ImportError)
    x = torch.full((1, 1, 4, 4), 1e25)
    x[0, 0, 0, 0] *= -1
    assert InstanceNorm(1, 0.0)(x).isnan().all()


def test_a_relu_stops_a_gradient_that_is_not_finite():
    layer = InstanceNorm(1, 0.0)
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0]).view(1, 1, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x), x, torch.tensor([torch.inf, 0.0, 1.0, 2.0]).view(1, 1, 2, 2))
    assert gradient.isfinite().all()


def test_dtypes_that_do_not_belong_together_are_named():
    with pytest.raises(ValueError, match="of one dtype"):
        attend(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3).double(), torch.zeros(1, 2, 3).double())
