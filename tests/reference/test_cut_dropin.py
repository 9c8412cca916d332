"""The drop-in against the formulas of the public CUT code, written here anew from its behaviour."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastsketch.compat.cut import PatchNCELoss, PatchSampleF
from fastsketch.nn import ResnetGenerator

WIDTHS = (3, 8, 16)
# Of a layer's losses, or of a gradient, as vectors: rounding of sums over S = D = 32, magnified by 1/τ = 14 in the
# logits. Single losses close to 0 lose more digits, in CUT's formula as well.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


def options(**changes) -> SimpleNamespace:
    values = {"nce_T": 0.07, "batch_size": 1, "nce_includes_all_negatives_from_minibatch": False}
    return SimpleNamespace(**(values | changes))


def relative_error(got, expected):
    return (got - expected).norm() / expected.norm()


def cut_loss(q, k, opt):
    """Cross-entropy of [positive, all products with the diagonal at -10] / τ against class 0."""
    images = 1 if opt.nce_includes_all_negatives_from_minibatch else opt.batch_size
    q, k = q.reshape(images, -1, q.shape[-1]), k.detach().reshape(images, -1, k.shape[-1])
    products = torch.einsum("bid,bjd->bij", q, k)
    positive = (q * k).sum(-1, keepdim=True)
    itself = torch.eye(q.shape[1], dtype=torch.bool)
    logits = torch.cat([positive, products.masked_fill(itself, -10.0)], dim=-1) / opt.nce_T
    target = torch.zeros(logits.shape[:2].numel(), dtype=torch.long)
    return F.cross_entropy(logits.flatten(0, 1), target, reduction="none")


class CutSample(nn.Module):
    """CUT's sampling and projection: the same module names, draws and arithmetic, in plain torch."""

    def __init__(self, nc=32, init=lambda weight: nn.init.normal_(weight, 0.0, 0.02)):
        super().__init__()
        self.nc, self.init, self.made = nc, init, False

    def make(self, widths):
        for i, width in enumerate(widths):
            mlp = nn.Sequential(nn.Linear(width, self.nc), nn.ReLU(), nn.Linear(self.nc, self.nc))
            self.add_module(f"mlp_{i}", mlp)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                self.init(module.weight.data)
                module.bias.data.zero_()
        self.made = True
        return self

    def forward(self, feats, num_patches=64, patch_ids=None):
        if not self.made:
            self.make([feat.shape[1] for feat in feats])
        patches, ids = [], []
        for i, feat in enumerate(feats):
            if patch_ids is None:
                positions = np.random.permutation(feat.shape[2] * feat.shape[3])  # noqa: NPY002
                ids.append(torch.from_numpy(positions[:num_patches].copy()))
            else:
                ids.append(patch_ids[i])
            x = feat.flatten(2).transpose(1, 2)[:, ids[i]].reshape(-1, feat.shape[1])
            x = self.get_submodule(f"mlp_{i}")(x)
            patches.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-7))
        return patches, ids


def make_feats(batch, seed=0, dtype=torch.float32, size=9):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(size, size + 1), (size, size), (5, 4)]
    return [
        torch.randn(batch, width, *hw, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for width, hw in zip(WIDTHS, sizes, strict=True)
    ]


def seed_all(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def run(net, loss, query_feats, key_feats):
    """One CUT step: (losses of all layers, gradients of the query features, gradients of the mlps, ids)."""
    key, ids = net(key_feats, 32, None)
    query, _ = net(query_feats, 32, ids)
    losses = [loss(q, k) for q, k in zip(query, key, strict=True)]
    total = sum(layer.mean() for layer in losses)
    return losses, torch.autograd.grad(total, [*query_feats, *net.parameters()]), ids


@pytest.mark.parametrize("minibatch", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_gradients_are_those_of_cut(dtype, batch, minibatch):
    opt = options(batch_size=batch, nce_includes_all_negatives_from_minibatch=minibatch)
    query, key = make_feats(batch, 1, dtype), make_feats(batch, 2, dtype)
    reference, dropin = CutSample().make(WIDTHS).to(dtype), PatchSampleF(use_mlp=True, nc=32)
    dropin.load_state_dict({name: value.clone() for name, value in reference.state_dict().items()})
    dropin.to(dtype)
    seed_all(0)
    expected = run(reference, lambda q, k: cut_loss(q, k, opt), query, key)
    seed_all(0)
    got = run(dropin, PatchNCELoss(opt), query, key)
    for mine, theirs in zip(got[0], expected[0], strict=True):
        assert mine.shape == theirs.shape == (batch * min(32, theirs.shape[0] // batch),)
        assert relative_error(mine, theirs) < TOLERANCE[dtype]
    for mine, theirs in zip(got[1], expected[1], strict=True):
        assert relative_error(mine, theirs) < TOLERANCE[dtype]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got[2], expected[2], strict=True))


@pytest.mark.parametrize("batch", [1, 4])
def test_loss_alone_takes_plain_tensors(batch):
    """Tensors of somebody else's sampler carry no note: opt.batch_size counts, keys get no gradient."""
    opt = options(batch_size=batch)
    q, k = (F.normalize(torch.randn(batch * 16, 24, dtype=torch.float64)).requires_grad_() for _ in range(2))
    got, expected = PatchNCELoss(opt)(q, k), cut_loss(q, k, opt)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    weights = torch.rand_like(got)  # a gradient that differs from query to query
    got.backward(weights)
    assert k.grad is None
    (gradient,) = torch.autograd.grad(expected, q, weights)
    torch.testing.assert_close(q.grad, gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("init_type", ["normal", "xavier", "kaiming", "orthogonal"])
def test_mlps_are_made_at_the_first_forward_with_the_draws_of_cut(init_type):
    inits = {
        "normal": lambda weight: nn.init.normal_(weight, 0.0, 0.05),
        "xavier": lambda weight: nn.init.xavier_normal_(weight, gain=0.05),
        "kaiming": lambda weight: nn.init.kaiming_normal_(weight),
        "orthogonal": lambda weight: nn.init.orthogonal_(weight, gain=0.05),
    }
    dropin = PatchSampleF(True, init_type, 0.05, 32, [])
    assert list(dropin.parameters()) == [] and not dropin.mlp_init
    feats = make_feats(2)
    seed_all(7)
    patches, ids = dropin(feats, 16)
    after = torch.rand(1)
    seed_all(7)
    reference = CutSample(32, inits[init_type])
    expected, expected_ids = reference(feats, 16)
    assert torch.equal(after, torch.rand(1))
    assert dropin.mlp_init and list(dropin.state_dict()) == list(reference.state_dict())
    for name, value in reference.state_dict().items():
        assert torch.equal(dropin.state_dict()[name], value), name
    for i in range(len(feats)):
        assert patches[i].shape == (2 * 16, 32) and ids[i].dtype == torch.int64
        assert torch.equal(ids[i], expected_ids[i])
        torch.testing.assert_close(patches[i], expected[i], rtol=1e-5, atol=1e-6)


def test_unknown_init_type():
    with pytest.raises(ValueError, match=r"init_type must be one of .*'he'"):
        PatchSampleF(init_type="he")


@pytest.mark.parametrize("kind", [lambda i: i, lambda i: i.numpy(), lambda i: i.tolist(), lambda i: i.int()])
def test_given_ids_are_reused(kind):
    netf = PatchSampleF(use_mlp=False)
    feats = make_feats(2)
    seed_all(0)
    _, ids = netf(feats, 12)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    patches, again = netf(feats, 12, [kind(layer) for layer in ids])
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    for feat, x, mine, given in zip(feats, patches, again, ids, strict=True):
        assert torch.equal(mine, given) and len(set(given.tolist())) == 12
        expected = F.normalize(feat.flatten(2)[:, :, given].transpose(1, 2), dim=-1)
        torch.testing.assert_close(x, expected.flatten(0, 1), rtol=1e-5, atol=1e-6)


def test_more_patches_than_positions_takes_all():
    patches, ids = PatchSampleF()(make_feats(2), 1000)
    assert [len(layer) for layer in ids] == [90, 81, 20]
    assert sorted(ids[2].tolist()) == list(range(20))
    assert [x.shape[0] for x in patches] == [180, 162, 40]


@pytest.mark.parametrize("use_mlp", [False, True])
def test_no_sampling_returns_maps(use_mlp):
    netf = PatchSampleF(use_mlp, nc=32)
    feats = make_feats(2)
    maps, ids = netf(feats, 0)
    assert ids == [[], [], []]
    for i, (feat, x) in enumerate(zip(feats, maps, strict=True)):
        y = feat.flatten(2).transpose(1, 2)
        y = netf.get_submodule(f"mlp_{i}")(y) if use_mlp else y
        # As CUT's numbers: its dimension 1 holds the positions here.
        y = y / (y.square().sum(1, keepdim=True).sqrt() + 1e-7)
        assert x.shape == (2, 32 if use_mlp else feat.shape[1], *feat.shape[2:])
        torch.testing.assert_close(x.flatten(2).transpose(1, 2), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spatial", [(30,), (5, 6), (2, 3, 5)])
def test_any_spatial_rank(spatial):
    feat = torch.randn(2, 4, *spatial)
    flat, ids = PatchSampleF()([feat.flatten(2)], 8)
    patches, _ = PatchSampleF()([feat], 8, ids)
    assert torch.equal(patches[0], flat[0])
    assert PatchSampleF()([feat], 0)[0][0].shape == feat.shape


def test_last_smaller_batch_is_read_from_the_tensors():
    netf = PatchSampleF(use_mlp=True, nc=32)
    for batch in (3, 2):  # 4 does not divide 3·8 rows; of 2·8 it would make four images
        key, ids = netf(make_feats(batch, 1, torch.float64), 8)
        query, _ = netf(make_feats(batch, 2, torch.float64), 8, ids)
        got = PatchNCELoss(options(batch_size=4))(query[1], key[1])
        expected = cut_loss(query[1], key[1], options(batch_size=batch))
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)
        one_note = PatchNCELoss(options(batch_size=4))(query[1] * 1, key[1])
        assert torch.equal(one_note, got)


def test_without_a_note_opt_batch_size_counts():
    q, k = torch.randn(2, 24, 8).unbind()
    loss = PatchNCELoss(options(batch_size=5))
    with pytest.raises(ValueError, match=r"opt\.batch_size = 5 does not divide the 24 rows"):
        loss(q, k)
    netf = PatchSampleF()
    query, _ = netf(make_feats(2), 4)
    key, _ = netf(make_feats(4), 2)
    with pytest.raises(ValueError, match="feat_q holds 2 images, feat_k 4"):
        loss(query[0], key[0])
    with pytest.raises(ValueError, match=r"feat_q and feat_k must both be \[B·S, D\]"):
        loss(q, k[:3])


def test_bad_calls_name_the_argument():
    netf = PatchSampleF(use_mlp=True, nc=32)
    feats = make_feats(1)
    _, ids = netf(feats, 4)
    with pytest.raises(ValueError, match="feats must have at least one layer"):
        netf([], 4)
    with pytest.raises(ValueError, match="num_patches must be 0 or more, got -1"):
        netf(feats, -1)
    with pytest.raises(ValueError, match="patch_ids has 1 layers, feats has 3"):
        netf(feats, 4, ids[:1])
    with pytest.raises(ValueError, match=r"feats\[1\] has 3 channels, mlp_1 was made for 8"):
        netf([feats[0], feats[0]], 4)
    with pytest.raises(ValueError, match="no mlp_3"):
        netf([*feats, feats[0]], 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_projects_and_normalises_in_float32(dtype):
    """Half features give just what their values give in float32; autocast changes nothing."""
    netf, loss = PatchSampleF(use_mlp=True, nc=32), PatchNCELoss(options(batch_size=2))
    feats = [feat.detach().to(dtype).requires_grad_() for feat in make_feats(2)]
    expected, ids = netf([feat.float() for feat in feats], 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, _ = netf(feats, 8, ids)
        loss_under_autocast = loss(under_autocast[1], under_autocast[1])
    for x in (netf(feats, 8, ids)[0], under_autocast):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(x, expected, strict=True))
    assert loss_under_autocast.dtype == torch.float32
    assert torch.equal(loss_under_autocast, loss(expected[1], expected[1]))
    loss_under_autocast.sum().backward()
    assert feats[1].grad.dtype == dtype and feats[1].grad.isfinite().all()
    half_net = PatchSampleF(use_mlp=True, nc=32)
    half_net.load_state_dict(netf.state_dict())
    half_weights = half_net.to(dtype)(feats, 8, ids)[0]
    rounding = torch.finfo(dtype).eps  # of the weights only
    torch.testing.assert_close(half_weights[1], expected[1], rtol=0, atol=4 * rounding)


@pytest.mark.parametrize("batch", [1, 2])
def test_gradient_behind_instance_norm(batch):
    """The features' gradient has their layout: torch 2.14's instance norm goes wrong on a CPU for one image when a
    channels-last gradient meets contiguous features, as CUT's own indexing makes it.
    """
    x = torch.randn(batch, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(batch * 8, 4, dtype=torch.float64)
    patches, ids = PatchSampleF()([F.instance_norm(x)], 8)
    (got,) = torch.autograd.grad((patches[0] * weights).sum(), x)
    centred = x - x.mean((2, 3), keepdim=True)
    normed = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    picked = F.normalize(normed.flatten(2)[:, :, ids[0]].mT.flatten(0, 1))
    (expected,) = torch.autograd.grad((picked * weights).sum(), x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # F.normalize has no 1e-7 in its norm


def test_a_zero_vector_has_a_finite_gradient():
    feat = torch.zeros(1, 4, 3, 3, requires_grad=True)
    patches, _ = PatchSampleF()([feat], 9)
    PatchNCELoss(options())(patches[0], torch.randn(9, 4)).sum().backward()
    assert feat.grad.isfinite().all()


@pytest.mark.parametrize("before_first_forward", [True, False])
def test_checkpoints_travel_both_ways(before_first_forward):
    """Strict, into a network that has no mlps yet too; a prefix (a part of a larger module) is no hindrance."""
    feats = make_feats(2)
    old = CutSample().make(WIDTHS)
    new = nn.ModuleDict({"F": PatchSampleF(use_mlp=True, nc=32)})
    if not before_first_forward:
        new["F"](feats, 4)
    random_state = torch.get_rng_state()
    new.load_state_dict({f"F.{name}": value for name, value in old.state_dict().items()}, strict=True)
    assert torch.equal(torch.get_rng_state(), random_state)
    expected, ids = old(feats, 8)
    patches, _ = new["F"](feats, 8, ids)
    for mine, theirs in zip(patches, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    back = CutSample().make(WIDTHS)
    back.load_state_dict(new["F"].state_dict(), strict=True)


def test_checkpoints_that_do_not_fit():
    state = CutSample().make(WIDTHS).state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for mlp_0\.0\.weight"):
        PatchSampleF(use_mlp=True, nc=16).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key.*mlp_1\.2\.bias"):
        PatchSampleF(use_mlp=True, nc=32).load_state_dict({k: v for k, v in state.items() if k != "mlp_1.2.bias"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*mlp_0\.0\.weight"):
        PatchSampleF(use_mlp=False).load_state_dict(state)


def cut_generator_state(width):
    """A netG checkpoint of resnet_9blocks by CUT's names: layer numbers, instance norms without parameters."""

    def blur(row, gain, channels):
        row = torch.tensor(row)
        return (gain * torch.outer(row, row) / row.sum() ** 2).repeat(channels, 1, 1, 1)

    convolutions = {1: (3, width, 7), 4: (width, 2 * width, 3), 8: (2 * width, 4 * width, 3)}
    convolutions |= {f"{n}.conv_block.{i}": (4 * width, 4 * width, 3) for n in range(12, 21) for i in (1, 5)}
    convolutions |= {22: (4 * width, 2 * width, 3), 26: (2 * width, width, 3), 30: (width, 3, 7)}
    state = {}
    for name, (fan_in, fan_out, side) in convolutions.items():
        state[f"model.{name}.weight"] = torch.randn(fan_out, fan_in, side, side) * (fan_in * side**2) ** -0.5
        state[f"model.{name}.bias"] = torch.randn(fan_out)
    for number, channels in ((7, 2 * width), (11, 4 * width)):
        state[f"model.{number}.filt"] = blur([1.0, 2.0, 1.0], 1, channels)
    for number, channels in ((21, 4 * width), (25, 2 * width)):
        state[f"model.{number}.filt"] = blur([1.0, 3.0, 3.0, 1.0], 4, channels)
    return state


def cut_generate(state, x):
    """CUT's generator evaluated from its checkpoint."""

    def conv(x, name, pad=0, mode="constant"):
        pad = F.pad(x, [pad] * 4, mode=mode)
        return F.conv2d(pad, state[f"model.{name}.weight"], state[f"model.{name}.bias"])

    x = F.instance_norm(conv(x, 1, 3, "reflect")).relu()
    for number in (4, 8):
        x = F.instance_norm(conv(x, number, 1)).relu()
        x = F.conv2d(F.pad(x, [1] * 4, "reflect"), state[f"model.{number + 3}.filt"], stride=2, groups=x.shape[1])
    for number in range(12, 21):
        y = F.instance_norm(conv(x, f"{number}.conv_block.1", 1, "reflect")).relu()
        x = x + F.instance_norm(conv(y, f"{number}.conv_block.5", 1, "reflect"))
    for number in (21, 25):
        padded = F.pad(x, [1] * 4, "replicate")
        x = F.conv_transpose2d(padded, state[f"model.{number}.filt"], stride=2, padding=2, groups=x.shape[1])
        x = F.instance_norm(conv(x[:, :, 1:-1, 1:-1], number + 1, 1)).relu()
    return conv(x, 30, 3, "reflect").tanh()


def test_old_generator_checkpoints_load():
    torch.manual_seed(0)
    state = cut_generator_state(4)
    netg = ResnetGenerator(in_channels=3, out_channels=3, width=4, blocks=9, attention=False, mask_channel=False)
    netg.load_state_dict(state, strict=True)
    assert netg.state_dict().keys() == state.keys()  # and CUT loads ours
    x = torch.rand(2, 3, 32, 24) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(netg(x), cut_generate(state, x), rtol=1e-4, atol=1e-5)


def test_fifty_steps_stay_with_cut():
    """Two runs from the same seeds: image, netF and random ids; Adam may amplify rounding, to 1e-4 at most."""
    opt = options(batch_size=2)

    def train(netf, loss):
        seed_all(3)
        encoder = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, stride=2)]).requires_grad_(False)
        photo = torch.randn(2, 3, 14, 14)
        sketch = torch.randn(2, 3, 14, 14, requires_grad=True)

        def encode(x):
            feats = [x]
            for layer in encoder:
                feats.append(layer(feats[-1]).relu())
            return feats

        netf(encode(photo), 16)  # makes the mlps
        optimizer = torch.optim.Adam([sketch, *netf.parameters()], lr=2e-3, betas=(0.5, 0.999))
        history = []
        for _ in range(50):
            key, ids = netf(encode(photo), 16, None)
            query, _ = netf(encode(sketch), 16, ids)
            total = sum(loss(q, k).mean() for q, k in zip(query, key, strict=True)) / 3
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            history.append(total.item())
        return torch.tensor(history), sketch.detach()

    expected = train(CutSample(), lambda q, k: cut_loss(q, k, opt))
    got = train(PatchSampleF(use_mlp=True, nc=32), PatchNCELoss(opt))
    assert expected[0][-1] < 0.9 * expected[0][0]  # it does train
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-4, atol=1e-4)


def test_compiles_whole_with_given_ids():
    netf, loss = PatchSampleF(use_mlp=True, nc=32), PatchNCELoss(options(batch_size=4))
    _, ids = netf(make_feats(4), 8)

    def step(query, key):
        key, query = netf(key, 8, ids)[0], netf(query, 8, ids)[0]
        return sum(loss(q, k).mean() for q, k in zip(query, key, strict=True)), query[0]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for batch in (4, 3):  # the second compiles anew, with another number of images
        feats = make_feats(batch, 1), make_feats(batch, 2)
        total, patches = compiled(*feats)
        torch.testing.assert_close(total, step(*feats)[0], rtol=1e-6, atol=0)
        assert patches.num_images == batch  # the note leaves the graph


def test_compiled_draws_are_numpys():
    netf, feats = PatchSampleF(), make_feats(1)
    seed_all(5)
    _, expected = netf(feats, 8)
    seed_all(5)
    _, ids = torch.compile(netf, backend="eager")(feats, 8)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ids, expected, strict=True))
