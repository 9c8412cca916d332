"""Every Triton kernel with every tile it is shipped with compiles for chips that are not here: within shared memory,
without stack or spills, with tensor-core instructions where a dot is meant; and the table in docs/ says what came out.

The launches are recorded from the package's own functions and specialised by Triton's own launcher. Some 95 a chip, in
as many processes as there are cores.
"""

import csv
import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import triton

from benchmarks.compiled.resources import Launch, Usage, cubin, recorded, usage
from benchmarks.compiled.shipped import CHIPS, COLUMNS, INPUTS, measure, row, shipped
from fastsketch.triton import configs, launch, patch_nce_forward
from fastsketch.triton.placing import place_positions

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(configs.interpreting(), reason="TRITON_INTERPRET=1: nothing to compile"),
]

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "compile.csv"
ASYNCHRONOUS = {90: "wgmma.mma_async", 100: "tcgen05.mma"}
"""The tensor-core instructions of these chips for blocks of 64 rows or more; elsewhere mma.sync."""

STACK = dict.fromkeys((80, 100, 120), 16) if triton.__version__.startswith("3.6.") else {}
"""Bytes a thread allowed on these chips: Triton 3.6 uses 8 or 16 in a few tiles; later ones, and 3.6 on sm_90, none."""


@pytest.fixture(scope="module")
def compiled():
    """compiled(capability, inputs): every launch, and what its machine code uses."""
    with measure() as ask:
        yield ask


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def check(made: Launch, used: Usage, capability: int) -> None:
    where = f"{made.name} {made.constants} {made.tile} on sm_{capability}: {used}"
    assert used.stack <= STACK.get(capability, 0), where
    assert used.shared <= configs.SHARED_MEMORY[capability], where
    assert used.registers * made.tile.warps * 32 <= 65536, where  # what a multiprocessor has
    if made.dots in (None, "ieee"):
        assert used.dots == "none", where
    else:
        assert used.dots == ASYNCHRONOUS.get(capability, "mma.sync"), where


@pytest.mark.slow
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("capability", CHIPS)
def test_every_kernel_with_every_tile(compiled, table, capability, inputs):
    rows = []
    for made, used in compiled(capability, inputs):
        check(made, used, capability)
        rows.append(row(capability, inputs, made, used))
    stored = [r for r in table if (r["chip"], r["inputs"]) == (f"sm_{capability}", inputs)]
    if table[0]["triton"] == triton.__version__:  # another Triton makes other machine code
        assert rows == stored


def test_the_table_has_every_kernel_with_every_tile(table):
    """Cheap, and with any Triton: a tile changed without a new table is noticed."""
    named = [c for c in COLUMNS if c not in ("triton", "registers", "stack", "shared", "instructions", "dots")]
    none = Usage(0, 0, 0, 0, "")
    want = [row(c, i, made, none) for c in CHIPS for i in INPUTS for made in shipped(c, i)]
    assert [[r[c] for c in named] for r in table] == [[r[c] for c in named] for r in want]
    assert {r["stack"] for r in table} == {"0"}


def test_many_bfloat16_rows_on_hopper():
    """65,536 `batch` negatives of width 256: the large tile, in the form without regions and normalisation."""
    rows = torch.empty(1, 65536, 256, dtype=torch.bfloat16, device="meta")
    with recorded(90) as launches:
        patch_nce_forward(rows, rows, None, 0.07, "image", False)
    assert launches[0].tile.rows == 128
    check(launches[0], usage(launches[0], 90), 90)


def test_positions_of_one_image():
    """An integer argument of 1 is a constant to Triton, of another type than any other number."""
    index = torch.empty(1, 256, dtype=torch.int64, device="meta")
    with recorded(90) as launches:
        place_positions(index, (64, 64), [(64, 64)] * 2, [0, 0], torch.empty(2, 2, 1, 256, device="meta"))
    check(launches[0], usage(launches[0], 90), 90)


def test_machine_code_is_read_as_cuobjdump_reads_it(tmp_path, monkeypatch):
    """Registers, stack and instructions of a kernel that spills and one that does not, of each generation."""
    monkeypatch.setenv("FASTSKETCH_FP32", "ieee")  # tensor cores cannot do with 32 registers
    tool = triton.knobs.nvidia.cuobjdump.path
    for capability in CHIPS:
        with recorded(capability) as launches:
            rows = torch.empty(1, 64, 128, device="meta")
            patch_nce_forward(rows, rows, None, 0.07, "image", True)
        for name, most in (("free", None), ("tight", 32)):
            file = tmp_path / f"{name}{capability}.cubin"
            code, used = cubin(launches[0], capability, most)
            file.write_bytes(code)
            report = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
            assert f"REG:{used.registers} STACK:{used.stack} " in report
            assert " LOCAL:0 " in report
            assert (used.stack > 0) == (most is not None)
            listing = subprocess.run([tool, "-sass", file], capture_output=True, text=True, check=True).stdout
            # "/*0010*/  LDC R1, c[0x0][0x37c] ;" is one instruction.
            lines = [line.split() for line in listing.splitlines()]
            assert used.instructions == sum(len(x) > 2 and x[0][:2] == "/*" and x[0][-2:] == "*/" for x in lines)


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


def test_rows_that_cannot_be_read_16_bytes_at_a_time_are_copied_once():
    whole = torch.randn(2, 64, 256).bfloat16()
    for rows in (whole, whole[:1].expand(2, -1, -1), whole[:, ::2], whole[..., 16:]):
        assert launch.rows(rows) is rows
    for rows in (whole[..., ::2], whole[..., :250], whole.mT, whole[..., 8:], whole[..., :200], whole[..., 1:241]):
        copy = launch.rows(rows)
        assert configs.aligned(copy)
        assert copy.shape[-1] - rows.shape[-1] in range(16)
        assert torch.equal(copy[..., : rows.shape[-1]], rows)
        assert not copy[..., rows.shape[-1] :].any()
