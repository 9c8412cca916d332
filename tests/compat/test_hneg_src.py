"""The drop-ins for Hneg_SRC, against the formulas of that code written here anew."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cut_formulas import unit_rows

from fastsketch.compat import cut, hneg_src


def options(**changes):
    plain = {"nce_T": 0.07, "batch_size": 1, "HDCE_gamma": 1.0, "use_curriculum": False}
    return SimpleNamespace(**{**plain, **changes})


def relation(q, k, gamma):
    """(loss, weights) of one image, rows of any length; its softmax runs down the columns."""
    q, k = (x / (x.norm(dim=1, keepdim=True) + 1e-7) for x in (q, k))
    weight = ((k @ k.T).fill_diagonal_(-10.0) / gamma).softmax(1)
    p, r = (q @ q.T).softmax(0), (k @ k.T).softmax(0)
    middle = (p + r) / 2
    loss = (p * (p / middle).log()).sum() / 2 + (r * (r / middle).log()).sum() / 2
    return loss, weight / weight.max(1, keepdim=True).values


def contrast(q, k, weight, images, decoupled):
    q, k = (x.reshape(images, -1, x.shape[-1]) for x in (q, k))
    products = q @ k.mT
    positive = products.diagonal(dim1=1, dim2=2).flatten()[:, None]
    negative = products if weight is None else products * weight
    itself = torch.eye(q.shape[1], dtype=torch.bool)
    negative = negative.masked_fill(itself, -10.0).flatten(0, 1)
    value = F.cross_entropy(
        torch.cat((positive, negative), 1) / 0.07, torch.zeros(len(negative), dtype=torch.long), reduction="none"
    )
    if not decoupled:
        return value
    spread = ((negative - positive) / 0.07).logsumexp(1)
    return (spread - spread.detach()).exp().mean() - 1 + value.detach()


@pytest.mark.parametrize("gamma", [1.0, 50.0, 0.3])
def test_src_is_its_formula(gamma):
    q, k = (3 * unit_rows(40, 16, seed=seed) for seed in (0, 1))
    q.requires_grad_()
    loss, weight = hneg_src.SRC_Loss(options(HDCE_gamma=gamma))(q, k)
    wanted, weights = relation(q, k, gamma)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(weight[0], weights)
    assert not weight.requires_grad
    torch.testing.assert_close(*(torch.autograd.grad(x, q)[0] for x in (loss, wanted)))
    nothing, same = hneg_src.SRC_Loss(options(HDCE_gamma=gamma))(q, k, only_weight=True)
    assert nothing == 0 and torch.equal(same, weight)


def test_src_of_several_images_is_the_sum_of_theirs():
    q, k = unit_rows(60, 8), unit_rows(60, 8, seed=1)
    loss, weight = hneg_src.SRC_Loss(options(batch_size=3))(q, k)
    each = [hneg_src.SRC_Loss(options())(a, b) for a, b in zip(q.chunk(3), k.chunk(3), strict=True)]
    torch.testing.assert_close(loss, sum(one for one, _ in each))
    torch.testing.assert_close(weight, torch.cat([one for _, one in each]))


@pytest.mark.parametrize(
    ("epoch", "step", "gamma"),
    [(0, False, 50.0), (100, False, 25.5), (200, False, 1.0), (150, True, 1.0), (50, True, 37.75)],
)
def test_the_curriculum(epoch, step, gamma):
    opt = options(HDCE_gamma=50.0, use_curriculum=True, HDCE_gamma_min=1.0, n_epochs=100, n_epochs_decay=100)
    opt.step_gamma, opt.step_gamma_epoch = step, 100
    q, k = unit_rows(20, 8), unit_rows(20, 8, seed=1)
    _, weight = hneg_src.SRC_Loss(opt)(q, k, epoch=epoch)
    torch.testing.assert_close(weight[0], relation(q, k, gamma)[1])


def test_the_curriculum_leaves_an_option_that_is_a_tensor_as_it_is():
    opt = options(
        HDCE_gamma=torch.tensor(10.0), use_curriculum=True, HDCE_gamma_min=1.0, n_epochs=10, n_epochs_decay=10
    )
    opt.step_gamma = False
    first, second = (hneg_src.SRC_Loss(opt)(unit_rows(8, 4), unit_rows(8, 4, seed=1), epoch=10)[0] for _ in range(2))
    assert opt.HDCE_gamma == 10 and torch.equal(first, second)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("with_weight", [False, True])
def test_contrast_is_its_formula(images, decoupled, with_weight):
    q, k = unit_rows(60, 16).requires_grad_(), unit_rows(60, 16, seed=1)
    opt = options(batch_size=images)
    weight = hneg_src.SRC_Loss(opt)(q, k, True)[1] if with_weight else None
    loss = (hneg_src.PatchHDCELoss if decoupled else hneg_src.PatchNCELoss)(opt)(q, k, weight)
    wanted = contrast(q, k, weight, images, decoupled)
    torch.testing.assert_close(loss, wanted)
    factor = torch.rand(60, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for of in (torch.mean, lambda x: (x * factor).sum()):  # uneven factors too: each loss has the mean of all gradients
        torch.testing.assert_close(*(torch.autograd.grad(of(x), q, retain_graph=True)[0] for x in (loss, wanted)))


def test_without_weights_it_is_cut():
    q, k = unit_rows(40, 16).requires_grad_(), unit_rows(40, 16, seed=1)
    losses = [module.PatchNCELoss(options(batch_size=2))(q, k) for module in (hneg_src, cut)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss.mean(), q)[0] for loss in losses))


def test_the_keys_get_no_gradient():
    q, k = unit_rows(20, 8).requires_grad_(), unit_rows(20, 8, seed=1).requires_grad_()
    src, weight = hneg_src.SRC_Loss(options())(q, k)
    (src + hneg_src.PatchHDCELoss(options())(q, k, weight).mean()).backward()
    assert k.grad is None and q.grad.isfinite().all()


def test_half_precision_and_autocast_are_computed_in_float32():
    q, k = unit_rows(20, 8, dtype=torch.bfloat16).requires_grad_(), unit_rows(20, 8, seed=1, dtype=torch.bfloat16)
    results = []
    for cast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            src, weight = hneg_src.SRC_Loss(options())(q, k)
            results.append((src, weight, hneg_src.PatchHDCELoss(options())(q, k, weight)))
    assert all(x.dtype == torch.float32 and torch.equal(x, y) for x, y in zip(*results, strict=True))
    wanted = relation(q.double(), k.double(), 1.0)[0].float()
    torch.testing.assert_close(results[0][0], wanted, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(results[0][0], q)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"nce_T": 0}, ValueError, r"opt\.nce_T must be positive and finite, got 0"),
        ({"HDCE_gamma": -1.0}, ValueError, r"opt\.HDCE_gamma must be positive and finite, got -1"),
        ({"batch_size": 7}, ValueError, r"opt\.batch_size = 7 does not divide"),
        ({"use_curriculum": True}, TypeError, "epoch must be a number, got None"),
    ],
)
def test_names_what_is_wrong(changes, error, match):
    q = unit_rows(20, 8)
    with pytest.raises(error, match=match):
        opt = options(**changes)
        hneg_src.PatchHDCELoss(opt)(q, q, hneg_src.SRC_Loss(opt)(q, q)[1])


def test_weights_of_another_shape_are_refused():
    q = unit_rows(20, 8)
    with pytest.raises(ValueError, match=r"weight must be \[1, 20, 20\], got \[2, 10, 10\]"):
        hneg_src.PatchHDCELoss(options())(q, q, torch.ones(2, 10, 10))


def test_in_a_step():
    """As its model calls them: positions drawn once, the relation first, its weights for the contrast."""
    netf = hneg_src.PatchSampleF(True, nc=16)
    generator = torch.Generator().manual_seed(0)
    source, drawn = ([torch.randn(1, c, 12, 12, generator=generator) for c in (3, 6)] for _ in "sd")
    drawn = [x.requires_grad_() for x in drawn]
    keys, ids = netf(source, 32, None)
    queries, _ = netf(drawn, 32, ids)
    total = 0.0
    for q, k in zip(queries, keys, strict=True):
        src, weight = hneg_src.SRC_Loss(options())(q, k, False, 3)
        total = total + 0.05 * src + hneg_src.PatchHDCELoss(options())(q, k, weight).mean()
    total.backward()
    assert all(x.grad.abs().sum() > 0 and x.grad.isfinite().all() for x in drawn)
