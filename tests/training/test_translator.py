"""The terms of a step and their gradients against formulas written out, with flip, masks, regions and weights."""

import pytest
import torch
from torch import Tensor, nn

from fastsketch.functional import patch_nce
from fastsketch.nn.convolution import as_winograd
from fastsketch.training import translator as module
from fastsketch.training.translator import Translator, mirror


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Unpaired: the sketches have masks of their own."""
    side = 32
    masks = {name: (torch.rand(2, 1, side, side) > 0.4).double() for name in ("mask", "sketch_mask")}
    pictures = {name: torch.rand(2, c, side, side).double() * 2 - 1 for name, c in (("photo", 3), ("sketch", 1))}
    return {**pictures, **masks}


def make(tiny, preset: str, **changes) -> Translator:
    """In float64, with attention that does something."""
    translator = Translator(tiny(preset, **changes)).double()
    for name, parameter in translator.generator.named_parameters():
        if name.endswith("gain"):
            torch.nn.init.constant_(parameter, 0.1)
    return translator


def turned(x: Tensor | None, flipped: bool) -> Tensor | None:
    return x.flip(-1) if flipped and x is not None else x


def read_by(translator: Translator, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """What the generator reads, not turned: the photos, and for the identity term the sketches."""
    source, masks = batch["photo"], batch["mask"]
    if translator.config.identity:
        source = torch.cat((source, batch["sketch"].expand(-1, 3, -1, -1)))
        masks = torch.cat((masks, batch["sketch_mask"]))
    return source, masks if translator.config.mask else None


def patches_of(translator: Translator, maps: list[Tensor], positions: list[Tensor]) -> list[Tensor]:
    """[B, S, D] of each layer, projected and divided by their length."""
    result = []
    for layer, (x, index) in enumerate(zip(maps, positions, strict=True)):
        rows = torch.stack([image.flatten(1)[:, at].T for image, at in zip(x, index, strict=True)])
        rows = getattr(translator.projection, f"mlp_{layer}")(rows)
        result.append(rows / (rows.norm(dim=-1, keepdim=True) + 1e-7))
    return result


def contrast(translator: Translator, batch: dict[str, Tensor], drawings: Tensor, flipped: bool) -> Tensor:
    """[B or 2B]. The drawings' features are turned back, and looked at where the source's are."""
    config, generator = translator.config, translator.generator
    source, masks = read_by(translator, batch)
    with torch.no_grad():
        features = generator.encode(source, masks)
        rng = torch.Generator().manual_seed(3)
        sample, positions = translator.draw_positions(features.structure_or_zeros, masks, features, rng)
        keys = patches_of(translator, features.layers, positions)
    maps = [turned(x, flipped) for x in generator.encode(drawings, turned(masks, flipped)).layers]
    own, each = torch.eye(config.num_patches, dtype=torch.bool), []
    for query, key in zip(patches_of(translator, maps, positions), keys, strict=True):
        logits = query @ key.mT / config.temperature
        if config.negatives == "same_region":
            alike = sample.region[:, :, None] == sample.region[:, None]
            logits = logits.masked_fill(~(alike | own), -torch.inf)
        losses = -logits.log_softmax(-1).diagonal(dim1=1, dim2=2)
        weight = torch.ones_like(losses) if sample.weight is None else sample.weight
        each.append((losses * weight).sum(1) / weight.sum(1))
    return torch.stack(each).mean(0)


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("fsscl", {"unpaired": True, "lambda_pixel": 0.0, "lambda_nce": 3.0, "multiplicity": True}),
        ("fsscl", {"negatives": "same_region", "lambda_pixel": 2.0, "lambda_gan": 0.5}),
        ("fastcut", {"mask": True, "identity": True, "lambda_gan": 0.5}),
        ("fsscl", {"mask": False, "identity": False, "lambda_gan": 0.0}),
        ("fastcut", {}),
    ],
    ids=str,
)
def test_terms_and_gradients_are_those_of_the_formulas(tiny, batch, preset, changes):
    translator = make(tiny, preset, **changes)
    config, generator, judge = translator.config, translator.generator, translator.discriminator
    for flipped in {False, config.flip_equivariance}:
        if not config.unpaired:
            batch["sketch_mask"] = batch["mask"]
        given = batch if config.unpaired else {n: x for n, x in batch.items() if n != "sketch_mask"}
        drawings, mask, features, said = translator.translate(given, torch.Generator(), flipped)
        rng = torch.Generator().manual_seed(3)
        got = translator.generator_losses(given, drawings, mask, features, said, rng)
        assert said == flipped

        drawn = generator(*(turned(x, flipped) for x in read_by(translator, batch)))
        each = contrast(translator, batch, drawn, flipped).split(2)
        want = {"gan": config.lambda_gan * (judge(drawn[:2]) - 1).square().mean()} if config.lambda_gan else {}
        for name, losses in zip(("nce", "nce_identity"), each, strict=False):
            want[name] = config.lambda_nce / len(each) * losses.mean()
        if config.lambda_pixel:
            want["pixel"] = config.lambda_pixel * (drawn[:2] - batch["sketch"]).abs().mean()
        assert list(got) == list(want)
        parameters = [*generator.parameters(), *translator.projection.parameters()]
        for name in want:
            torch.testing.assert_close(got[name].double(), want[name], rtol=1e-5, atol=0)
            grads = [
                torch.autograd.grad(x, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
                for x in (got[name], want[name])
            ]
            one, other = (torch.cat([g.flatten() for g in some]) for some in grads)
            assert (one - other).norm() <= 1e-6 * other.norm(), name


def test_the_discriminator_teaches_no_generator(tiny, batch):
    translator = make(tiny, "fastcut")
    drawings = batch["sketch"].clone().requires_grad_()
    loss = translator.discriminator_loss(drawings, batch["sketch"] / 2)
    fake, real = translator.discriminator(drawings), translator.discriminator(batch["sketch"] / 2)
    torch.testing.assert_close(loss, (fake.square().mean() + (real - 1).square().mean()).float() / 2, check_dtype=False)
    assert torch.autograd.grad(loss, drawings, allow_unused=True) == (None,)


def test_mirrored_positions():
    pictures = torch.rand(2, 5, 7)
    index = torch.stack([torch.randperm(35)[:20] for _ in range(2)])
    there = pictures.flip(-1).flatten(1).gather(1, mirror(index, 7))
    assert torch.equal(there, pictures.flatten(1).gather(1, index))


def test_batch_negatives_of_all_processes_are_weighed_as_those_of_one(tiny, monkeypatch):
    def of_one(query: Tensor, key: Tensor, temperature: float) -> Tensor:
        return patch_nce(query, key, temperature=temperature, normalize=True, reduction="none")

    monkeypatch.setattr(module, "patch_nce_over_ranks", of_one)
    translator, (query, key) = make(tiny, "fsscl", negatives="batch"), torch.randn(2, 3, 2, 9, 4)
    for weight in (None, torch.rand(2, 9) + 1):
        got = translator._contrast_over_ranks(query, key, weight)
        torch.testing.assert_close(got, translator.contrast(query, key, weight=weight))


def test_samplers_are_those_of_the_settings(tiny):
    names = ("num_patches", "regions", "dynamic", "num_regions", "multiplicity")
    names += ("density_window", "density_threshold", "density_boost")
    for values in ((9, False, True, 5, True, 3, 1.25, 3.0), (8, True, False, 6, False, 5, 1.75, 4.0)):
        sampler = module.structure_sampler(tiny(**dict(zip(names, values, strict=True))))
        assert tuple(getattr(sampler, name.removeprefix("density_")) for name in names) == values


def test_the_perceptual_network_is_switched_too(tiny):
    translator = Translator(tiny())
    translator._perceptual.append(as_winograd(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1))))
    for on in (True, False):
        translator.use_winograd(on)
        assert translator._perceptual[0][0].winograd is on


def test_random_perceptual_weights_are_those_of_every_run(tiny):
    """And take nothing from the run's random numbers."""
    networks, after = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        networks.append(module._vgg16_features(tiny()))
        after.append(torch.rand(1))
        torch.manual_seed(seed)
        assert torch.rand(1) == after[-1]
    one, other = (network.state_dict() for network in networks)
    assert len(one) == 26 and all(torch.equal(one[name], other[name]) for name in one)
    for layer in networks[0]:
        if isinstance(layer, nn.Conv2d):  # as torchvision's rule has them
            assert layer.weight.std().item() == pytest.approx((2 / (9 * layer.out_channels)) ** 0.5, rel=0.05)
            assert not layer.bias.any() and not layer.weight.requires_grad


@pytest.mark.parametrize(("preset", "gain"), [("fsscl", 1.0), ("cut", 0.02), ("fastcut", 0.02)])
def test_initial_weights_are_the_preset_s(tiny, preset, gain):
    """Of the generator; discriminator and projection begin with CUT's in all."""
    translator = Translator(tiny(preset, width=16))
    layer = translator.generator.model[16].conv_block[1]  # 3×3 from 64 channels to 64
    torch.testing.assert_close(layer.weight.std().item(), gain * (2 / (9 * 128)) ** 0.5, rtol=0.02, atol=0)
    judge = [m for m in translator.discriminator.model if isinstance(m, nn.Conv2d)][-1]
    assert judge.weight.std() < 0.02 and translator.projection.mlp_0[2].weight.std() < 0.02
