"""C++ kernels against float64: no worse than the plain PyTorch formulas in the inputs' own precision."""

import math
import os
import subprocess
import sys

import pytest
import torch

from fastsketch import reference
from fastsketch.reference.projection import project_patches

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TAU = 0.07


def error(value, truth):
    """Largest error, relative to the largest value of the truth."""
    if truth.numel() == 0:
        return 0.0
    return float((value.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-12))


def assert_no_worse(values, plain, truths, slack):
    for number, (value, naive, truth) in enumerate(zip(values, plain, truths, strict=True)):
        assert value.shape == truth.shape
        assert error(value, truth) <= error(naive, truth) + slack, f"output {number}"


def slack_of(dtype):
    """Rounding left over: of the output for half precision, of a different order of summation else."""
    return 1e-12 if dtype == torch.float64 else 1e-6


def patches(batch, samples, width, dtype, normalize, negatives, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(batch, samples, width, generator=generator, dtype=torch.float64) for _ in "qk")
    if not normalize:
        query, key = (x / x.norm(dim=-1, keepdim=True) for x in (query, key))
    region = None if negatives == "image" else torch.randint(0, 4, (batch, samples), generator=generator)
    return query.to(dtype), key.to(dtype), region


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("negatives", ["image", "same_region", "other_regions"])
@pytest.mark.parametrize("shape", [(2, 256, 64), (3, 37, 19), (1, 600, 33), (2, 1, 5), (1, 300, 2)], ids=str)
def test_patch_nce(cpp, shape, negatives, normalize, dtype):
    query, key, region = patches(*shape, dtype, normalize, negatives)
    options = (TAU, negatives, normalize)
    truth = reference.patch_nce_forward(query.double(), key.double(), region, *options)
    plain = reference.patch_nce_forward(query, key, region, *options)
    ours = cpp.patch_nce_forward(query, key, region, *options)
    assert_no_worse(ours, plain, truth, slack_of(dtype))

    weight = torch.rand(shape[:2], dtype=torch.float64)
    both = (True, True)
    true_grads = reference.patch_nce_backward(weight, query.double(), key.double(), region, *truth[1:], *options, *both)
    weight = weight.to(ours[0].dtype)
    plain_grads = reference.patch_nce_backward(weight, query, key, region, *plain[1:], *options, *both)
    grads = cpp.patch_nce_backward(weight, query, key, region, *ours[1:], *options, *both)
    assert_no_worse(grads, plain_grads, true_grads, slack_of(dtype))


def test_a_loss_of_next_to_nothing_keeps_its_digits(cpp):
    query = torch.eye(4)[None]
    loss = cpp.patch_nce_forward(query, query, None, TAU, "image", False)[0]
    torch.testing.assert_close(loss, torch.full((1, 4), math.log1p(3 * math.exp(-1 / TAU))), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("negatives", ["image", "same_region", "other_regions"])
@pytest.mark.parametrize("samples", [256, 37, 600])
def test_unit_gradient(cpp, samples, negatives, dtype):
    """The gradient made in the forward pass: no worse than the recomputed one."""
    query, key, region = patches(2, samples, 48, dtype, True, negatives)
    truth = reference.patch_nce_forward(query.double(), key.double(), region, TAU, negatives, True)
    plain = reference.patch_nce_forward(query, key, region, TAU, negatives, True)
    ones = torch.ones(2, samples, dtype=torch.float64)
    wanted, _ = reference.patch_nce_backward(
        ones, query.double(), key.double(), region, *truth[1:], TAU, negatives, True, True, False
    )
    naive, _ = reference.patch_nce_backward(
        ones.to(plain[0].dtype), query, key, region, *plain[1:], TAU, negatives, True, True, False
    )
    code = ("image", "same_region", "other_regions").index(negatives)
    region = None if region is None else region.int()
    outputs = torch.ops.fastsketch_C.patch_nce_forward(query, key, region, TAU, code, True, True)
    assert_no_worse(outputs[4:], [naive], [wanted], slack_of(dtype))
    assert_no_worse(outputs[:4], plain, truth, slack_of(dtype))


def test_lone_query_is_exactly_zero(cpp):
    """A query with no negative: loss 0 and gradient 0, not a rounding error of them."""
    query, key = torch.randn(2, 6, 40), torch.randn(2, 6, 40)
    region = torch.arange(6).repeat(2, 1)
    outputs = cpp.patch_nce_forward(query, key, region, 0.01, "same_region", True)
    grads = cpp.patch_nce_backward(
        torch.ones(2, 6), query, key, region, *outputs[1:], 0.01, "same_region", True, True, True
    )
    for value in (outputs[0], *grads):
        assert torch.equal(value, torch.zeros_like(value))


def test_large_logits_stay_finite(cpp):
    query, key = 100 * torch.randn(2, 50, 32), 100 * torch.randn(2, 50, 32)
    outputs = cpp.patch_nce_forward(query, key, None, 0.01, "image", False)
    grads = cpp.patch_nce_backward(torch.ones(2, 50), query, key, None, *outputs[1:], 0.01, "image", False, True, True)
    assert all(x.isfinite().all() for x in (*outputs, *grads))


def test_nan_travels_to_the_loss(cpp):
    """A NaN is not hidden by a maximum or an underflow."""
    query, key = torch.randn(1, 2, 8), torch.randn(1, 2, 8)
    key[0, 1, 0] = torch.nan
    assert cpp.patch_nce_forward(query, key, None, TAU, "image", False)[0].isnan().all()
    received, entropy, _ = cpp.attention_statistics_forward(query, key, 1.0)
    assert received.isnan().all() and entropy.isnan().all()


def test_region_ids_beyond_32_bits(cpp):
    query, key, _ = patches(1, 30, 8, torch.float32, True, "image")
    region = torch.arange(30)[None] % 3
    far = region * 2**33
    wanted = cpp.patch_nce_forward(query, key, region, TAU, "same_region", True)
    torch.testing.assert_close(cpp.patch_nce_forward(query, key, far, TAU, "same_region", True), wanted, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 100, 77, 8), (1, 600, 600, 32), (1, 5, 3000, 5), (3, 1, 1, 1)], ids=str)
def test_attention_statistics(cpp, shape, dtype):
    batch, rows, columns, width = shape
    torch.manual_seed(0)
    query, key = torch.randn(batch, rows, width).to(dtype), torch.randn(batch, columns, width).to(dtype)
    scale = width**-0.5
    truth = reference.attention_statistics_forward(query.double(), key.double(), scale)
    plain = reference.attention_statistics_forward(query, key, scale)
    ours = cpp.attention_statistics_forward(query, key, scale)
    assert_no_worse(ours, plain, truth, slack_of(dtype))
    grads = torch.randn(batch, columns, dtype=torch.float64), torch.randn(batch, rows, dtype=torch.float64)
    true_grads = reference.attention_statistics_backward(*grads, query.double(), key.double(), *truth[1:], scale)
    grads = [g.to(ours[0].dtype) for g in grads]
    plain_grads = reference.attention_statistics_backward(*grads, query, key, *plain[1:], scale)
    our_grads = cpp.attention_statistics_backward(*grads, query, key, *ours[1:], scale)
    if rows > 1:  # a matrix of one entry has gradient 0: only rounding to compare
        assert_no_worse(our_grads, plain_grads, true_grads, slack_of(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
@pytest.mark.parametrize("spatial", [(40,), (9, 11), (4, 5, 6)], ids=str)
def test_gather(cpp, spatial, layout, dtype):
    torch.manual_seed(0)
    features = torch.randn(2, 37, *spatial).to(dtype)
    if layout == "channels_last":
        features = features.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "sliced":
        features = torch.randn(3, 40, *(2 * s for s in spatial)).to(dtype)[1:, 2:39, ..., 1::2]
        features = features[(slice(None), slice(None), *(slice(0, s) for s in spatial))]
    elif layout == "expanded":
        features = features[:1].expand(2, *features.shape[1:])
    index = torch.randint(0, features.shape[2:].numel(), (2, 300))  # more than positions: repeats
    assert torch.equal(cpp.gather_patches_forward(features, index), reference.gather_patches_forward(features, index))
    grad = torch.randn(2, 300, 37).to(dtype)
    # Order of summation differs among repeats: one rounding of a sum of about ten numbers near 1.
    tolerance = {"atol": 1e-5, "rtol": 2**-7 if dtype.itemsize == 2 else 1e-6}
    for ours, plain in (
        (cpp.tap_patches_backward, reference.tap_patches_backward),
        (
            lambda f, g, i: cpp.gather_patches_backward(g, i, f.shape[2:], False),
            lambda f, g, i: reference.gather_patches_backward(g, i, f.shape[2:], False),
        ),
    ):
        one, other = ours(features, grad, index), plain(features, grad, index)
        assert one.stride() == other.stride() and one.dtype == other.dtype
        torch.testing.assert_close(one, other, **tolerance)


def test_gather_backward_layout(cpp):
    grad, index = torch.randn(2, 6, 5), torch.randint(0, 12, (2, 6))
    for channels_last in (False, True):
        ours = cpp.gather_patches_backward(grad, index, (3, 4), channels_last)
        wanted = reference.gather_patches_backward(grad, index, (3, 4), channels_last)
        assert ours.stride() == wanted.stride()
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("threads", [1, 2])
def test_bitwise_repeatable(cpp, threads):
    query, key, _ = patches(3, 200, 64, torch.float32, True, "image")
    features, index = torch.randn(2, 30, 40, 40), torch.randint(0, 1600, (2, 200))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:

        def run():
            nce = cpp.patch_nce_forward(query, key, None, TAU, "image", True)
            grads = cpp.patch_nce_backward(
                torch.ones(3, 200), query, key, None, *nce[1:], TAU, "image", True, True, True
            )
            attention = cpp.attention_statistics_forward(query, key, 0.1)
            attention_grads = cpp.attention_statistics_backward(
                attention[0], attention[1], query, key, *attention[1:], 0.1
            )
            tap = cpp.tap_patches_backward(features, torch.ones(2, 200, 30), index)
            return (*nce, *grads, *attention, *attention_grads, tap)

        first = run()
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_project_patches(cpp, dtype):
    """Sizes that are no multiple of any vector, more rows than a block."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 101, 5), (3, 101, 70), *[(45, 5), (45,), (33, 45), (33,)], *[(45, 70), (45,), (33, 45), (33,)]]
    exact = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    weight = torch.randn(2, 3, 101, 33, generator=generator, dtype=torch.float64)
    results = []
    for to, kernel in ((dtype, True), (dtype, False), (torch.float64, False)):
        inputs = [x.to(to).requires_grad_(not kernel) for x in exact]
        if kernel:
            out, hidden = cpp.project_patches_forward(inputs[:2], inputs[2:], True)
            assert torch.equal(out, cpp.project_patches_forward(inputs[:2], inputs[2:], False)[0])
            grads = cpp.project_patches_backward(weight.to(to), inputs[:2], hidden, inputs[2:], True, True)
        else:
            out = project_patches(inputs[:2], inputs[2:])
            grads = torch.autograd.grad(out, inputs, weight.to(to))
        results.append((out.detach(), *grads))
    assert_no_worse(*results, slack_of(dtype))


def refused(says: str):
    return pytest.raises(RuntimeError, match=says)


def test_wrong_calls_are_refused(cpp):
    """The C++ side checks on its own: a wrong shape must not become a wrong address."""
    ops = torch.ops.fastsketch_C
    query = torch.randn(2, 4, 3)
    with refused(r"key must have shape \[2, 4, 3\], got \[2, 3, 3\]"):
        ops.patch_nce_forward(query, query[:, :3], None, TAU, 0, False, False)
    with refused("region must be given with regional negatives only"):
        ops.patch_nce_forward(query, query, None, TAU, 1, False, False)
    with refused(r"index must lie in \[0, 5\), got 5"):
        ops.gather_layers([torch.randn(2, 3, 5)], [torch.full((2, 4), 5)])
    with refused("features and index must be as many"):
        ops.gather_layers([torch.randn(2, 3, 5)], [])
    with refused("uniform must have shape"):
        ops.place_positions(torch.zeros(2, 4, dtype=torch.int64), [4, 4], [8, 8], [0], torch.rand(1, 2, 2, 5))
    for cost, epsilon, says in (
        (query[0], 1.0, "3 dimensions and not be empty"),
        (query[:, :, :0], 1.0, "3 dimensions and not be empty"),
        (query.half(), 1.0, "float32 or float64, got Half"),
        (query, 0.0, "epsilon and iterations must be positive"),
    ):
        with refused(says):
            ops.transport_plan(cost, epsilon, 50)
    for grad, says in ((query[:, :3], "grad must have shape"), (query.double(), "grad must be Float, got Double")):
        with refused(says):
            ops.transport_plan_gradient(grad, query, torch.ones(2, 5, 4), torch.ones(2, 6, 3), 1.0)
    for rows, columns, says in ((5, 5, "columns must have shape"), (0, 1, "rows must have 3 dimensions")):
        with refused(says):
            ops.transport_plan_gradient(query, query, torch.ones(2, rows, 4), torch.ones(2, columns, 3), 1.0)
    parameters = [torch.randn(6, 3), torch.randn(6), torch.randn(5, 6), torch.randn(5)]
    for wrong, says in (
        ([], "four tensors a layer, got 0"),
        (parameters[:3], "four tensors a layer, got 3"),
        ([parameters[0].T, *parameters[1:]], "first weight must have shape"),
        ([x.double() for x in parameters], "parameters must be Float"),
    ):
        with refused(says):
            ops.project_patches_forward([query], wrong, False)
    with refused("hidden must have shape"):
        ops.project_patches_backward(torch.randn(1, 2, 4, 5), [query], torch.randn(1, 7, 6), parameters, True, True)
    in_a_thread = "a kernel failed in a worker thread"
    with refused(in_a_thread):
        ops.sample_patches(torch.rand(1, 8), torch.full((1, 8), 5000), torch.rand(1, 8), 2, 1.5, 2.0)
    for wrong in (-0.5, 1.5, math.inf, math.nan):
        spoiled = torch.rand(1, 8)
        spoiled[0, 5] = wrong
        with refused(in_a_thread):
            ops.sample_patches(torch.rand(1, 8), None, spoiled, 2, 1.5, 2.0)
        if wrong != 1.5:
            with refused(in_a_thread):
                ops.sample_patches(spoiled, None, torch.rand(1, 8), 2, 1.5, 2.0)


@pytest.mark.skipif("FASTSKETCH_CPU_LEVEL" in os.environ, reason="a level is forced already")
def test_every_instruction_set_of_this_processor(cpp):
    """The kernels of the lower levels too, in processes of their own: a process chooses once."""
    from fastsketch import _facts

    for level in _facts.levels_detected():
        if level == _facts.level_used():
            continue
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            __file__,
            "-k",
            "(37 and image) or (77 and float32) or channels_last or project",
        ]
        environment = {**os.environ, "FASTSKETCH_CPU_LEVEL": level}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{level}:\n{done.stdout}\n{done.stderr}"
