"""Which implementation runs: preference, choice by name, and errors that say why not."""

import sys
import threading
from types import ModuleType

import pytest
import torch

import fastsketch
from fastsketch import _backend, reference
from fastsketch.errors import FastsketchError

X = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def implementation(monkeypatch):
    """implementation(name, kernels, device_types): a new, preferred one that calls the reference and notes what ran."""
    ran = []

    def add(name: str, kernels: tuple[str, ...], device_types: tuple[str, ...] = ("cpu",)) -> list[str]:
        module = ModuleType(f"fastsketch_test_{name}")
        for kernel in kernels:

            def function(*args, kernel=kernel):
                ran.append(kernel)
                return getattr(reference, kernel)(*args)

            setattr(module, kernel, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(_backend.IMPLEMENTATIONS, name, module.__name__)
        for device_type in device_types:
            monkeypatch.setitem(_backend.PREFERENCE, device_type, (name, *_backend.PREFERENCE[device_type]))
        return ran

    _backend.forget()
    yield add
    _backend.forget()


@pytest.fixture
def broken(monkeypatch):
    """An implementation, preferred on the CPU, that cannot be imported."""
    monkeypatch.setitem(_backend.IMPLEMENTATIONS, "broken", "fastsketch._nothing_of_that_name")
    monkeypatch.setitem(_backend.PREFERENCE, "cpu", ("broken", *_backend.PREFERENCE["cpu"]))
    _backend.forget()
    yield "broken"
    _backend.forget()


def run_all() -> None:
    """Every kernel once, forward and backward."""
    x = X.clone().requires_grad_()
    index = fastsketch.sample_patches(X.abs()[..., 0], 3)
    same, patches = fastsketch.tap_patches(x.mT * 1, index)
    same.retain_grad()  # someone holds the gradient that arrives at the tap: it may not be written into
    gathered = fastsketch.gather_patches(x.mT, index)
    fastsketch.gather_layers([x.mT], fastsketch.place_positions(index, (1, 6), [(1, 6)]))
    loss = fastsketch.patch_nce(patches, gathered) + same.square().sum()
    (loss + fastsketch.attention_statistics(x, x)[1].sum()).backward()


def test_the_reference_has_every_kernel():
    assert not [name for name in _backend.KERNELS if not hasattr(reference, name)]
    assert sorted(reference.__all__) == sorted(_backend.KERNELS)
    for device_type in ("cpu", "cuda", "mps", "xpu"):
        with fastsketch.use_backend("reference"):
            assert {_backend.select(name, device_type) for name in _backend.KERNELS} == {"reference"}


def test_every_implementation_loads_or_says_why():
    for name in _backend.IMPLEMENTATIONS:
        module, reason = _backend._load(name)
        assert (module is None) == bool(reason)


def test_a_preferred_implementation_runs_every_kernel(implementation):
    ran = implementation("eager", _backend.KERNELS)
    run_all()
    assert set(ran) == set(_backend.KERNELS)


def test_what_it_lacks_falls_to_the_next(implementation):
    ran = implementation("half", ("patch_nce_forward", "sample_patches"))
    run_all()
    assert set(ran) == {"patch_nce_forward", "sample_patches"}
    explained = _backend.explain("cpu")
    assert explained["patch_nce_forward"] == ("half", {})
    used, passed_over = explained["patch_nce_backward"]
    assert used != "half"
    assert passed_over["half"] == "has no patch_nce_backward"


def test_chosen_by_name_nothing_falls_back(implementation):
    ran = implementation("half", ("patch_nce_forward",))
    with fastsketch.use_backend("half"):
        fastsketch.patch_nce(X, X)
        assert ran == ["patch_nce_forward"]
        with pytest.raises(RuntimeError, match=r"backend 'half' was asked for.*sample_patches: has no sample_patches"):
            fastsketch.sample_patches(X.abs()[..., 0], 2)
    with fastsketch.use_backend("reference"):
        fastsketch.patch_nce(X, X)
    assert ran == ["patch_nce_forward"]


def test_an_implementation_for_another_device_is_refused(implementation):
    implementation("elsewhere", _backend.KERNELS, device_types=("cuda",))
    assert _backend.select("patch_nce_forward", "cuda") == "elsewhere"
    assert _backend.select("patch_nce_forward", "cpu") != "elsewhere"
    with (
        fastsketch.use_backend("elsewhere"),
        pytest.raises(RuntimeError, match=r"'elsewhere' was asked for.*does not run on cpu"),
    ):
        fastsketch.patch_nce(X, X)


def test_one_that_does_not_load_is_passed_over_and_explained(broken):
    run_all()
    used, passed_over = _backend.explain("cpu")["gather_patches_forward"]
    assert used != broken
    assert "_nothing_of_that_name" in passed_over[broken]
    with (
        fastsketch.use_backend(broken),
        pytest.raises(RuntimeError, match=r"'broken' was asked for.*No module named.*_nothing_of_that_name"),
    ):
        fastsketch.patch_nce(X, X)


def test_explain_names_every_kernel():
    for device_type in ("cpu", "cuda"):
        explained = _backend.explain(device_type)
        assert list(explained) == list(_backend.KERNELS)
        for used, passed_over in explained.values():
            assert used in _backend.IMPLEMENTATIONS
            assert used not in passed_over
            assert all(passed_over.values())


def test_optional_kernels_are_run_beside_their_kernel(implementation):
    implementation("half", ("gather_patches_forward", "instance_norm"))
    explained = _backend.explain_optional("cpu")
    assert list(explained) == [name for name in _backend.OPTIONAL if name not in _backend.IN_PLACE_OF]
    assert (explained["instance_norm"], explained["convolve"]) == ("half", "torch")
    assert _backend.optional_kernel("instance_norm", torch.device("cpu")) is not None
    assert _backend.optional_kernel("convolve", torch.device("cpu")) is None


def test_the_list_of_optional_kernels_is_what_there_is():
    """A kernel that it does not name would never run; a name that nobody has is a slip."""
    cpp, triton = (pytest.importorskip(f"fastsketch.{name}", exc_type=ImportError) for name in ("cpp", "triton"))
    own = {n for n, x in vars(cpp).items() if getattr(x, "__module__", "") == cpp.__name__ and n[0] != "_"}
    there, named = (own | set(triton.__all__)) - {"facts"}, {*_backend.KERNELS, *_backend.OPTIONAL}
    assert there | set(_backend.IN_PLACE_OF) == named  # those are there with AMX alone
    assert set(_backend.IN_PLACE_OF.values()) <= there


def test_use_backend_nests_and_ends_with_its_block():
    before = _backend.forced_backend()
    with fastsketch.use_backend("reference"):
        assert _backend.forced_backend() == "reference"
        with fastsketch.use_backend(None):
            assert _backend.forced_backend() is None
        assert _backend.forced_backend() == "reference"
        with pytest.raises(KeyError), fastsketch.use_backend(None):
            raise KeyError
        assert _backend.forced_backend() == "reference"
    assert _backend.forced_backend() == before


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"backend must be one of .*reference.*, got 'fortran'"):
        fastsketch.use_backend("fortran").__enter__()
    monkeypatch.setenv("FASTSKETCH_BACKEND", "fortran")
    with pytest.raises(FastsketchError, match=r"FASTSKETCH_BACKEND must be one of .*, got 'fortran'"):
        fastsketch.patch_nce(X, X)


def test_environment_variable(implementation, monkeypatch):
    ran = implementation("eager", _backend.KERNELS)
    monkeypatch.setenv("FASTSKETCH_BACKEND", "reference")
    run_all()
    assert ran == []
    with fastsketch.use_backend("eager"):  # the block is nearer than the process
        fastsketch.patch_nce(X, X)
    assert ran == ["patch_nce_forward"]
    monkeypatch.setenv("FASTSKETCH_BACKEND", "")
    fastsketch.patch_nce(X, X)
    assert len(ran) == 2


def test_the_choice_holds_in_backward(implementation):
    """The backward of a CPU graph runs in the caller's thread, so the block covers it."""
    ran = implementation("eager", _backend.KERNELS)
    with fastsketch.use_backend("reference"):
        run_all()
    assert ran == []


def test_a_choice_holds_in_all_threads(implementation):
    """Backward on a GPU runs in threads of autograd's own."""
    ran = implementation("eager", _backend.KERNELS)
    with fastsketch.use_backend("reference"):
        thread = threading.Thread(target=fastsketch.patch_nce, args=(X, X))
        thread.start()
        thread.join()
    assert ran == []


def test_values_are_checked_on_the_cpu_always(monkeypatch):
    monkeypatch.delenv("FASTSKETCH_CHECK")
    assert _backend.checks_values(X)
    assert not _backend.checks_values(X.to("meta"))
    monkeypatch.setenv("FASTSKETCH_CHECK", "1")
    assert _backend.checks_values(X.to("meta"))
