"""The drop-in against the formulas of the public CUT code, written here anew from its behaviour."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cut_formulas import WIDTHS, CutSample, cut_loss, make_feats, options, seed_all
from torch import nn

import fastsketch
from fastsketch.compat import dclgan, hneg_src, monce
from fastsketch.compat.cut import PatchNCELoss, PatchSampleF

# Of a layer's losses, or of a gradient, as vectors: rounding of sums over S = D = 32, magnified by 1/τ = 14 in the
# logits. Single losses close to 0 lose more digits, in CUT's formula as well.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


def relative_error(got, expected):
    return (got - expected).norm() / expected.norm()


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


def test_all_layers_are_projected_in_one_call(monkeypatch):
    """What makes the drop-in fast; a layer at a time gives the same numbers, so nothing else would tell."""
    calls = []

    def counted(patches, parameters):
        calls.append(len(patches))
        return fastsketch.project_and_normalize(patches, parameters)

    monkeypatch.setattr("fastsketch.compat.cut.project_and_normalize", counted)
    net = PatchSampleF(use_mlp=True, nc=32)
    feats = make_feats(2, 1, torch.float32)
    _, ids = net(feats, 4)
    assert calls == [len(WIDTHS)]
    net.l2norm.power = 1  # somebody's own: not what the call computes
    net(feats, 4, ids)
    assert calls == [len(WIDTHS)]


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


def test_an_empty_batch_is_named():
    patches, _ = PatchSampleF()(make_feats(0), 4)
    with pytest.raises(ValueError, match=r"feat_q and feat_k hold patches of no image: the batch .* was empty"):
        PatchNCELoss(options(batch_size=4))(patches[0], patches[0])


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda i: i.float(), r"patch_ids\[1\] must hold integers, got torch.float32"),
        (lambda i: i > 1, r"patch_ids\[1\] must hold integers, got torch.bool"),
        (lambda i: i.double().numpy(), r"patch_ids\[1\] must hold integers, got torch.float64"),
        (lambda i: (i > 1).numpy(), r"patch_ids\[1\] must hold integers, got torch.bool"),
        (lambda i: i.double().tolist(), r"patch_ids\[1\] must hold integers, got torch.float"),
        (lambda i: int(i[0]), "patch_ids must hold positions for each layer, got a number for layer 1"),
    ],
)
def test_ids_are_integers(make, got):
    netf, feats = PatchSampleF(), make_feats(2)
    _, ids = netf(feats, 4)
    ids[1] = make(ids[1])
    with pytest.raises(TypeError, match=got):
        netf(feats, 4, ids)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint16])
def test_ids_of_any_integers(dtype):
    netf, feats = PatchSampleF(), make_feats(2)
    wanted, ids = netf(feats, 4)
    patches, again = netf(feats, 4, np.stack([i.numpy() for i in ids]).astype(dtype))
    assert all(torch.equal(a, b) for a, b in zip([*patches, *again], [*wanted, *ids], strict=True))
    patches, again = netf(feats, 4, [[], [np.int64(1), 2], ids[2]])
    assert [len(i) for i in again] == [0, 2, 4]


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
    with pytest.raises(TypeError, match="feats must be a list of tensors, one a layer, got Tensor"):
        netf(feats[0], 4)
    with pytest.raises(ValueError, match="nc must be at least 1, got 0"):
        PatchSampleF(use_mlp=True, nc=0)
    with pytest.raises(TypeError, match="nc must be an int, got float"):
        PatchSampleF(use_mlp=True, nc=2.0)
    with pytest.raises(TypeError, match="feats must be a list of tensors, one a layer, got int"):
        netf(3, 4)
    with pytest.raises(TypeError, match=r"feats\[1\] must be a torch.Tensor, got NoneType"):
        netf([feats[0], None], 4)
    with pytest.raises(TypeError, match=r"feats\[0\] must be one of .* got torch.int64"):
        netf([feats[0].long()], 0)
    with pytest.raises(TypeError, match="num_patches must be an int, got float"):
        netf(feats, 4.0)
    with pytest.raises(TypeError, match="patch_ids must hold positions for each layer, got int"):
        netf(feats, 4, 7)


LOSSES = [PatchNCELoss, dclgan.PatchNCELoss, monce.MoNCELoss, hneg_src.SRC_Loss, hneg_src.PatchHDCELoss]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_names_what_is_of_another_type_and_takes_no_patches(loss):
    extra = {"eps": 1.0, "cost_type": "easy", "num_patches": 4, "neg_term_weight": 1.0, "HDCE_gamma": 1.0}
    loss = loss(options(batch_size=2, use_curriculum=False, **extra))
    q = torch.randn(8, 4)
    for wrong in (None, [1.0], q.long(), q.to_sparse()):
        with pytest.raises(TypeError, match="feat_q must be"):
            loss(wrong, q)
        with pytest.raises(TypeError, match="feat_k must be"):
            loss(q, wrong)
    with pytest.raises(TypeError, match=r"feat_k must have feat_q's dtype torch\.float64, got torch\.float32"):
        loss(q.double(), q)
    empty = torch.zeros(0, 4, requires_grad=True)
    made = loss(empty, empty)
    made = made[0] if isinstance(made, tuple) else made
    assert torch.autograd.grad(made.sum(), empty)[0].shape == (0, 4)


@pytest.mark.parametrize("wrong", [None, 2.0, "2"])
def test_a_batch_size_that_is_no_int_is_named(wrong):
    q = torch.randn(8, 4)
    with pytest.raises(TypeError, match=r"opt\.batch_size must be an int, got"):
        PatchNCELoss(options(batch_size=wrong))(q, q)


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


def test_transforms_of_torch_func_and_forward_mode():
    """They get the plain formulas: no tangent is lost, no derivative refused."""
    torch.manual_seed(0)
    network, index = PatchSampleF(), torch.tensor([0, 5, 6])
    features, tangent = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    criterion = PatchNCELoss(options(nce_T=0.5, batch_size=2))

    def loss(x):
        query, key = (network([y], 3, [index])[0][0] for y in (x, features.flip(0)))
        return criterion(query, key).mean() + network([fastsketch.tap_patches(x, index)[0]], 3, [index])[0][0].sum()

    wanted = torch.autograd.grad(loss(x := features.clone().requires_grad_()), x)[0]
    torch.testing.assert_close(torch.func.grad(loss)(features), wanted)
    slope = (wanted * tangent).sum()
    torch.testing.assert_close(torch.func.jvp(loss, (features,), (tangent,))[1], slope)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(features, tangent)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(loss(dual)).tangent, slope)
    hessian = torch.func.hessian(loss)(features)
    turned = torch.func.jvp(torch.func.grad(loss), (features,), (tangent,))[1]
    torch.testing.assert_close((hessian * tangent).sum((4, 5, 6, 7)), turned)


def test_a_gradient_penalty():
    """The loss may be differentiated twice."""
    torch.manual_seed(0)
    query, key = F.normalize(torch.randn(2, 8, 5, dtype=torch.float64), dim=2)
    query.requires_grad_()
    results = []
    for loss in (
        PatchNCELoss(options(nce_T=0.5, batch_size=2)),
        lambda q, k: cut_loss(q, k, options(nce_T=0.5, batch_size=2)),
    ):
        (first,) = torch.autograd.grad(loss(query, key).sum(), query, create_graph=True)
        results.append((first, *torch.autograd.grad(first.square().sum(), query)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_learned_temperature_gets_its_gradient():
    torch.manual_seed(0)
    query, key = F.normalize(torch.randn(2, 8, 5, dtype=torch.float64), dim=2)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    grads = [
        torch.autograd.grad(loss.sum(), temperature)[0]
        for loss in (
            PatchNCELoss(options(nce_T=temperature, batch_size=2))(query, key),
            cut_loss(query, key, options(nce_T=temperature, batch_size=2)),
        )
    ]
    torch.testing.assert_close(*grads)
    with pytest.raises(TypeError, match="temperature must be a number"):
        fastsketch.patch_nce(query[None], key[None], temperature=temperature)


def test_ids_of_numpy_are_copied():
    ids = np.arange(4)
    features = torch.randn(1, 2, 4, 4, requires_grad=True)
    patches, returned = PatchSampleF()([features], 4, [ids])
    ids += 4
    patches[0].sum().backward()
    assert features.grad.flatten(2)[0].abs().sum(0).nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert returned[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("half", [False, True])
def test_a_replica_of_data_parallel(half):
    """`torch.nn.parallel.replicate` leaves a replica's parameters as plain attributes."""
    features = [torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)]
    network = PatchSampleF(True, init_gain=0.5, nc=8)
    wanted, ids = network(features, 6)
    if half:
        wanted, ids = network.half()(features, 6, ids)
    modules = list(network.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for module, copy in copies.items():
        for name, child in module._modules.items():
            setattr(copy, name, copies[child])
        for name, parameter in module._parameters.items():
            setattr(copy, name, parameter * 1)
    got, _ = copies[network](features, 6, ids)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_import_brings_torch_and_no_torchvision():
    """It is one line of somebody's project, and is to cost no more than that."""
    look = "import sys, fastsketch.compat.cut; print('torchvision' in sys.modules, 'safetensors' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
