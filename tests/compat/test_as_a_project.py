"""The drop-in inside a project laid out as CUT's: its option fields, its order of calls, its habits."""

import copy
from argparse import Namespace

import numpy as np
import pytest
import torch
from cut_formulas import CutSample, cut_loss, seed_all
from torch import nn

from fastsketch.compat.cut import PatchNCELoss, PatchSampleF

NCE_LAYERS = (0, 2, 4)


def make_opt(**changes) -> Namespace:
    """The fields that CUT's option parser makes, as far as networks and losses read them."""
    opt = Namespace(
        batch_size=2,
        gpu_ids=[],
        init_gain=0.02,
        init_type="xavier",
        input_nc=3,
        isTrain=True,
        lambda_GAN=1.0,
        lambda_NCE=1.0,
        lr=2e-4,
        beta1=0.5,
        beta2=0.999,
        ndf=8,
        netF="mlp_sample",
        netF_nc=32,
        nce_T=0.07,
        nce_idt=True,
        nce_includes_all_negatives_from_minibatch=False,
        nce_layers="0,2,4",
        ngf=8,
        num_patches=16,
        output_nc=3,
    )
    vars(opt).update(changes)
    return opt


class Generator(nn.Module):
    """A small network with CUT's way of asking for features: (image, layers, encode_only)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        encoder = [nn.ReflectionPad2d(1), nn.Conv2d(3, width, 3), nn.ReLU()]
        encoder += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU()]
        decoder = [nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*encoder, *decoder, nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())

    def forward(self, x, layers=(), encode_only=False):
        features = []
        for number, layer in enumerate(self.model):
            x = layer(x)
            if number in layers:
                features.append(x)
            if encode_only and number == layers[-1]:
                return features
        return x


class Model:
    """A model as CUT's: lazy netF with an optimizer of its own, a list of losses, D and G in turns."""

    def __init__(self, opt, sample, losses):
        self.opt, self.netF, self.criterionNCE = opt, sample, losses
        self.netG = Generator(opt.ngf)
        self.netD = nn.Sequential(
            nn.Conv2d(3, opt.ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(opt.ndf, 1, 4, padding=1)
        )
        self.optimizer_G, self.optimizer_D = self.adam(self.netG), self.adam(self.netD)
        self.optimizer_F = None

    def adam(self, network):
        return torch.optim.Adam(network.parameters(), lr=self.opt.lr, betas=(self.opt.beta1, self.opt.beta2))

    def contrast(self, source, target):
        feat_q = self.netG(target, NCE_LAYERS, encode_only=True)
        feat_k = self.netG(source, NCE_LAYERS, encode_only=True)
        pool_k, ids = self.netF(feat_k, self.opt.num_patches, None)
        pool_q, _ = self.netF(feat_q, self.opt.num_patches, ids)
        total = 0.0
        for f_q, f_k, criterion, _ in zip(pool_q, pool_k, self.criterionNCE, NCE_LAYERS, strict=True):
            total += (criterion(f_q, f_k) * self.opt.lambda_NCE).mean()
        return total / len(NCE_LAYERS)

    def forward(self, photo, sketch):
        fake = self.netG(torch.cat((photo, sketch)))
        return fake.chunk(2)

    def loss_d(self, fake, sketch):
        return (self.netD(fake.detach()).square().mean() + (self.netD(sketch) - 1).square().mean()) / 2

    def loss_g(self, photo, sketch, fake, identity):
        adversarial = (self.netD(fake) - 1).square().mean() * self.opt.lambda_GAN
        return adversarial + (self.contrast(photo, fake) + self.contrast(sketch, identity)) / 2

    def data_dependent_initialize(self, photo, sketch):
        """The first forward makes netF's mlps; only then can they have an optimizer."""
        fake, identity = self.forward(photo, sketch)
        self.loss_g(photo, sketch, fake, identity).backward()
        self.optimizer_F = self.adam(self.netF)

    def optimize_parameters(self, photo, sketch):
        fake, identity = self.forward(photo, sketch)
        self.netD.requires_grad_(True)
        self.optimizer_D.zero_grad()
        judged = self.loss_d(fake, sketch)
        judged.backward()
        self.optimizer_D.step()
        self.netD.requires_grad_(False)
        self.optimizer_G.zero_grad()
        self.optimizer_F.zero_grad()
        total = self.loss_g(photo, sketch, fake, identity)
        total.backward()
        self.optimizer_G.step()
        self.optimizer_F.step()
        return judged.item(), total.item()


def drop_in(opt):
    sample = PatchSampleF(True, opt.init_type, opt.init_gain, opt.netF_nc, opt.gpu_ids)
    return Model(opt, sample, [PatchNCELoss(opt) for _ in NCE_LAYERS])


def as_cut(opt):
    sample = CutSample(opt.netF_nc, lambda weight: nn.init.xavier_normal_(weight, opt.init_gain))
    return Model(opt, sample, [lambda q, k: cut_loss(q, k, opt) for _ in NCE_LAYERS])


def pictures(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(2, batch, 3, 16, 16, generator=generator) * 2 - 1).unbind()


@pytest.fixture
def default_dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("minibatch", [False, True])
@pytest.mark.parametrize("default_dtype", [torch.float64, torch.float32], indirect=True)
def test_two_hundred_steps_stay_with_cut(minibatch, default_dtype):
    """From the same seed: initial weights, lazily made mlps, random ids, and then every loss of every step.

    In float32 for fifty steps: sooner or later a rounding turns a value around 0 of a LeakyReLU, and the curves part by
    1e-4 at once, whoever computes the loss; at CUT's gain of 0.02, where a step of Adam changes the weights by a tenth,
    to 1e-2 within a hundred steps. Hence weights of ordinary size.
    """
    steps, rtol = (200, 1e-12) if default_dtype == torch.float64 else (50, 2e-6)
    opt = make_opt(nce_includes_all_negatives_from_minibatch=minibatch, init_gain=1.0)
    curves = []
    for build in (as_cut, drop_in):
        seed_all(11)
        model = build(opt)
        model.data_dependent_initialize(*pictures(2))
        data = [pictures(2, seed) for seed in range(5)]
        curves.append(torch.tensor([model.optimize_parameters(*data[step % 5]) for step in range(steps)]))
    expected, got = curves
    assert expected[-10:, 1].mean() < 0.9 * expected[:10, 1].mean()  # it does train
    torch.testing.assert_close(got, expected, rtol=rtol, atol=0)


def test_last_smaller_batch_and_one_picture():
    """A data loader that does not drop the last batch: CUT's negatives went wrong there, these do not."""
    opt = make_opt(batch_size=4)
    seed_all(0)
    model = drop_in(opt)
    model.data_dependent_initialize(*pictures(4))
    for count in (4, 3, 1):
        seed_all(5)
        got = model.contrast(*pictures(count))
        seed_all(5)
        alone = copy.copy(model)
        alone.criterionNCE = [lambda q, k, n=count: cut_loss(q, k, make_opt(batch_size=n)) for _ in NCE_LAYERS]
        torch.testing.assert_close(got, alone.contrast(*pictures(count)), rtol=1e-5, atol=0)


def test_split_over_devices_as_data_parallel_does():
    """Each replica gets a part of the batch and given ids; the parts are gathered, and opt.batch_size counts then."""
    opt = make_opt(batch_size=4)
    seed_all(0)
    model = drop_in(opt)
    model.data_dependent_initialize(*pictures(4))
    photo, sketch = pictures(4)
    feats = [model.netG(x, NCE_LAYERS, encode_only=True) for x in (photo, sketch)]
    key, ids = model.netF(feats[0], 16, None)
    query, _ = model.netF(feats[1], 16, ids)
    replicas = [copy.deepcopy(model.netF) for _ in range(2)]
    halves = [
        [replica([feat[i : i + 2] for feat in part], 16, ids)[0] for i, replica in zip((0, 2), replicas, strict=True)]
        for part in feats
    ]
    for layer in range(len(NCE_LAYERS)):
        gathered = [torch.cat([half[layer] for half in part]) for part in halves]
        expected = model.criterionNCE[layer](query[layer], key[layer])
        torch.testing.assert_close(model.criterionNCE[layer](gathered[1], gathered[0]), expected, rtol=1e-5, atol=1e-6)
        # A loss inside a replica reads the part's number of images from the tensors.
        inside = [model.criterionNCE[layer](q[layer], k[layer]) for k, q in zip(*halves, strict=True)]
        torch.testing.assert_close(torch.cat(inside), expected, rtol=1e-5, atol=1e-6)


def test_a_step_under_autocast_and_a_half_generator():
    opt = make_opt()
    seed_all(0)
    model = drop_in(opt)
    model.data_dependent_initialize(*pictures(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seed_all(1)
        judged, total = model.optimize_parameters(*pictures(2))
    assert np.isfinite([judged, total]).all()
    assert {p.dtype for p in model.netF.parameters()} == {torch.float32}
    seed_all(2)
    exact = model.contrast(*pictures(2)).item()
    model.netG.to(torch.bfloat16)
    half = [x.to(torch.bfloat16) for x in pictures(2)]
    seed_all(2)
    loss = model.contrast(*half)
    assert loss.dtype == torch.float32 and abs(loss.item() / exact - 1) < 0.2
    loss.backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in model.netG.model[:5].parameters())


def test_saved_and_loaded_as_cut_saves(tmp_path):
    """net.cpu().state_dict() to a file, and into a model whose netF has not been built, or was."""
    opt = make_opt()
    seed_all(0)
    old = as_cut(opt)
    old.data_dependent_initialize(*pictures(2))
    torch.save(old.netF.cpu().state_dict(), tmp_path / "latest_net_F.pth")
    for built in (False, True):
        seed_all(1)
        new = drop_in(opt)
        if built:
            new.data_dependent_initialize(*pictures(2))
        state = torch.load(tmp_path / "latest_net_F.pth", map_location="cpu", weights_only=True)
        new.netF.load_state_dict(state)
        new.netG = old.netG
        losses = []
        for model in (old, new):
            seed_all(2)
            losses.append(model.contrast(*pictures(2)))
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)


def test_options_given_to_the_sampler_and_no_sampling():
    """Forks hand their options to PatchSampleF; netF="sample" has no mlp; num_patches=0 gives maps."""
    opt = make_opt()
    plain = PatchSampleF(use_mlp=False, init_type="xavier", init_gain=0.02, gpu_ids=[], nc=opt.netF_nc, opt=opt)
    feats = Generator()(pictures(2)[0], NCE_LAYERS, encode_only=True)
    patches, ids = plain(feats, 16)
    assert list(plain.parameters()) == [] and [x.shape[1] for x in patches] == [3, 8, 16]
    again, _ = plain([torch.flip(f, [3]) for f in feats], 16, ids)  # FastCUT's flipped queries, same ids
    assert [x.shape for x in again] == [x.shape for x in patches]
    maps, none = plain(feats, 0)
    assert [x.shape for x in maps] == [f.shape for f in feats] and none == [[], [], []]


def test_a_fork_keeps_its_own_normalisation():
    """One that adds 1e-7 to the patch, and not to its norm: at first patches are hardly larger."""

    class Normalize(nn.Module):
        def forward(self, x):
            return x / (x + 1e-7).norm(dim=1, keepdim=True)

    netf = PatchSampleF(use_mlp=True, init_type="xavier", init_gain=1e-4, nc=8)
    netf.l2norm = Normalize()
    feats = Generator()(pictures(2)[0], NCE_LAYERS, encode_only=True)
    patches, ids = netf(feats, 16)
    projected = netf.mlp_2(feats[2].flatten(2).mT[:, ids[2]].flatten(0, 1))
    assert projected.norm(dim=1).max() < 1e-6
    torch.testing.assert_close(patches[2], Normalize()(projected), rtol=1e-4, atol=1e-6)


def test_a_weighted_loss_made_of_it():
    """Virtual staining's adaptive loss subclasses the loss and weighs each query by its similarity to its key."""

    class Adaptive(PatchNCELoss):
        def forward(self, feat_q, feat_k, progress):
            similarity = (feat_q * feat_k).sum(1).detach()
            weight = (1 - progress) + progress * similarity.relu()
            return super().forward(feat_q, feat_k) * (weight / weight.sum() * len(weight))

    opt = make_opt()
    q, k = (nn.functional.normalize(torch.randn(32, 8)) for _ in range(2))
    weight = 0.5 + 0.5 * (q * k).sum(1).relu()
    expected = cut_loss(q, k, opt) * weight / weight.mean()
    torch.testing.assert_close(Adaptive(opt)(q, k, 0.5), expected, rtol=1e-5, atol=1e-6)
