"""The command line as a user has it: what it draws, what it says, and how it fails."""

import ast
import errno
import io
import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command import run

from fastsketch import __version__, _backend, cli
from fastsketch.cli import COMMANDS, main
from fastsketch.metrics import Evaluation
from fastsketch.training.run_files import load_settings, trained_masks

TINY = shlex.split(
    "--image-size 40 --crop-size 32 --width 4 --blocks 5 --discriminator-width 4 --projection-dim 8 --num-patches 16 "
    "--epochs 1 --decay-epochs 0 --lambda-perceptual 0 --pictures 1 --device cpu"
)

NO_LOSS = shlex.split("--lambda-gan 0 --lambda-nce 0 --lambda-pixel 0 --lambda-perceptual 0")


def test_train_generate_evaluate(capsys, data, tmp_path):
    out = tmp_path / "trained"
    code, text, _ = run(capsys, "train", "--data", data, "--out", out, *TINY)
    assert code == 0 and "generator.safetensors" in text
    drawn = tmp_path / "drawn"
    weights = out / "generator.safetensors"
    assert run(capsys, "generate", "--data", data, "-o", drawn, "--weights", weights, "--quiet")[0] == 0
    assert sorted(p.name for p in (drawn / "blobs").iterdir()) == ["100.png", "101.png"]
    code, text, _ = run(capsys, "evaluate", drawn, "--data", data, "--metrics", "fsim", "ssim", "--quiet")
    assert code == 0 and "FSIM" in text and "blobs" in text
    assert all((drawn / name).is_file() for name in ("metrics.csv", "summary.csv", "metrics.json"))


def test_a_log_gets_the_progress_bar_now_and_then(capsys, data, tmp_path):
    """Every step of it would be thousands of lines."""
    code, _, err = run(
        capsys, "train", "--data", data, "--out", tmp_path / "run", *TINY, "--epochs", 4, "--log-every", 1
    )
    states = [state for state in err.splitlines() if "/20 [" in state]
    assert code == 0 and len(states) == 2 and states[-1].startswith("epoch 4/4: 100%") and " img/s" in states[-1]


def test_resume_needs_no_settings_again(capsys, data, tmp_path):
    out = tmp_path / "trained"
    assert run(capsys, "train", "--data", data, "--out", out, *TINY)[0] == 0
    code, _, err = run(capsys, "train", "--data", data, "--out", out, *TINY)
    assert code == 1 and "--resume" in err
    code, text, _ = run(capsys, "train", "--out", out, "--resume", "--epochs", "2")
    assert code == 0 and "going on after step 5, in epoch 2" in text
    assert (out / "pictures" / "epoch_0002.png").is_file()


def test_folders_are_kept_as_absolute_paths(capsys, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "train", "--data", data.name, "--out", "here", *TINY)[0] == 0
    saved = load_settings(tmp_path / "here" / "settings.json")
    assert (saved.data, saved.out) == (str(data), tmp_path / "here")


def test_a_plain_folder_is_trained_on_from_inside_and_renamed(capsys, data, tmp_path, monkeypatch):
    """And nothing is drawn beside the folder that was asked for."""
    plain, out = tmp_path / "plain", tmp_path / "trained"
    (data / "blobs/train").rename(plain)
    monkeypatch.chdir(plain)
    (plain / "photos/new.heic").write_bytes(b"x")
    for number in range(1, 5):
        for kind in ("photos", "sketches", "masks"):
            (plain / f"{kind}/{number:03d}.png").unlink()
    code, text, err = run(capsys, "train", "--data", ".", "--out", "../trained", *TINY)
    assert code == 0 and "fsscl on 1 picture of 32×32, 1 epoch" in text, err
    assert text.splitlines()[1].startswith("left out, not in a format that is read (.jpg, ")
    assert text.splitlines()[1].endswith(": photos/new.heic; convert HEIC to JPEG or PNG first")
    code, text, err = run(capsys, "train", "--out", out, "--resume", "--epochs", "2")
    assert code == 0 and "going on after step 1" in text, err
    monkeypatch.chdir(plain / "photos")
    drawn = tmp_path / "deep/drawn"
    assert run(capsys, "generate", "--data", "..", "-o", drawn, "--weights", out, "--quiet")[0] == 0
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["drawn"]
    assert [p.name for p in (drawn / "plain").iterdir()] == ["000.png"]
    monkeypatch.chdir(tmp_path)
    plain.rename(tmp_path / "renamed")
    code, text, err = run(capsys, "train", "--data", "renamed", "--out", out, "--resume", "--epochs", "3")
    assert code == 0 and "going on after step 2" in text, err


def test_unpaired_turns_off_what_needs_a_target(capsys, data, tmp_path):
    out = tmp_path / "unpaired"
    tiny = [*TINY[: TINY.index("--lambda-perceptual")], "--pictures", "0", "--device", "cpu"]
    code, text, err = run(capsys, "train", "--data", data, "--out", out, "--unpaired", *tiny)
    assert code == 0, err
    assert "1 epoch," in text and "pictures in" not in text
    saved = load_settings(out / "settings.json")
    assert saved.lambda_pixel == saved.lambda_perceptual == 0 and saved.lambda_nce == 1
    code, _, err = run(capsys, "train", "--data", data, "--out", out / "x", "--unpaired", "--lambda-pixel", "1", *tiny)
    assert code == 1 and "no target" in err


def test_presets_set_the_defaults(capsys, data, tmp_path):
    out = tmp_path / "cut"
    assert run(capsys, "train", "--data", data, "--out", out, "--preset", "cut", *TINY)[0] == 0
    text = (out / "settings.json").read_text()
    assert trained_masks(out / "generator.safetensors") == "none"
    assert '"mask": false' in text and '"lambda_pixel": 0.0' in text and '"regions": false' in text


def test_of_repeated_options_the_last_counts(capsys, data, tmp_path):
    out = tmp_path / "last"
    repeated = [*shlex.split("--unpaired --no-unpaired --preset cut --preset=fsscl --out no"), "--out", out]
    assert run(capsys, "train", "--data", data, *repeated, *TINY)[0] == 0
    saved = load_settings(out / "settings.json")
    assert saved.preset == "fsscl" and saved.attention and saved.regions and saved.lambda_pixel == 1
    code, text, err = run(capsys, "train", "--out", tmp_path / "no", "--out", out, "--resume", "--epochs", "2")
    assert code == 0 and "going on after step 5" in text, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "nowhere", "--out", "{tmp}/x", *TINY], "nowhere"),
        (["train", "--data", "{data}", "--out", "{tmp}/x", *TINY, "--num-patches", "65"], "num_patches"),
        (["train", "--data", "{data}", "--out", "{tmp}/x", "--preset", "best"], "--preset"),
        (["train", "--out", "{tmp}/x", "--resume"], "no run to resume"),
        (["train", "--out", "{tmp}/x", "--resume=True"], "--resume takes no value, got True: write --resume or --no"),
        (["train", "--data", "{data}", "--out", "{tmp}/x", *TINY, "--mask=False"], "--mask takes no value, got False"),
        (["train", "--data", "{data}", "--out", "{tmp}/x", *TINY, "--density-window", "-1"], "density_window"),
        (["train", "--data", "{data}", "--out", "{tmp}/x", *TINY, "--betas", "2", "3"], "betas must be"),
        (["train", "--data", "{data}", "--out", "{tmp}/x", *TINY, "--seed", "9" * 23], "seed must be below"),
        (["train", "--data", "{data}", "--out", "{tmp}/x", *TINY, "--device", "meta"], "device 'meta'"),
        (["train", "--data", "{data}", "--out", "{tmp}/x", *TINY, *NO_LOSS], "all losses are off"),
        (["evaluate", "{tmp}/nothing", "--data", "{data}"], "no such folder"),
        (["evaluate", "{tmp}", "--data", "{data}"], "no drawing of"),
        (["evaluate", "{tmp}", "--data", "{data}", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["evaluate", "{tmp}", "--data", "{data}", "--image-size", "-1"], "--image-size must be at least 1"),
        (["info", "please"], "takes no options"),
    ],
)
def test_errors_are_one_line(capsys, data, tmp_path, arguments, message):
    code, _, err = run(capsys, *(a.format(tmp=tmp_path, data=data) for a in arguments))
    assert code == 1
    assert message in err and err.startswith("fastsketch: error: ") and len(err.strip().splitlines()) == 1


def test_bad_usage(capsys):
    assert run(capsys)[0] == 2
    assert run(capsys, "--help")[0] == 0
    assert run(capsys, "--version")[:2] == (0, f"fastsketch {__version__}\n")
    code, _, err = run(capsys, "paint")
    assert code == 2 and "train, generate, evaluate" in err
    assert run(capsys, "train", "--widht", "3")[0] == 2


@pytest.mark.parametrize("arguments", [("train", "--help"), ("info",), ("--help",), ("--version",)])
def test_a_reader_that_has_gone_is_no_traceback(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        command = [sys.executable, "-m", "fastsketch", *arguments]
        result = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (141, "")


def test_another_broken_pipe_is_not_taken_for_it(monkeypatch):
    def broken(arguments):
        raise BrokenPipeError("a worker has gone")

    monkeypatch.setitem(COMMANDS, "info", broken)
    with pytest.raises(BrokenPipeError, match="a worker has gone"):
        main(["info"])


def test_each_setting_is_explained_in_one_line():
    """A line break of its docstring would stand in the help, wherever the terminal breaks lines."""
    root = Path(cli.__file__).parent
    for path in [root / "training/config.py", root / "bench/command.py", *(root / "commands").glob("*.py")]:
        for known in ast.walk(ast.parse(path.read_text())):
            if isinstance(known, ast.ClassDef):
                for field, said in itertools.pairwise([*known.body, None]):
                    if isinstance(field, ast.AnnAssign):
                        assert isinstance(said, ast.Expr), f"{path}:{field.lineno} is not explained"
                        assert said.end_lineno == said.lineno, f"{path}:{said.lineno} is of more than one line"


def test_info(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert "torch" in out and "patch_nce_forward" in out and "cpu" in out


def test_demo_can_be_called_twice(capsys, tmp_path, tiny, monkeypatch):
    from fastsketch import demo

    monkeypatch.setattr(demo, "TRAIN", 3)
    monkeypatch.setattr(demo, "TEST", 2)
    config = tiny(decay_epochs=0, image_size=120, crop_size=96)
    for _ in range(2):
        demo.run_demo(tmp_path / "demo", config=config)
        out = capsys.readouterr().out
        assert "epoch_0001.png" in out and "SSIM" in out
    assert (tmp_path / "demo" / "sketches" / "metrics.json").is_file()


def test_info_explains_itself(capsys):
    with pytest.raises(SystemExit) as left:
        main(["info", "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: fastsketch info")


def test_a_terminal_that_lacks_a_letter_gets_a_question_mark(monkeypatch):
    table = Evaluation(("ssim",), [], {"all": {"images": 1, "ssim": 0.5}}).table()
    bytes_written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_written, encoding="latin-1"))
    monkeypatch.setitem(COMMANDS, "info", lambda arguments: print(table))
    with pytest.raises(SystemExit):
        main(["info"])
    assert b"SSIM ?" in bytes_written.getvalue()


@pytest.mark.parametrize("command", ["train", "generate", "evaluate", "report"])
def test_a_name_that_is_too_long_is_one_line(capsys, data, tmp_path, command):
    long = tmp_path / ("x" * 300)
    arguments = {
        "train": ("--data", data, "--out", long, *TINY),
        "generate": (long, "-o", tmp_path / "o", "--weights", long),
        "evaluate": (long, "--data", data),
        "report": (long, "--data", data),
    }[command]
    code, _, err = run(capsys, command, *arguments)
    assert code == 1 and err.startswith("fastsketch: error: ") and len(err.strip().splitlines()) == 1
    assert str(long) in err


def test_errors_of_the_system_are_one_line_where_they_name_a_file(capsys, data, tmp_path, monkeypatch):
    def denied(arguments):
        raise PermissionError(errno.EACCES, "Permission denied", tmp_path / "closed")

    monkeypatch.setitem(COMMANDS, "info", denied)
    assert run(capsys, "info") == (1, "", f"fastsketch: error: {tmp_path / 'closed'}: Permission denied\n")

    def odd(arguments):
        raise OSError("of no file")

    monkeypatch.setitem(COMMANDS, "info", odd)
    with pytest.raises(OSError, match="of no file"):
        main(["info"])


@pytest.mark.parametrize("name", ["settings.json", "losses.csv"])
def test_files_of_a_run_that_cannot_be_read_are_named(capsys, data, tmp_path, monkeypatch, name):
    out = tmp_path / "trained"
    assert run(capsys, "train", "--data", data, "--out", out, *TINY, "--log-every", "1")[0] == 0
    opened = Path.open

    def closed(self, *arguments, **named):
        if self.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", closed)
    code, _, err = run(capsys, "train", "--out", out, "--resume", "--epochs", "2")
    assert (code, err) == (1, f"fastsketch: error: {out / name}: cannot read (Permission denied)\n")


@pytest.mark.parametrize(("command", "value"), [("info", "foo"), ("info", "triton"), ("train", "foo")])
def test_a_backend_that_is_not_there_is_refused(capsys, data, tmp_path, monkeypatch, command, value):
    monkeypatch.setenv("FASTSKETCH_BACKEND", value)
    arguments = [] if command == "info" else ["--data", data, "--out", tmp_path / "run", *TINY]
    code, _, err = run(capsys, command, *arguments)
    assert code == 1 and err.startswith("fastsketch: error: ") and len(err.strip().splitlines()) == 1
    assert f"got '{value}'" in err if value == "foo" else f"backend '{value}' was asked for" in err
    assert not (tmp_path / "run" / "settings.json").exists()


@pytest.mark.skipif(bool(_backend.why_not_loaded("cpp")), reason="there are no C++ kernels to choose a level of")
def test_an_instruction_set_that_is_not_there_is_refused(data, tmp_path):
    """In place of a run without the C++ kernels, in another precision, that keeps it."""
    command = [sys.executable, "-m", "fastsketch", "train", "--data", str(data), "--out", str(tmp_path / "run"), *TINY]
    environment = {**os.environ, "FASTSKETCH_CPU_LEVEL": "foo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("fastsketch: error: FASTSKETCH_CPU_LEVEL must be one of baseline")
    assert "got 'foo'" in done.stderr and not (tmp_path / "run").exists()


def test_train_says_when_the_kernels_are_not_in_use(capsys, data, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTSKETCH_BACKEND", "reference")
    code, out, _ = run(capsys, "train", "--data", data, "--out", tmp_path / "slow", *TINY)
    assert code == 0
    assert "the C++ kernels are not in use, which makes steps slower: reference was asked for" in out.splitlines()
    monkeypatch.delenv("FASTSKETCH_BACKEND")
    monkeypatch.setattr(_backend, "why_not_loaded", lambda name: "not built")
    code, out, _ = run(capsys, "train", "--data", data, "--out", tmp_path / "unbuilt", *TINY)
    assert code == 0 and "which makes steps slower: not built\n" in out
