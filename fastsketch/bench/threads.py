"""Threads that stay where they are: a scheduler may keep two on one core for the length of a measurement."""

import os
import sys
from collections.abc import Sequence

BIND = "OMP_PROC_BIND"


def start_bound(command: Sequence[str], arguments: Sequence[str]) -> None:
    """Start this process again with OpenMP's threads bound to a core each: they read that once, when they are loaded.

    Nothing happens where the variable is set already (to false, say), on a GPU, or in a process that is not this very
    command but calls it.

    Args:
        command: words of the command line before its arguments.
        arguments: of the command.
    """
    on_gpu = any("cuda" in word for word in arguments)
    if sys.argv[1:] != [*command, *arguments] or BIND in os.environ or on_gpu or os.name != "posix":
        return
    os.environ[BIND] = "true"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
