"""The command line. Each command is a module of `fastsketch.commands`."""

import os
import sys
from collections.abc import Sequence

from fastsketch import __version__
from fastsketch.commands import bench, check_gpu, demo, demo_app, evaluate, export, generate, info, report, train
from fastsketch.errors import FastsketchError

USAGE = """fastsketch: pencil portraits from face photos, by patch-contrastive learning

  fastsketch demo                              all of it, small, on built-in faces
  fastsketch train     --data DIR --out RUN    train a generator (or --data builtin: drawn faces)
  fastsketch generate  PHOTO... -o DIR --weights RUN     draw sketches of photos
  fastsketch evaluate  GENERATED --data DIR    compare drawings with a data set's sketches
  fastsketch report    RUN... [-o FILE]        a page of runs: settings, losses, metrics, gallery, comparison
  fastsketch export    RUN --onnx FILE         the generator for ONNX Runtime
  fastsketch demo-app  --weights RUN           drop a photo into the browser, see its sketch
  fastsketch bench                             speed and memory on this machine, against the same written otherwise
  fastsketch check-gpu                         the GPU kernels on this machine's GPU, case by case
  fastsketch info                              versions, devices, operator implementations

fastsketch COMMAND --help lists a command's options."""

COMMANDS = {
    "demo": demo.main,
    "train": train.main,
    "generate": generate.main,
    "evaluate": evaluate.main,
    "report": report.main,
    "export": export.main,
    "demo-app": demo_app.main,
    "bench": bench.main,
    "check-gpu": check_gpu.main,
    "info": info.main,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    It exits with 0, 1 (an error, one line), 2 (bad usage), 130 (Ctrl-C) or 141 (whoever read its output has gone).
    A system's error that names a file (no permission, a name too long) is one line too; any other keeps its traceback.
    """
    if getattr(sys.stdout, "errors", None) == "strict":  # Latin-1 has no arrow: print a question mark
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            code = _run(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            print(end="", flush=True)
    except FastsketchError as error:
        print(f"fastsketch: error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        code = 141
    except OSError as error:
        if not isinstance(error.filename, (str, os.PathLike)):
            raise
        print(f"fastsketch: error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        code = 1
    raise SystemExit(code)


def _run(arguments: Sequence[str]) -> int:
    if list(arguments) == ["--version"]:
        print(f"fastsketch {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"fastsketch: no command {arguments[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return command(arguments[1:])


def _reader_has_gone() -> bool:
    """Whether whoever read the output has, as in `fastsketch train --help | head`. What is left to write is dropped."""
    try:
        print(flush=True)  # something: nothing would be written, and nothing found out
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
