"""The CUDA C++ part on a machine without a GPU.

Its steps (csrc/cuda/*.h) run on the CPU, fiber for thread, and must choose what the reference chooses; nvcc must build
them for two chips without a warning, a stack or a spill; the library must load without a device, and a broken one must
leave everything else working.
"""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastsketch
from fastsketch import reference

pytestmark = pytest.mark.compile

ROOT = Path(__file__).parents[2]
CUDA = ROOT / "csrc" / "cuda"
PACKAGE = Path(fastsketch.__file__).parent
NUMBERS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)
TYPES = {dtype: code for code, dtype in enumerate(NUMBERS + INTEGERS)}
"""As `Type` of csrc/cuda/sampling.h."""
CAPACITY = 4096
"""As in csrc/cuda/sampling.h: more candidates are selected, more samples are sorted by the framework."""


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """steps(density, region, uniform, samples, ...) → (index, most candidates of an image), by the kernels' source."""
    compiler = shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("host") / "sampling_host.so"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", target, CUDA / "host" / "sampling_host.cpp"], check=True)
    function = ctypes.CDLL(str(target)).sample_patches
    function.restype = ctypes.c_uint32

    def address(tensor: Tensor | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())

    def run(density, region, uniform, samples, threshold=1.5, boost=2.0, seed=1) -> tuple[Tensor, int]:
        index = torch.full((density.shape[0], samples), -1)
        quota = torch.zeros(density.shape[0], 1024, dtype=torch.int64)
        most = function(
            address(density),
            TYPES[density.dtype],
            address(region),
            TYPES[torch.int64 if region is None else region.dtype],
            address(uniform),
            TYPES[uniform.dtype],
            *density.shape,
            samples,
            ctypes.c_double(threshold),
            ctypes.c_double(boost),
            seed,
            address(index),
            address(quota),
        )
        assert quota.sum(1).tolist() == [samples] * density.shape[0]
        return index, most

    return run


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def regions(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(high))


def peaks(*shape: int) -> Tensor:
    """Nearly all weight in one position: few keys lie under the first bound."""
    density = torch.zeros(shape)
    density[:, :9] = 1
    density[:, 7] = 1e9
    return density


CASES = {
    "a map in four regions": (rand(2, 4096).pow(3), regions(4, 2, 4096), rand(2, 4096, seed=1), 256),
    "without regions": (rand(2, 1000).pow(3), None, rand(2, 1000, seed=1), 100),
    "one of one": (rand(3, 1), regions(9, 3, 1), rand(3, 1, seed=1), 1),
    "all, 1024 regions": (rand(1, 4096).pow(3), regions(1024, 1, 4096), rand(1, 4096, seed=1), CAPACITY),
    "selection, 3 regions": (rand(1, 6000).pow(3), regions(3, 1, 6000).byte(), rand(1, 6000, seed=1), 3500),
    "selection, one region": (rand(1, 5000).pow(3), None, rand(1, 5000, seed=1), CAPACITY),
    "selection, 1000 regions": (rand(1, 4500), regions(1000, 1, 4500).short(), rand(1, 4500, seed=1), 3900),
    "selection among equal keys": (torch.ones(1, 5000), regions(3, 1, 5000), torch.full((1, 5000), 0.5), 2500),
    "selection, few values": (torch.ones(1, 5000), regions(70, 1, 5000), (rand(1, 5000) * 3).floor() / 3, 2500),
    "more than is sorted at once": (rand(2, 5000).pow(3), regions(30, 2, 5000).int(), rand(2, 5000, seed=1), 4500),
    "no density": (torch.zeros(1, 5000), regions(3, 1, 5000), rand(1, 5000, seed=1), 100),
    "regions without": (rand(1, 4000) * (regions(3, 1, 4000) == 1), regions(3, 1, 4000), rand(1, 4000, seed=1), 64),
    "a second pass": (peaks(1, 5000), regions(3, 1, 5000), rand(1, 5000, seed=1), 100),
    "bfloat16 and float16": (rand(2, 900).bfloat16(), regions(5, 2, 900), rand(2, 900, seed=1).half(), 50),
    "float16": (rand(2, 900).half() * 1e-5, regions(5, 2, 900), rand(2, 900, seed=1).bfloat16(), 50),
    "float64": (rand(2, 900).double(), regions(5, 2, 900), rand(2, 900, seed=1).double(), 50),
    "uniforms of zero": (rand(1, 3000), regions(5, 1, 3000), torch.zeros(1, 3000), 50),
    "uniforms of one": (rand(1, 3000), regions(5, 1, 3000), torch.ones(1, 3000), 50),
}
SELECTING = [name for name in CASES if name.startswith("selection")]


@pytest.mark.parametrize("case", CASES)
def test_steps_choose_what_the_reference_chooses(steps, case):
    density, region, uniform, samples = CASES[case]
    got, most = steps(density, region, uniform, samples)
    assert torch.equal(got, reference.sample_patches(density, region, uniform, samples, 1.5, 2.0))
    assert (most > CAPACITY) == (case in SELECTING)  # each path is seen to run


@pytest.mark.parametrize(("threshold", "boost"), [(0.0, 1e-12), (1.0, 1e12), (2.5, 0.5), (1e300, 2.0), (0.5, 1e300)])
def test_any_threshold_and_boost(steps, threshold, boost):
    """The masses are integers of 126 bits in units of the largest possible weight."""
    density, region, uniform = rand(2, 1500).pow(4), regions(6, 2, 1500), rand(2, 1500, seed=2)
    got, _ = steps(density, region, uniform, 200, threshold, boost)
    assert torch.equal(got, reference.sample_patches(density, region, uniform, 200, threshold, boost))


def test_small_images_with_ties_of_every_kind(steps):
    """Quotas by the smallest remainder, caps, lifts, equal keys, zero weights; all images of a case in one call."""
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    for positions in (1, 2, 5, 9, 24, 40):
        density = draw(4, 6, positions).float() * (draw(3, 6, positions) > 0)
        region = draw(min(11, positions + 1), 6, positions) ** 2
        uniform = draw(5, 6, positions) / 4
        samples = 1 + int(draw(positions, 1))
        got, _ = steps(density, region, uniform, samples, seed=positions)
        assert torch.equal(got, reference.sample_patches(density, region, uniform, samples, 1.5, 2.0))


def test_steps_do_not_depend_on_the_order_of_threads(steps):
    density, region, uniform, samples = CASES["a map in four regions"]
    first, _ = steps(density, region, uniform, samples)
    for seed in range(2, 6):
        assert torch.equal(steps(density, region, uniform, samples, seed=seed)[0], first)


def test_values_nobody_checked_stay_in_bounds(steps):
    """On a GPU values are checked on request only: what comes out then is unspecified, but is S positions."""
    density, uniform = rand(1, 500), rand(1, 500, seed=1)
    density[0, 3], density[0, 4], density[0, 5] = float("nan"), float("inf"), -1e30
    uniform[0, 6], uniform[0, 7], uniform[0, 8] = float("nan"), -1, 2
    region = regions(3, 1, 500)
    region[0, :2] = torch.tensor([-5, 2**40])
    index, _ = steps(density, region, uniform, 60)
    assert index.min() >= 0
    assert index.max() < 500
    assert index.unique().numel() == 60


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = shutil.which("nvcc")
    if not found:
        pytest.skip("no nvcc")
    if not torch.version.cuda:
        pytest.skip("this torch was built without CUDA")
    return found


@pytest.mark.slow
def test_nvcc_builds_without_warning_stack_or_spill(nvcc, tmp_path):
    """For sm_80 and sm_90; the flags are setup.py's."""
    flags = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    flags += ["-std=c++17", "-O3", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-fmad=false"]
    flags += ["-Werror=all-warnings", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-psabi,-Werror"]
    include = Path(torch.__file__).parent / "include"
    command = [nvcc, *flags, "-isystem", include, "-Xptxas=-v", "-c", CUDA / "sampling_cuda.cu", "-o", tmp_path / "o.o"]
    result = subprocess.run(command, capture_output=True, text=True)
    report = result.stdout + result.stderr
    assert result.returncode == 0, report
    kernels = re.findall(
        r"entry function '\S*?(\d+)(\w+?_kernel)\S*' for '(sm_\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    assert len(kernels) == 16, report  # eight kernels, two chips
    for _, name, chip, stack, stores, loads, registers in kernels:
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), (name, chip)
        threads = 1024 if name.endswith(("set_quotas_kernel", "select_kernel")) else 256
        assert int(registers) * threads <= 65536, (name, chip)  # what a multiprocessor has


SCRIPT = """
import json, sys, torch, fastsketch
from pathlib import Path
from fastsketch import _backend

library = Path(fastsketch.__file__).parent / "_C_cuda.so"
for content in map(Path, sys.argv[1:]):
    library.unlink(missing_ok=True)
    if content.exists():
        library.write_bytes(content.read_bytes())
    _backend.forget()
    sys.modules.pop("fastsketch.cuda", None)
    with fastsketch.use_backend("cpp"):
        shape = list(fastsketch.sample_patches(torch.rand(2, 8, 8), 5).shape)
    used, why = _backend.explain("cuda")["sample_patches"]
    there = torch._C._dispatch_has_kernel_for_dispatch_key("fastsketch_C::sample_patches", "CUDA")
    print(json.dumps([str(library), shape, used, why.get("cuda", ""), there]))
"""


def test_a_broken_library_leaves_the_rest_working_and_a_whole_one_loads_without_a_gpu(tmp_path):
    """In one process: no library, four broken ones, and the one that was built, each in the place of the last."""
    if not (PACKAGE / "_C.so").exists():
        pytest.skip("_C.so was not built")
    package = tmp_path / "fastsketch"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "_C_cuda.so"))
    (package / "_cuda_report.txt").write_text("not built at installation: there is no nvcc in PATH\n")
    built = PACKAGE / "_C_cuda.so"
    whole = (built if built.exists() else PACKAGE / "_C.so").read_bytes()
    broken = {
        "missing": (None, "there is no nvcc in PATH"),
        "empty": (b"", "file too short"),
        "text": (b"not a library\n" * 1000, "invalid ELF header"),
        "header": (whole[:40], "cut short"),
        "short": (whole[:-1], "cut short"),
    }
    for name, (content, _) in broken.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    files = [str(tmp_path / name) for name in broken] + [str(built)] * built.exists()
    command = [sys.executable, "-c", SCRIPT, *files]
    untried = os.environ | {"FASTSKETCH_GPU_CHECK": "0"}  # on a machine with a GPU too
    result = subprocess.run(command, cwd=tmp_path, env=untried, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rounds = [json.loads(line) for line in result.stdout.splitlines()]
    for (library, shape, used, why, there), (name, (_, reason)) in zip(rounds, broken.items(), strict=False):
        assert library == str(package / "_C_cuda.so")
        assert shape == [2, 5]
        assert used != "cuda"
        assert reason in why, name
        assert not there
    if not built.exists():
        pytest.skip("_C_cuda.so was not built: only broken ones were tried")
    _, shape, used, why, there = rounds[-1]
    assert (shape, there) == ([2, 5], True)
    assert (used, why) == ("cuda", "")
