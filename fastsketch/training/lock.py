"""One training at a time in a run's folder."""

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from fastsketch.errors import FastsketchError
from fastsketch.training.distributed import World


class Hold:
    """A folder that this process trains in. It is let go when nothing refers to this any more, or the process ends."""

    def __init__(self, handle: int, made: Path | None) -> None:
        self.handle = handle
        self.release = weakref.finalize(self, _let_go, handle, made)


_held: weakref.WeakValueDictionary[tuple[int, int], Hold] = weakref.WeakValueDictionary()
"""By device and inode: what this process holds is its own to hold again."""


def hold_folder(folder: Path, world: World) -> Hold | None:
    """Keep other processes from training in a folder, which is made when missing; all processes of a run must ask.

    It is the folder itself that is locked (flock), so nothing lies about, and a killed process holds nothing.

    Returns:
        None in processes that write nothing, and on a file system without locks.

    Raises:
        FastsketchError: someone else trains there, or there can be no such folder; in all processes of the run.
    """
    hold, problem = None, None
    if world.writes:
        try:
            hold = _hold(folder)
        except FastsketchError as error:
            problem = error
    if world.highest(int(problem is not None)):
        raise problem or FastsketchError("the first process could not go on, and says why")
    return hold


def _hold(folder: Path) -> Hold | None:
    made = None if folder.exists() else folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FastsketchError(f"{folder}: cannot write there ({error.strerror or error})") from error
    facts = os.fstat(handle)
    place = (facts.st_dev, facts.st_ino)
    if place in _held:
        os.close(handle)
        return _held[place]
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise FastsketchError(f"{folder} is being trained already, by another process") from None
    except OSError:  # there are no locks here, as on some disks of networks: go on without
        os.close(handle)
        return None
    _held[place] = hold = Hold(handle, made)
    return hold


def _let_go(handle: int, made: Path | None) -> None:
    if made is not None:
        with contextlib.suppress(OSError):
            made.rmdir()  # nothing came of it; it fails where there is something
    os.close(handle)


def _let_go_in_child() -> None:
    """A loading process may outlive a killed trainer by seconds: it must not hold the folder for it."""
    for hold in list(_held.values()):
        if hold.release.detach():
            os.close(hold.handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
