"""Progress bars: one that moves in a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 30.0
"""Seconds between two states of a bar where nobody looks on; the last one is always written."""


def progress_bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """A bar on stderr, over `items` or (None) moved by hand; `options` are tqdm's."""
    if not sys.stderr.isatty():
        options.update(mininterval=LOG_INTERVAL, maxinterval=LOG_INTERVAL)
    return tqdm(items, dynamic_ncols=True, **options)
