"""Every launch of the Triton kernels compiles for chips that are not here, without spills and within shared memory.

The launches are recorded from the package's own functions, so tiles, types and specialisation are the shipped ones. By
default a selection; all of them, some 250 a chip and minutes, with FASTSKETCH_COMPILE=all.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from fastsketch.triton import configs, patch_nce_forward
from fastsketch.triton.resources import INPUTS, Launch, compile_launch, recorded, shipped, usage

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(configs.interpreting(), reason="TRITON_INTERPRET=1: nothing to compile"),
]

CHIPS = (80, 90, 100, 120)
ASYNCHRONOUS = {90: "wgmma.mma_async", 100: "tcgen05.mma"}
"""The tensor-core instructions of these chips for blocks of 64 rows or more; elsewhere mma.sync."""


def has_dot(launch: Launch) -> bool:
    return "PRECISION" in launch.constants


def check(launch: Launch, capability: int) -> None:
    used = usage(compile_launch(launch, capability))
    where = f"{launch.name} {launch.constants} {launch.tile} on sm_{capability}: {used}"
    assert used.stack == 0, where
    assert used.shared <= configs.SHARED_MEMORY[capability], where
    if not has_dot(launch) or launch.constants["PRECISION"] == "ieee":
        assert used.dots == "none", where
    else:
        assert used.dots == ASYNCHRONOUS.get(capability, "mma.sync"), where


def the_methods_own(capability: int, inputs: str, module: str) -> list[Launch]:
    """Width 256, 32 for attention, few samples."""
    width = 32 if module == "attention" else 256
    launches = [launch for _, launch in shipped(capability, inputs, [width]) if launch.name.startswith(module)]
    return [launch for launch in launches if not launch.constants.get("NORMS_APART")]


@pytest.mark.parametrize(
    ("capability", "inputs", "module"),
    [
        (90, "float32", "patch_nce"),
        (90, "float32", "attention"),
        (90, "float32", "gather"),
        (90, "bfloat16", "patch_nce"),
        (80, "float32", "patch_nce"),
        (100, "float32", "patch_nce"),
        (120, "float32", "patch_nce"),
    ],
)
def test_the_methods_own_launches(capability, inputs, module):
    launches = the_methods_own(capability, inputs, module)
    assert launches
    for launch in launches:
        check(launch, capability)


def test_many_bfloat16_rows_on_hopper():
    """65,536 `batch` negatives of width 256: the large tile."""
    rows = torch.empty(1, 65536, 256, dtype=torch.bfloat16, device="meta")
    with recorded(90) as launches:
        patch_nce_forward(rows, rows, None, 0.07, "image", False)
    (launch,) = launches
    assert launch.tile.rows == 128
    check(launch, 90)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("FASTSKETCH_COMPILE") != "all", reason="minutes a chip: FASTSKETCH_COMPILE=all")
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("capability", CHIPS)
def test_every_launch(capability, inputs):
    for _, launch in shipped(capability, inputs):
        check(launch, capability)


def test_unknown_precision_is_refused(monkeypatch):
    monkeypatch.setenv("FASTSKETCH_FP32", "fp8")
    with pytest.raises(ValueError, match="FASTSKETCH_FP32 must be one of tf32x3, tf32, ieee, got 'fp8'"):
        configs.fp32_precision()


@pytest.fixture
def torch_precision():
    """torch's precision of float32 products, put back afterwards."""
    before = torch.backends.cuda.matmul.fp32_precision
    yield torch.backends.cuda.matmul
    torch.backends.cuda.matmul.fp32_precision = before


def test_precision_follows_torch_and_the_environment(monkeypatch, torch_precision):
    monkeypatch.delenv("FASTSKETCH_FP32", raising=False)
    for torchs, ours in (("ieee", "tf32x3"), ("tf32", "tf32")):
        torch_precision.fp32_precision = torchs
        assert configs.fp32_precision() == ours
    monkeypatch.setenv("FASTSKETCH_FP32", "ieee")
    assert configs.fp32_precision() == "ieee"
