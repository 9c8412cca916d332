"""Write a set of procedural faces to a folder, whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np

from fastsketch.errors import FastsketchError
from fastsketch.training.faces.draw import VERSION, check_seed, check_size, draw_face

SUBSET = "builtin"
STAMP = "faces.json"
_KINDS = ("photos", "sketches", "masks")


def write_faces(
    root: Path | str,
    *,
    train: int = 64,
    test: int = 16,
    height: int = 250,
    width: int = 200,
    seed: int = 0,
    quiet: bool = True,
) -> Path:
    """Write the built-in data set: procedurally drawn faces, their pencil sketches and masks.

    The layout is ``root/builtin/{train,test}/{photos,sketches,masks}/NNN.png`` with ``root/manifest.csv``
    (columns subset, split, id). All files are made in a temporary folder beside ``root`` first, so that ``root``
    appears complete or not at all; a second call with the same arguments finds the stamp and reuses it.

    Args:
        root: Folder to make. It may exist if it is empty or holds a set this function wrote.
        train: Number of training faces, >= 0.
        test: Number of test faces, >= 0; at least one face in all.
        height: Pixels, 32 to 2048.
        width: Pixels, 32 to 2048.
        seed: Seed of the set, >= 0. Face ``i`` depends on ``(seed, i)`` only, test faces counting on from ``train``.
        quiet: No progress bar on stderr.

    Returns:
        ``root`` as an absolute :class:`~pathlib.Path`.

    Raises:
        TypeError: a count, a size or the seed is no integer.
        ValueError: a count, a size or the seed is out of range, or ``root`` holds something else.
        FastsketchError: the set could not be written (a full disk, no permission); nothing is left behind.
    """
    root = Path(root).resolve()
    for name, count in (("train", train), ("test", test)):
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
            raise TypeError(f"{name}: expected an integer, got {type(count).__name__}")
        if not 0 <= count <= 100_000:
            raise ValueError(f"{name}: expected 0 to 100000 faces, got {count}")
    if train + test == 0:
        raise ValueError("train, test: expected at least one face in all, got 0 and 0")
    check_size(height, width)
    check_seed(seed)
    stamp = {
        "version": VERSION,
        "train": int(train),
        "test": int(test),
        "height": int(height),
        "width": int(width),
        "seed": int(seed),
    }
    if root.exists():
        if not root.is_dir():
            raise FastsketchError(f"root must be a folder, got the file {root}")
        if _read_stamp(root) == stamp and _is_whole(root, stamp):
            return root
        # a set of other arguments is replaced, but never anything that was not written here
        known = {SUBSET, "manifest.csv", STAMP} if _read_stamp(root) else set()
        others = sorted(entry.name for entry in root.iterdir() if entry.name not in known)
        if others:
            raise FastsketchError(
                f"root must be an empty folder or an earlier built-in set, got {root} with {others[0]} in it"
            )

    try:
        _write_whole(root, stamp, quiet)
    except OSError as error:
        raise FastsketchError(f"{root}: could not write the built-in faces: {error}") from error
    return root


def _write_whole(root: Path, stamp: dict[str, int], quiet: bool) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        _fill(draft, stamp, quiet)
        try:
            _swap(draft, root)
        except OSError:
            # another process may have finished the same set meanwhile
            if _read_stamp(root) != stamp:
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def face_seed(seed: int, index: int) -> int:
    """Return the seed of :func:`draw_face` for face ``index`` of the set ``seed``."""
    return int(np.random.SeedSequence([int(seed), int(index)]).generate_state(1, np.uint64)[0])


def _listing(stamp: dict[str, int]) -> list[tuple[str, str]]:
    splits = ["train"] * stamp["train"] + ["test"] * stamp["test"]
    return [(split, f"{index:03d}") for index, split in enumerate(splits)]


def _read_stamp(root: Path) -> dict[str, int] | None:
    try:
        stamp = json.loads((root / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def _is_whole(root: Path, stamp: dict[str, int]) -> bool:
    """Whether every listed file is still there (someone may have deleted some)."""
    return (root / "manifest.csv").is_file() and all(
        (root / SUBSET / split / kind / f"{name}.png").is_file() for split, name in _listing(stamp) for kind in _KINDS
    )


def _fill(draft: Path, stamp: dict[str, int], quiet: bool) -> None:
    listing = _listing(stamp)
    for split in dict.fromkeys(split for split, _ in listing):
        for kind in _KINDS:
            (draft / SUBSET / split / kind).mkdir(parents=True)
    items = list(enumerate(listing))
    if not quiet:
        from fastsketch.progress import progress_bar

        items = progress_bar(items, desc="drawing faces", unit="face")
    for index, (split, name) in items:
        face = draw_face(face_seed(stamp["seed"], index), stamp["height"], stamp["width"])
        for kind, image in zip(_KINDS, (face.photo, face.sketch, face.mask), strict=True):
            _write_png(draft / SUBSET / split / kind / f"{name}.png", image)
    with (draft / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("subset", "split", "id"))
        writer.writerows((SUBSET, split, name) for split, name in listing)
    (draft / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    draft.chmod(0o755)  # mkdtemp makes it private


def _write_png(path: Path, image: np.ndarray) -> None:
    bgr = image[..., ::-1] if image.ndim == 3 else image
    done, data = cv2.imencode(".png", np.ascontiguousarray(bgr), [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not done:
        raise OSError(f"{path}: OpenCV could not encode the picture as PNG")
    path.write_bytes(data.tobytes())


def _swap(draft: Path, root: Path) -> None:
    """Put ``draft`` in the place of ``root``, which keeps its old content if that fails."""
    if not root.exists():
        os.replace(draft, root)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{root.name}.old.", dir=root.parent))
    os.replace(root, old / "set")
    try:
        os.replace(draft, root)
    except OSError:
        os.replace(old / "set", root)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
