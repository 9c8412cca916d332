"""Generator, taps, projection, discriminator and losses against plain compositions of the same formulas."""

import pytest
import torch
import torch.nn.functional as F

from fastsketch import gather_patches
from fastsketch.nn import (
    EncoderFeatures,
    LeastSquaresGANLoss,
    MultiLayerPatchNCE,
    PatchDiscriminator,
    PatchProjection,
    PerceptualLoss,
    ResnetGenerator,
)
from fastsketch.nn.instance_norm import InstanceNorm
from fastsketch.weights import random_vgg16_features


@pytest.fixture
def generator() -> ResnetGenerator:
    torch.manual_seed(0)
    return ResnetGenerator(3, 1, 4, 5).double()


def inputs(batch: int = 2, side: int = 32):
    torch.manual_seed(1)
    image = torch.rand(batch, 3, side, side, dtype=torch.float64) * 2 - 1
    mask = (torch.rand(batch, 1, side, side) > 0.3).double()
    return image, mask


def test_shapes_of_taps_at_256():
    with torch.device("meta"):
        generator = ResnetGenerator(3, 3, 64, 9, mask_channel=False, attention=False)
        features = generator.encode(torch.empty(1, 3, 256, 256))
    assert [tuple(f.shape[1:]) for f in features.layers] == [
        (3, 262, 262),
        (128, 256, 256),
        (256, 128, 128),
        (256, 64, 64),
        (256, 64, 64),
    ]
    assert generator.tap_channels == [3, 128, 256, 256, 256]


def test_features_are_those_of_the_same_pass(generator):
    image, mask = inputs()
    out, features = generator(image, mask, return_features=True)
    torch.testing.assert_close(out, generator(image, mask))
    again = generator.encode(image, mask)
    for a, b in zip(features.layers, again.layers, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(features.structure, again.structure)
    assert out.shape == (2, 1, 32, 32) and out.abs().max() <= 1
    assert features.structure.shape == (2, 8, 8) and features.structure_or_zeros is features.structure
    plain = EncoderFeatures(features.layers, None)
    assert torch.equal(plain.structure_or_zeros, torch.zeros(2, 8, 8))


def test_tapped_patches_and_their_gradient(generator):
    image, mask = inputs()
    image.requires_grad_()
    features = generator.encode(image, mask)
    torch.manual_seed(2)
    positions = [torch.stack([torch.randperm(h * w)[:10] for _ in range(2)]) for h, w in features.sizes]
    gathered = [gather_patches(f, p) for f, p in zip(features.layers, positions, strict=True)]
    tapped = generator.encode_patches(image, mask, positions)
    weights = [torch.randn_like(g) for g in gathered]

    def gradients(patches):
        loss = sum((p * w).sum() for p, w in zip(patches, weights, strict=True))
        return torch.autograd.grad(loss, [image, generator.model[1].weight])

    for a, b in zip(tapped, gathered, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(gradients(tapped), gradients(gathered), strict=True):
        torch.testing.assert_close(a, b)


def test_grey_drawings_are_read_as_pictures(generator):
    image, mask = inputs()
    grey = image[:, :1]
    torch.testing.assert_close(generator(grey, mask), generator(grey.expand(-1, 3, -1, -1), mask))


def test_mask_reaches_the_drawing_but_not_layer_zero(generator):
    image, mask = inputs()
    out, features = generator(image, mask, return_features=True)
    assert features.layers[0].shape[1] == 3
    assert (out - generator(image, 1 - mask)).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda g, x, m: g(x[:, :2], m), "image"),
        (lambda g, x, m: g(x[:, :, :30], m), "image sides"),
        (lambda g, x, m: g.encode_patches(x, m, []), "positions"),
        (lambda g, x, m: ResnetGenerator(blocks=2), "tap_layers"),
        (lambda g, x, m: ResnetGenerator(width=1, blocks=4), "blocks must be at least 5 for tap_layers .* got 4"),
        (lambda g, x, m: ResnetGenerator(blocks=-1), "blocks must be at least 0, got -1"),
        (lambda g, x, m: ResnetGenerator(width=0), "width must be at least 1, got 0"),
        (lambda g, x, m: ResnetGenerator(in_channels=0), "in_channels must be at least 1, got 0"),
        (lambda g, x, m: ResnetGenerator(out_channels=0), "out_channels must be at least 1, got 0"),
        (lambda g, x, m: ResnetGenerator(tap_layers=(4, 0)), "tap_layers must ascend from 0 or more"),
        (lambda g, x, m: ResnetGenerator(tap_layers=(0, 4)), "attention"),
    ],
)
def test_bad_arguments_are_named(generator, call, name):
    with pytest.raises(ValueError, match=name):
        call(generator, *inputs())


def test_projection_is_float32_under_autocast():
    patches = [torch.randn(2, 5, c).bfloat16() for c in (3, 8)]
    projection = PatchProjection([3, 8], 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = projection(patches)
    assert out.shape == (2, 2, 5, 6) and out.dtype == torch.float32
    with pytest.raises(ValueError, match="patches"):
        projection(patches[:1])


@pytest.mark.parametrize("negatives", ["image", "same_region", "other_regions", "batch"])
def test_layers_in_one_call_equal_layers_apart(negatives):
    from fastsketch import patch_nce

    torch.manual_seed(0)
    q, k = torch.randn(3, 2, 9, 4, dtype=torch.float64), torch.randn(3, 2, 9, 4, dtype=torch.float64)
    region = torch.randint(0, 3, (2, 9))
    regional = region if "region" in negatives else None
    each = MultiLayerPatchNCE(0.1, negatives)(q, k, region=region)
    apart = torch.stack(
        [
            patch_nce(
                q[i], k[i], temperature=0.1, negatives=negatives, region=regional, normalize=True, reduction="none"
            )
            for i in range(3)
        ]
    )
    torch.testing.assert_close(each, apart.mean((0, 2)))
    weight = torch.rand(2, 9, dtype=torch.float64)
    weighed = MultiLayerPatchNCE(0.1, negatives)(q, k, region=region, weight=weight)
    torch.testing.assert_close(weighed, ((apart * weight).sum(2) / weight.sum(1)).mean(0))
    q, k = q.requires_grad_(), k.requires_grad_()
    to_query, to_key = torch.autograd.grad(
        MultiLayerPatchNCE(0.1, negatives)(q, k, region=region).sum(), (q, k), allow_unused=True
    )
    assert to_query.any() and to_key is None


@pytest.mark.parametrize("negatives", ["image", "batch"])
def test_the_weight_of_all_layers_is_one_number_a_query(negatives):
    query, loss = torch.randn(3, 2, 9, 4), MultiLayerPatchNCE(0.1, negatives)
    for weight in (torch.ones(9), torch.ones(1, 9), torch.ones(2, 1), torch.ones(3, 2, 9), torch.ones(2, 9, 1)):
        with pytest.raises(ValueError, match=r"weight must be a tensor of shape \[2, 9\], got \["):
            loss(query, query, weight=weight)
    with pytest.raises(ValueError, match=r"weight must be a tensor of shape \[2, 9\], got float"):
        loss(query, query, weight=1.0)
    with pytest.raises(ValueError, match="weight must be finite and non-negative"):
        loss(query, query, weight=-torch.ones(2, 9))
    weight = torch.rand(2, 9)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, query.cos(), weight=weight), loss(query, query.cos(), weight=weight))
    nothing = loss(query, query.cos(), weight=torch.zeros(2, 9))
    assert nothing.dtype == torch.float32 and (nothing == 0).all()


def test_discriminator_sees_70_pixels():
    torch.manual_seed(0)
    judge = PatchDiscriminator(1, 4).double()
    # Instance norm sees everything: the receptive field is that of the convolutions alone.
    judge.model = torch.nn.Sequential(*[m for m in judge.model if not isinstance(m, InstanceNorm)])
    image = torch.rand(1, 1, 128, 128, dtype=torch.float64, requires_grad=True)
    scores = judge(image)
    # Antialiased as CUT's: the blur widens pix2pix's 70 pixels.
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    rows = image.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 84
    assert scores.shape[-1] == 14


def test_discriminator_widens_eightfold_at_most():
    convolutions = [m for m in PatchDiscriminator(1, 2, layers=5).model if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [2, 4, 8, 16, 16, 16, 1]
    assert all(not m.bias.any() and 0 < m.weight.std() < 0.02 for m in convolutions)


def test_gain_scales_the_initial_weights():
    small, whole = (torch.manual_seed(0) and ResnetGenerator(3, 1, 4, 5, gain=gain) for gain in (0.02, 1.0))
    for layer, other in zip(small.modules(), whole.modules(), strict=True):
        if isinstance(layer, torch.nn.Conv2d):
            torch.testing.assert_close(50 * layer.weight, other.weight)
    layer = whole.model[-2]  # from 4 channels to 1, 7×7
    assert isinstance(layer, torch.nn.Conv2d)
    torch.testing.assert_close(layer.weight.std(), torch.tensor((2 / (49 * 5)) ** 0.5), rtol=0.2, atol=0)


@pytest.mark.parametrize("gain", [0.0, -1.0, float("inf"), float("nan")])
def test_a_gain_that_is_none_is_refused(gain):
    with pytest.raises(ValueError, match=f"gain must be finite and above 0, got {gain}"):
        ResnetGenerator(3, 1, 4, 5, gain=gain)


def test_gan_loss():
    loss = LeastSquaresGANLoss()
    score = torch.tensor([[0.5, 2.0]])
    assert loss(score, True).item() == pytest.approx((0.25 + 1.0) / 2)
    assert loss(score, False).item() == pytest.approx((0.25 + 4.0) / 2)


@pytest.mark.parametrize("distance", ["normalized", "l1"])
def test_perceptual_loss_against_its_formula(distance):
    torch.manual_seed(0)
    features = random_vgg16_features()
    loss = PerceptualLoss(features, distance)
    a, b = torch.rand(1, 1, 32, 32, requires_grad=True), torch.rand(1, 1, 32, 32)

    def taps(x):
        x = (x.repeat(1, 3, 1, 1) + 1) / 2
        x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        result = []
        for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21)):
            for number in stage:
                x = F.relu(F.conv2d(x, features[number].weight, features[number].bias, padding=1))
            result.append(x)
            x = F.max_pool2d(x, 2)
        return result

    def apart(x, y):
        if distance == "l1":
            return (x - y).abs().mean()
        x, y = (z / (z.square().sum(1, keepdim=True).sqrt() + 1e-3) for z in (x, y))
        return (x - y).square().sum() / x[:, 0].numel()

    want = sum(apart(x, y) for x, y in zip(taps(a), taps(b), strict=True)) / 4
    got = loss(a, b)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(value, a)[0] for value in (got, want)), rtol=1e-4, atol=1e-9)
    assert not any(p.requires_grad for p in loss.parameters())
    assert torch.autograd.grad(loss(a, b.requires_grad_()), b, allow_unused=True) == (None,)


def test_perceptual_loss_of_features_that_are_nothing():
    """Where a picture has no feature at all the gradient is finite, and a picture is no distance from itself."""
    features = random_vgg16_features()
    for layer in features:
        if hasattr(layer, "weight"):
            layer.weight.data.zero_()
            layer.bias.data.zero_()
    image = torch.rand(1, 1, 32, 32, requires_grad=True)
    loss = PerceptualLoss(features)(image, torch.rand(1, 1, 32, 32))
    assert loss == 0 and torch.autograd.grad(loss, image)[0].isfinite().all()
    assert PerceptualLoss(random_vgg16_features())(image, image) == 0


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="distance must be one of"):
        PerceptualLoss(torch.nn.Sequential(), "l2")


@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_changes_no_gradient(generator, batch):
    image, mask = inputs(batch)
    plain = torch.autograd.grad(generator(image, mask).square().sum(), list(generator.model.parameters()))
    generator = generator.to(memory_format=torch.channels_last)
    image, mask = (x.to(memory_format=torch.channels_last) for x in (image, mask))
    last = torch.autograd.grad(generator(image, mask).square().sum(), list(generator.model.parameters()))
    for a, b in zip(plain, last, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": torch.randn(3, 5, 8, 4)}, r"key must have shape \[5, 3, 8, 4\], got \[3, 5, 8, 4\]"),
        ({"key": torch.randn(120, 4)}, "key must have shape"),
        ({"query": torch.randn(5, 8, 4)}, r"query must be \[L, B, S, D\], got \[5, 8, 4\]"),
        ({"region": torch.zeros(3, 8, 1, dtype=torch.long)}, r"region must have shape \[3, 8\]"),
    ],
)
def test_layers_whose_shapes_do_not_belong_together_are_refused(arguments, message):
    given = {"query": torch.randn(5, 3, 8, 4), "key": torch.randn(5, 3, 8, 4), **arguments}
    with pytest.raises(ValueError, match=message):
        MultiLayerPatchNCE(negatives="same_region")(given.pop("query"), given.pop("key"), **given)


@pytest.mark.parametrize("negatives", ["image", "batch"])
@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (0, 3, 5, 4), (2, 0, 5, 4)])
def test_no_queries_and_no_layers_have_loss_0(shape, negatives):
    query = torch.zeros(shape, requires_grad=True)
    loss = MultiLayerPatchNCE(negatives=negatives)(query, torch.zeros(shape))
    assert torch.equal(loss, torch.zeros(shape[1]))
    assert torch.autograd.grad(loss.sum(), query)[0].shape == shape


@pytest.mark.parametrize(
    ("name", "value"), [("query", None), ("key", [1.0]), ("region", 3), ("region", torch.rand(3, 8))]
)
def test_layers_of_another_type_are_named(name, value):
    given = {"query": torch.randn(5, 3, 8, 4), "key": torch.randn(5, 3, 8, 4), name: value}
    with pytest.raises(TypeError, match=f"{name} must be"):
        MultiLayerPatchNCE(negatives="same_region")(given.pop("query"), given.pop("key"), **given)
