"""Progress bars: one that moves in a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

LOG_INTERVAL = 30.0
"""Seconds between two states of a bar where nobody looks on; the last one is always written."""


class _Lines:
    """A stream in which each state of a bar is a line of its own; tqdm would write them over one another."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.encoding = stream, getattr(stream, "encoding", None)

    def write(self, text: str) -> None:
        if state := text.strip():
            self.stream.write(f"{state}\n")

    def flush(self) -> None:
        self.stream.flush()


def progress_bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """A bar on stderr, over `items` or (None) moved by hand; `options` are tqdm's."""
    if not sys.stderr.isatty():
        options.update(file=_Lines(sys.stderr), mininterval=LOG_INTERVAL, miniters=1)
    return tqdm(items, dynamic_ncols=True, **options)
