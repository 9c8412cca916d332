"""Files written whole or not at all."""

import csv
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastsketch.errors import FastsketchError

UNFINISHED = ".fastsketch-tmp-"
"""What names of files begin with until they are whole; no one else's do."""


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder that replaces `path` only when all went well.

    The folder is made when missing. A full disk or an interruption leaves an earlier file intact.

    Raises:
        FastsketchError: the file could not be written (named, with the system's reason).
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise FastsketchError(f"{path}: cannot write ({error.strerror or error})") from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # in place only once it is on the disk: a power cut leaves the old file or the new
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except OSError as error:
        raise FastsketchError(f"{path}: cannot write ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """A file of these bytes, whole or not at all; what stood there before stays when it cannot be written."""
    with written_whole(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A table as csv, its head first; what a row lacks stays empty.

    Raises:
        ValueError: a row has what is no column.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """A file of `csv_text`, whole or not at all."""
    write_text(path, csv_text(columns, rows))


def remove_torn(*folders: Path) -> None:
    """Remove the files that a killed process left unfinished in these folders; not in those below them."""
    for folder in folders:
        for path in folder.glob(f"{UNFINISHED}*"):
            if path.is_file():
                path.unlink(missing_ok=True)
