"""The trial of GPU kernels: in processes of its own, once, and what follows for the choice of an implementation.

There is no GPU here: modules of Python functions stand for the kernels, and the CPU for the GPU.
"""

import importlib
import json
import logging
import sys
import textwrap
import threading
import time
from types import ModuleType

import pytest
import torch

from fastsketch import _backend
from fastsketch.cli import main
from fastsketch.trial import captured, run, verdict
from fastsketch.trial.cases import CASES, Case

GPU = "Toy GPU (sm_90)"
RIGHT = "from fastsketch.reference import *\n"
NAMES = ("place_positions", "patch_nce, float32", "gather_layers, float32")


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """kernels(source): the name of a module with this source, that child processes find too."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str, name: str = "toy_kernels") -> str:
        (tmp_path / f"{name}.py").write_text(RIGHT + textwrap.dedent(source))
        return name

    return write


@pytest.fixture
def toy_gpu(kernels, tmp_path, monkeypatch):
    """toy_gpu(source): a machine with a GPU, a cache of its own, and these kernels as those of Triton.

    `captured_steps`: what is wrong with those.
    Trials are held in this process, which is quicker; the list that is returned has the modules tried.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(verdict, "gpu_at", lambda index: (GPU, "cpu"))
    monkeypatch.setattr(verdict, "gpus", lambda: {GPU: "cpu"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTSKETCH_GPU_CHECK", raising=False)
    monkeypatch.setitem(_backend.IMPLEMENTATIONS, "cuda", "fastsketch._nothing_of_that_name")
    held, steps = [], ""

    def machine(source: str = "", captured_steps: str = "") -> list[str]:
        nonlocal steps
        steps = captured_steps
        monkeypatch.setitem(_backend.IMPLEMENTATIONS, "triton", kernels(source))
        sys.modules.pop("toy_kernels", None)
        forget()
        return held

    def try_cases(module: str, device: str, names: list[str], show) -> dict[str, str]:
        held.append(module)
        if module == captured.__name__:  # has tests of its own
            for name in names:
                show(name, steps)
            return dict.fromkeys(names, steps)
        if device != "cpu":
            raise run.NotTried("no such device")
        found = {name: wrong(CASES[name], importlib.import_module(module)) for name in names}
        for name, said in found.items():
            show(name, said)
        return found

    monkeypatch.setattr(verdict, "try_cases", try_cases)
    yield machine
    monkeypatch.undo()
    forget()


def wrong(case: Case, module: ModuleType) -> str:
    try:
        case.check(module, torch.device("cpu"))
    except AssertionError as error:
        return str(error)
    return ""


def forget() -> None:
    _backend.forget()
    verdict.forget()


def used() -> set[str]:
    """The kernels that Triton computes."""
    return {kernel for kernel in _backend.KERNELS if _backend.select(kernel, "cuda") == "triton"}


def test_what_is_right_is_used_and_tried_once(toy_gpu, caplog):
    held = toy_gpu()
    with caplog.at_level(logging.WARNING, "fastsketch"):
        assert used() == set(_backend.KERNELS)
        assert [f"checking the kernels of toy_kernels on {GPU}, once" in text for text in caplog.messages] == [True]
        forget()  # as a new process
        assert used() == set(_backend.KERNELS)
    assert (held, len(caplog.messages)) == (["toy_kernels"], 1)
    kept = json.loads(verdict.kept_in(verdict.kernels_of("toy_kernels"), GPU).read_text())
    assert (kept["gpu"], kept["torch"], set(kept["results"].values())) == (GPU, torch.__version__, {""})


def test_what_is_wrong_is_not_used_and_says_so(toy_gpu, caplog):
    toy_gpu("""
        def gather_layers(features, index, right=gather_layers):
            return [patches + (patches.dtype.itemsize == 2) for patches in right(features, index)]
    """)
    with caplog.at_level(logging.WARNING, "fastsketch"):
        assert used() == set(_backend.KERNELS) - {"gather_layers"}
    assert "failed: gather_layers, bfloat16 (patches of layer 0: not the reference's); gather" in caplog.messages[-1]
    assert caplog.messages[-1].endswith(": plain PyTorch takes its place")
    name, passed_over = _backend.explain("cuda")["gather_layers"]
    assert name == "reference"
    assert passed_over["triton"].startswith(f"failed its check on {GPU} (gather_layers, float16: patches of layer 0")
    with _backend.use_backend("triton"):  # by name, whoever wants it
        assert "gather_layers" in used()


def test_new_kernels_are_tried_anew(toy_gpu, monkeypatch):
    held = toy_gpu()
    used()
    forget()
    monkeypatch.setattr(verdict, "_digest", lambda patterns: "others")
    used()
    assert len(held) == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"results": {}}', b"\xff"])
def test_a_damaged_file_is_made_again(toy_gpu, content):
    held = toy_gpu()
    path = verdict.kept_in(verdict.kernels_of("toy_kernels"), GPU)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert used() == set(_backend.KERNELS)
    assert len(held) == 1
    assert json.loads(path.read_text())["results"]


def test_without_a_cache_each_process_tries(toy_gpu, monkeypatch, tmp_path):
    held = toy_gpu()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert used() == used() == set(_backend.KERNELS)
    assert len(held) == 1
    forget()
    assert used() == set(_backend.KERNELS)
    assert len(held) == 2


def test_threads_that_ask_at_once_wait_for_one_trial(toy_gpu):
    held = toy_gpu()
    chosen = []
    threads = [
        threading.Thread(target=lambda: chosen.append(_backend.select("gather_layers", "cuda"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (chosen, len(held)) == (["triton"] * 4, 1)


def test_a_process_waits_for_the_trial_of_another_and_takes_its_verdict(toy_gpu):
    fcntl = pytest.importorskip("fcntl")
    held = toy_gpu("patch_nce_forward = None")  # a trial of its own would fail
    path = verdict.kept_in(verdict.kernels_of("toy_kernels"), GPU)
    path.parent.mkdir(parents=True)
    chosen = []
    thread = threading.Thread(target=lambda: chosen.append(_backend.select("patch_nce_forward", "cuda")))
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        path.write_text(json.dumps({"results": dict.fromkeys(CASES, "")}))
    thread.join(60)
    assert (chosen, held) == (["triton"], [])


def test_untried_by_request(toy_gpu, monkeypatch):
    held = toy_gpu("raise_ = patch_nce_forward = None")
    monkeypatch.setenv("FASTSKETCH_GPU_CHECK", "0")
    assert used() == set(_backend.KERNELS)
    assert held == []


def test_without_a_gpu_nothing_is_tried(toy_gpu, monkeypatch):
    held = toy_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (used(), held) == (set(), [])
    assert _backend.explain("cuda")["gather_layers"][1]["triton"] == "there is no CUDA device to check it on"


def test_a_trial_that_cannot_be_held_is_no_verdict(toy_gpu, monkeypatch, caplog):
    toy_gpu()
    monkeypatch.setattr(verdict, "gpu_at", lambda index: (GPU, "cuda:99"))
    with caplog.at_level(logging.WARNING, "fastsketch"):
        assert used() == set()
    assert "it could not be checked (no such device): plain PyTorch takes its place" in caplog.messages[-1]
    assert not verdict.kept_in(verdict.kernels_of("toy_kernels"), GPU).exists()
    assert f"could not be checked on {GPU}: no such device" in _backend.explain("cuda")["gather_layers"][1]["triton"]


def test_the_whole_in_a_process_of_its_own(toy_gpu, monkeypatch):
    toy_gpu()
    monkeypatch.setattr(verdict, "try_cases", run.try_cases)
    assert used() == set(_backend.KERNELS)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def patch_nce_forward(*args): raise RuntimeError('CUDA error: misaligned address')", "misaligned address"),
        ("import os\ndef patch_nce_forward(*args): os.abort()", "ended by SIGABRT"),
        ("def patch_nce_forward(*args): raise AssertionError", "AssertionError"),
    ],
    ids=["error", "crash", "assertion"],
)
def test_one_that_fails_takes_no_other_with_it(kernels, source, said):
    results = run.try_cases(kernels(source), "cpu", NAMES)
    assert list(results) == list(NAMES)
    assert said in results.pop("patch_nce, float32")
    assert set(results.values()) == {""}


INTERRUPTED = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # started behind a shell's &, a process ignores it
def patch_nce_forward(*args): os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('no such library')", "ImportError: no such library"),
        ("import torch\ndef patch_nce_forward(*args): raise torch.OutOfMemoryError('full')", "OutOfMemoryError: full"),
        ("import os\ndef patch_nce_forward(*args): os._exit(7)", "exit status 7"),
        (INTERRUPTED, "ended by SIGINT|KeyboardInterrupt"),
        ("import os\ndef patch_nce_forward(*args): os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("def patch_nce_forward(*args): raise RuntimeError('CUBLAS_STATUS_ALLOC_FAILED')", "ALLOC_FAILED"),
    ],
    ids=["import", "memory", "exit", "interrupted", "killed", "cublas"],
)
def test_what_is_not_the_kernels_fault(kernels, source, said):
    with pytest.raises(run.NotTried, match=said):
        run.try_cases(kernels(source), "cpu", NAMES)


def test_a_child_has_the_default_settings(kernels, monkeypatch):
    monkeypatch.setenv("FASTSKETCH_FP32", "tf32")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    source = """
        import os
        def place_positions(*args):
            raise ValueError(f"{os.environ['FASTSKETCH_FP32']} {'TRITON_INTERPRET' in os.environ}")
    """
    assert run.try_cases(kernels(source), "cpu", NAMES[:1]) == {"place_positions": "ValueError: tf32x3 False"}


def test_a_process_out_of_time_that_got_somewhere_goes_on_in_another(kernels, tmp_path):
    """Compiling takes its time, and Triton keeps what it compiled."""
    source = f"""
        import time
        from pathlib import Path
        def patch_nce_forward(*args, right=patch_nce_forward, once=Path({str(tmp_path / "once")!r})):
            if not once.exists():
                once.touch()
                time.sleep(600)
            return right(*args)
    """
    assert run.try_cases(kernels(source), "cpu", NAMES, limit=8) == dict.fromkeys(NAMES, "")


def test_after_two_that_hang_the_rest_is_not_tried(kernels):
    shown = []
    source = "import time; time.sleep(600)\n"
    with pytest.raises(run.NotTried, match="not begun after 1 s"):
        run.try_cases(kernels(source), "cpu", NAMES, limit=1)
    source = "import time\ndef patch_nce_forward(*args): time.sleep(600)\ndef place_positions(*args): time.sleep(600)"
    results = run.try_cases(kernels(source), "cpu", NAMES, 8, lambda *result: shown.append(result))
    assert list(results.items()) == shown
    assert [*results.values()] == ["not done after 8 s"] * 2 + ["not tried, after two that did not end"]


MEETING = """
import os, time
from pathlib import Path
def place_positions(*args, right=place_positions):
    Path({folder!r}, "met-1").touch()
    while not Path({folder!r}, "met-2").exists():
        time.sleep(0.05)
    return right(*args)
def patch_nce_forward(*args, right=patch_nce_forward):
    Path({folder!r}, "met-2").touch()
    while not Path({folder!r}, "met-1").exists():
        time.sleep(0.05)
    return right(*args)
"""


SIX = (*NAMES, *(f"gather_and_tap, {dtype}" for dtype in ("float32", "bfloat16", "float16")))

REFUSED = """
import sys
if len(sys.argv) - 3 < 6:
    raise RuntimeError("CUDA error: out of memory")
"""


def test_cases_are_shared_by_processes_side_by_side(kernels, tmp_path):
    """Compiling takes a core's time; a GPU's machine has more of them."""
    results = run.try_cases(kernels(MEETING.format(folder=str(tmp_path))), "cpu", SIX, limit=60, processes=2)
    assert list(results.items()) == [(name, "") for name in SIX]


def test_what_processes_side_by_side_cannot_begin_is_tried_in_one(kernels, monkeypatch):
    """A GPU without memory for all of them, or one that a single process may use."""
    begun = []
    command = run._command
    monkeypatch.setattr(run, "_command", lambda *args: begun.append(args[2]) or command(*args))
    assert run.try_cases(kernels(REFUSED), "cpu", SIX, processes=2) == dict.fromkeys(SIX, "")
    assert sorted(map(len, begun)) == [3, 3, 6]


def test_an_interrupted_trial_leaves_no_process_behind(kernels, monkeypatch):
    started = []
    popen = run.subprocess.Popen

    def start(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    def interrupted(shares):
        while len(started) < 2:
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(run.subprocess, "Popen", start)
    monkeypatch.setattr(run, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.try_cases(kernels("import time; time.sleep(600)"), "cpu", SIX, processes=2)
    assert [process.returncode for process in started] == [-9, -9]


@pytest.mark.parametrize("executable", [None, "/nowhere/python"])
def test_no_python_to_start(kernels, monkeypatch, executable):
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(run.NotTried, match=r"cannot start a Python|No such file"):
        run.try_cases(kernels(""), "cpu", NAMES)


def test_any_error_of_the_trial_leaves_the_reference(toy_gpu, monkeypatch, caplog):
    toy_gpu()
    monkeypatch.setattr(verdict, "try_cases", lambda *args, **kwargs: 1 / 0)
    with caplog.at_level(logging.WARNING, "fastsketch"):
        assert used() == set()
    assert "could not be checked (division by zero)" in caplog.messages[-1]


def test_where_files_cannot_be_locked_it_is_tried_all_the_same(toy_gpu, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    held = toy_gpu()
    assert used() == set(_backend.KERNELS)
    assert len(held) == 1


def test_each_kind_of_gpu_has_a_verdict_of_its_own(toy_gpu, monkeypatch):
    held = toy_gpu()
    monkeypatch.setattr(verdict, "gpu_at", lambda index: ((GPU, "cpu"), ("Old GPU (sm_50)", "cuda:99"))[index])
    assert _backend.select("gather_layers", "cuda", 1) == "reference"
    assert _backend.select("gather_layers", "cuda", 0) == "triton"
    assert _backend.select("gather_layers", "cuda") == "triton"
    assert len(held) == 2


def test_only_cases_of_kernels_that_are_there():
    of_networks = ("instance_norm", "feature_distance", "blurs", "padding")
    operators = tuple(name for name in CASES if not name.startswith(of_networks))
    assert verdict.kernels_of("fastsketch.reference").cases == operators
    assert set(verdict.kernels_of("fastsketch.cpp").cases) == {n for n in CASES if not n.startswith("padding")}
    assert verdict.kernels_of("fastsketch.drawing").cases == ()


def command() -> int:
    with pytest.raises(SystemExit) as ended:
        main(["check-gpu"])
    return ended.value.code


def test_the_command(toy_gpu, capsys):
    toy_gpu()
    assert command() == 0
    out = capsys.readouterr().out
    assert f"triton on {GPU}" in out
    assert "cuda: not there (ModuleNotFoundError" in out
    assert out.count("right\n") == len(verdict.kernels_of("toy_kernels").cases) + 2
    assert f"training steps in a CUDA graph on {GPU}\n  fsscl " in out
    assert out.endswith("all right: these kernels are used, and training steps are captured\n")


def test_the_command_with_a_failure(toy_gpu, capsys):
    held = toy_gpu("def place_positions(*args): return [args[0]] * 4")
    assert command() == 1
    out = capsys.readouterr().out
    assert "place_positions                  FAILED: places on grid 0: not the reference's" in out
    assert "1 failed: plain PyTorch takes the place of a kernel" in out
    assert used() == set(_backend.KERNELS) - {"place_positions"}
    assert held.count("toy_kernels") == 1, "what the command found is kept"


def test_the_command_with_a_captured_step_that_fails(toy_gpu, capsys):
    toy_gpu(captured_steps="replay 1: losses off by 1")
    assert command() == 1
    out = capsys.readouterr().out
    assert "  cut                              FAILED: replay 1: losses off by 1" in out
    assert out.endswith("2 failed: plain PyTorch takes the place of a kernel, a plain step that of a captured one\n")


def test_the_command_with_nothing_to_try(toy_gpu, monkeypatch, capsys):
    toy_gpu()
    monkeypatch.setitem(_backend.IMPLEMENTATIONS, "triton", "fastsketch._nothing_of_that_name")
    _backend.forget()
    assert command() == 1
    assert capsys.readouterr().err == "fastsketch: error: there are no GPU kernels here\n"
    monkeypatch.setattr(verdict, "gpus", dict)
    assert command() == 1
    assert capsys.readouterr().err == "fastsketch: error: there is no CUDA device here\n"
