"""The drop-ins for code derived from CUT, against the formulas of that code written here anew."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cut_formulas import unit_rows

from fastsketch.compat import dclgan, monce, qs_attn


def make_feats(batch=2, dtype=torch.float32, layers=5):
    generator = torch.Generator().manual_seed(batch)
    widths, sizes = (3, 6, 8, 12, 12), (12, 12, 10, 8, 8)
    return [
        (0.7 * torch.randn(batch, width, side, side, generator=generator, dtype=dtype)).requires_grad_()
        for width, side in list(zip(widths, sizes, strict=True))[:layers]
    ]


# --- DCLGAN -----------------------------------------------------------------------------------------------------------


def test_dclgan_takes_cosines_over_the_whole_batch():
    q, k = (3 * torch.randn(24, 16, dtype=torch.float64) for _ in range(2))  # not normalised
    q.requires_grad_()
    loss = dclgan.PatchNCELoss(SimpleNamespace(nce_T=0.07, batch_size=4))(q, k)
    cosine = F.cosine_similarity(q[:, None], k[None], dim=-1)
    logits = torch.cat([cosine.diagonal()[:, None], cosine.masked_fill(torch.eye(24, dtype=torch.bool), -10)], 1)
    expected = F.cross_entropy(logits / 0.07, torch.zeros(24, dtype=torch.long), reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)  # norms + 1e-7 against max(norms, 1e-8)
    weights = torch.rand(24, dtype=torch.float64)
    got, wanted = (torch.autograd.grad((x * weights).sum(), q, retain_graph=True)[0] for x in (loss, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


def test_dclgan_learns_its_temperature():
    torch.manual_seed(0)
    q, k = torch.randn(2, 12, 8, dtype=torch.float64)
    results = []
    for learned in (True, False):
        x, temperature = q.clone().requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        if learned:
            loss = dclgan.PatchNCELoss(SimpleNamespace(nce_T=temperature))(x, k)
        else:
            unit = [t / (t.norm(dim=1, keepdim=True) + 1e-7) for t in (x, k)]
            loss = F.cross_entropy(unit[0] @ unit[1].T / temperature, torch.arange(12), reduction="none")
        results.append([loss, *torch.autograd.grad(loss.square().sum(), (x, temperature))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    fixed = dclgan.PatchNCELoss(SimpleNamespace(nce_T=0.3))
    torch.testing.assert_close(fixed(q, k), results[0][0])
    half = dclgan.PatchNCELoss(SimpleNamespace(nce_T=torch.tensor(0.3, requires_grad=True)))
    torch.testing.assert_close(half(q.bfloat16(), k.bfloat16()), fixed(q.bfloat16(), k.bfloat16()))


def test_dclgan_draws_by_randperm_and_two_networks_share_ids():
    first, second = (dclgan.PatchSampleF(True, nc=16) for _ in range(2))
    feats = make_feats(layers=3)
    first(feats, 4), second(feats, 4)
    torch.manual_seed(3)
    expected = [torch.randperm(feat.shape[2:].numel())[:8] for feat in feats]
    torch.manual_seed(3)
    _, ids = first(feats, 8, None)
    assert all(torch.equal(a, b) for a, b in zip(ids, expected, strict=True))
    queries, again = second(feats, 8, ids)
    assert all(torch.equal(a, b) for a, b in zip(again, ids, strict=True))
    assert [x.shape for x in queries] == [(16, 16)] * 3
    # SimDCL copies them into one tensor [layers, patches, nc] for its own heads.
    assert torch.stack([x[:8] for x in queries]).shape == (3, 8, 16)


# --- QS-Attn ----------------------------------------------------------------------------------------------------------


def attended(feat, samples, index=None):
    """Rows of the materialised softmax, those of lowest entropy (or the given ones), and all entropies."""
    flat = feat.flatten(2).mT
    attention = torch.einsum("bnc,bmc->bnm", flat, flat).softmax(-1)
    entropy = torch.special.entr(attention).sum(-1)
    index = entropy.argsort(1)[:, :samples] if index is None else index
    return attention.take_along_dim(index[..., None], 1), entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_qs_attn_selects_and_routes(dtype):
    feat = make_feats(2, dtype)[3]
    index, rows = qs_attn.select_queries(feat, 20)
    expected, entropy = attended(feat.double(), 20, index)
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-7)
    chosen = entropy.take_along_dim(index, 1)
    assert (chosen.diff(dim=1) > -1e-5).all()  # ascending
    rest = entropy.scatter(1, index, torch.inf).amin(1)
    assert (chosen.amax(1) <= rest + 1e-5).all()  # and none lower is left out
    weights = torch.randn_like(expected)
    (got,) = torch.autograd.grad((rows.double() * weights).sum(), feat)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), feat)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_qs_attn_names_what_is_wrong():
    feat = make_feats(2)[3]
    with pytest.raises(ValueError, match="num_patches must be 0 or more, got -1"):
        qs_attn.select_queries(feat, -1)
    with pytest.raises(ValueError, match=r"features must be \[B, C, \*spatial\], not empty, got shape \[2, 12\]"):
        qs_attn.select_queries(feat[:, :, 0, 0], 4)
    assert [x.shape for x in qs_attn.select_queries(feat, 0)] == [(2, 0), (2, 0, 64)]
    with pytest.raises(TypeError, match="feats must be a list of tensors"):
        qs_attn.PatchSampleF()(feat, 4)
    with pytest.raises(TypeError, match=r"features must be a torch.Tensor, got NoneType"):
        qs_attn.select_queries(None, 4)
    with pytest.raises(TypeError, match="num_patches must be an int, got float"):
        qs_attn.select_queries(feat, 4.0)
    with pytest.raises(ValueError, match=r"attn_mats\[3\] must be \[2, S, 64\], got \[2, 4, 63\]"):
        qs_attn.PatchSampleF()([feat] * 4, 4, attn_mats=[torch.zeros(2, 4, 63)] * 4)


def test_qs_attn_in_a_step():
    """As its model calls it: keys, then queries with the keys' ids and attention; five layers, two of them attended."""
    netf = qs_attn.PatchSampleF(True, nc=16)
    source, drawn = make_feats(2), make_feats(2)
    keys, ids, mats = netf(source, 10, None, None)
    queries, again, same = netf(drawn, 10, ids, mats)
    assert [x.shape for x in keys] == [(20, 16)] * 5 == [x.shape for x in queries]
    assert ids[3] == again[3] == [] and all(torch.equal(a, b) for a, b in zip(ids[:3], again[:3], strict=True))
    assert all(a is b for a, b in zip(mats[3:], same[3:], strict=True)) and mats[3].shape == (2, 10, 64)
    routed = (mats[4] @ drawn[4].flatten(2).mT).flatten(0, 1)
    expected = netf.mlp_4(routed)
    expected = expected / (expected.norm(dim=1, keepdim=True) + 1e-7)
    torch.testing.assert_close(queries[4], expected)
    loss = qs_attn.PatchNCELoss(SimpleNamespace(nce_T=0.07, batch_size=2))
    sum(loss(q, k).mean() for q, k in zip(queries, keys, strict=True)).backward()
    assert source[4].grad.abs().sum() > 0  # through the attention, as in QS-Attn
    assert netf(source, 0)[0][4].shape == (2, 16, 8, 8)
    with pytest.raises(ValueError, match="attn_mats has 3 layers, feats has 5"):
        netf(source, 10, ids, mats[:3])
    assert netf(make_feats(2), 1000)[2][3].shape == (2, 64, 64)  # more than there are: all


def test_qs_attn_takes_volumes():
    netf = qs_attn.PatchSampleF(True, nc=8)
    feats = [torch.randn(1, 4, 4, 4, 4) for _ in range(4)]
    patches, _, mats = netf(feats, 6)
    assert patches[3].shape == (6, 8) and mats[3].shape == (1, 6, 64)


# --- MoNCE ------------------------------------------------------------------------------------------------------------


def monce_loss(q, k, opt, images):
    """The plan by plain alternating scaling, whose whole history the gradient goes through."""
    q, k = q.reshape(images, -1, q.shape[-1]), k.detach().reshape(images, -1, k.shape[-1])
    products = torch.einsum("bid,bjd->bij", q, k)
    itself = torch.eye(q.shape[1], dtype=torch.bool)
    kernel = ((products if opt.cost_type == "hard" else 1 - products).masked_fill(itself, -10) / opt.eps).exp()
    plan = kernel
    for _ in range(50):
        plan = plan / plan.sum(2, keepdim=True)
        plan = plan / plan.sum(1, keepdim=True)
    weight = plan * (opt.num_patches - 1) * opt.neg_term_weight + 1e-8
    negative = (products + opt.nce_T * weight.log()).masked_fill(itself, -10)
    logits = torch.cat([products.diagonal(dim1=1, dim2=2)[..., None], negative], -1).flatten(0, 1) / opt.nce_T
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="none")


def test_monce_refuses_to_learn_epsilon():
    eps = torch.tensor(1.0, requires_grad=True)
    opt = SimpleNamespace(nce_T=0.07, batch_size=1, num_patches=8, eps=eps, cost_type="hard", neg_term_weight=1.0)
    with pytest.raises(TypeError, match=r"opt\.eps must be a number, got a tensor that wants a gradient"):
        monce.MoNCELoss(opt)(torch.randn(8, 4), torch.randn(8, 4))


@pytest.mark.parametrize("cost", ["easy", "hard"])
@pytest.mark.parametrize("eps", [1.0, 0.1])
def test_monce_is_the_loss_and_gradient_through_the_plan(cost, eps):
    opt = SimpleNamespace(nce_T=0.07, batch_size=2, num_patches=20, eps=eps, cost_type=cost, neg_term_weight=0.8)
    q, k = unit_rows(40, 16).requires_grad_(), unit_rows(40, 16, seed=1)
    got, expected = monce.MoNCELoss(opt)(q, k), monce_loss(q, k, opt, 2)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
    weights = torch.rand(40, dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((x * weights).sum(), q)[0] for x in (got, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_monce_with_the_plan_detached_and_in_float32():
    opt = SimpleNamespace(nce_T=0.07, batch_size=1, num_patches=24, eps=1.0, cost_type="hard", neg_term_weight=1.0)
    q, k = unit_rows(24, 16).requires_grad_(), unit_rows(24, 16, seed=1)
    through, detached = monce.MoNCELoss(opt), monce.MoNCELoss(opt, detach_plan=True)
    assert torch.equal(through(q, k), detached(q, k))
    (a,), (b,) = (torch.autograd.grad(loss(q, k).sum(), q) for loss in (through, detached))
    assert (a - b).abs().max() > 1e-3
    torch.testing.assert_close(detached(q.float(), k.float()).double(), detached(q, k), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(detached(q.float(), k.float()), detached(q.float(), k.float()))


def test_monce_small_epsilon_stays_finite():
    opt = SimpleNamespace(nce_T=0.07, batch_size=1, num_patches=24, eps=0.01, cost_type="hard", neg_term_weight=1.0)
    q, k = unit_rows(24, 16, dtype=torch.float32).requires_grad_(), unit_rows(24, 16, seed=1, dtype=torch.float32)
    loss = monce.MoNCELoss(opt)(q, k)
    loss.sum().backward()
    assert loss.isfinite().all() and q.grad.isfinite().all()


def test_monce_names_what_is_wrong():
    opt = SimpleNamespace(nce_T=0.07, batch_size=5, num_patches=24, eps=1.0, cost_type="soft", neg_term_weight=1.0)
    q = unit_rows(24, 16)
    with pytest.raises(ValueError, match=r"opt\.cost_type must be easy or hard, got 'soft'"):
        monce.MoNCELoss(opt)(q, q)
    opt.cost_type = "easy"
    with pytest.raises(ValueError, match=r"opt\.batch_size = 5 does not divide"):
        monce.MoNCELoss(opt)(q, q)


@pytest.mark.parametrize(
    ("option", "value", "error", "match"),
    [
        ("nce_T", 0, ValueError, "must be positive and finite, got 0"),
        ("nce_T", -0.07, ValueError, "must be positive and finite, got -0.07"),
        ("nce_T", float("nan"), ValueError, "must be positive and finite, got nan"),
        ("eps", 0.0, ValueError, "must be positive and finite, got 0.0"),
        ("num_patches", 0, ValueError, "must be at least 1 and finite, got 0"),
        ("neg_term_weight", -1.0, ValueError, "must be non-negative and finite, got -1.0"),
        ("neg_term_weight", float("inf"), ValueError, "must be non-negative and finite, got inf"),
        ("nce_T", "0.07", TypeError, "must be a number, got '0.07'"),
        ("eps", None, TypeError, "must be a number, got None"),
    ],
)
def test_monce_names_the_option(option, value, error, match):
    opt = SimpleNamespace(nce_T=0.07, batch_size=1, num_patches=24, eps=1.0, cost_type="easy", neg_term_weight=1.0)
    setattr(opt, option, value)
    q = unit_rows(24, 16)
    with pytest.raises(error, match=rf"opt\.{option} {match}"):
        monce.MoNCELoss(opt)(q, q)


def test_monce_takes_the_limits_and_a_learned_temperature():
    opt = SimpleNamespace(nce_T=0.07, batch_size=1, num_patches=1, eps=1.0, cost_type="easy", neg_term_weight=0.0)
    q = unit_rows(24, 16)
    assert monce.MoNCELoss(opt)(q, q).isfinite().all()
    opt.nce_T = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    monce.MoNCELoss(opt)(q, q).sum().backward()
    assert opt.nce_T.grad.isfinite()
