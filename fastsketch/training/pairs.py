"""Finding photo-sketch pairs in folders.

Layouts (ROOT/manifest.csv with columns subset, split, id is optional; where it is, it decides what is read)::

    ROOT/SUBSET/SPLIT/{photos,sketches[,masks]}/ID.jpg      or
    ROOT/{photos,sketches[,masks]}/ID.jpg
"""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastsketch.errors import FastsketchError, KeptName
from fastsketch.training.images import HEIC_HINT, IMAGE_SUFFIXES, is_heic, list_folder, list_images

OVERALL = "all"
"""No subset can be called so: it is the mean over all of them."""


@dataclass(frozen=True)
class Pair:
    """One photo, with its sketch and its mask where there are any."""

    photo: Path
    sketch: Path | None
    mask: Path | None
    subset: str
    name: str
    plain: bool = False
    """Of a plain pair of folders: the subset is the name that folder happens to have."""


def _images_by_id(folder: Path) -> dict[str, Path]:
    """Image files of a folder by id; a missing folder is an empty one."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in list_images(folder):
        name = _id(path.stem)
        if name in found:
            raise FastsketchError(f"{folder}: two images share the id {name!r}: {found[name].name}, {path.name}")
        found[name] = path
    return found


def _id(name: str) -> str:
    """What a photo and its sketch are found by: macOS writes é as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def _own_name(folder: Path) -> str:
    """What a folder is called, `.` and `..` too: drawings go into a folder of this name."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _check_inside(subset: str, where: str) -> None:
    """Refuse a subset that leads out of the folders it is looked for and drawn in."""
    parts = Path(subset).parts
    if not parts or Path(subset).is_absolute() or ".." in parts:
        raise FastsketchError(f"{where}: the subset {subset!r} is no folder inside the data's own")


def _read_manifest(path: Path, split: str) -> dict[str, list[str]]:
    """Ids of a split by subset, in the order of the file."""
    listed: dict[str, list[str]] = {}
    seen: dict[tuple[str, ...], int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"subset", "split", "id"} - set(reader.fieldnames or ())
            if missing:
                raise FastsketchError(f"{path}: expected columns subset,split,id; missing {', '.join(sorted(missing))}")
            for line, row in enumerate(reader, start=2):
                if not row["subset"] or not row["split"] or not row["id"]:
                    raise FastsketchError(f"{path}: line {line} is incomplete")
                _check_inside(row["subset"], f"{path}: line {line}")
                entry = subset, of, name = row["subset"], row["split"], _id(row["id"])
                if seen.setdefault(entry, line) != line:
                    raise FastsketchError(f"{path}: line {line} lists {subset},{of},{name} again, after {seen[entry]}")
                if of == split:
                    listed.setdefault(subset, []).append(name)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FastsketchError(f"{path}: unreadable manifest ({error})") from error
    return listed


def _folders(root: Path, split: str) -> tuple[dict[str, Path], dict[str, list[str]] | None]:
    """Folders holding photos/ and sketches/, by subset, and the manifest's ids where there is one."""
    if not root.is_dir():
        raise FastsketchError(f"{root}: no such data folder")
    manifest = root / "manifest.csv"
    if (root / "photos").is_dir():
        return {_own_name(root): root}, None
    if manifest.is_file():
        listed = _read_manifest(manifest, split)
        if not listed:
            raise FastsketchError(f"{manifest}: lists nothing for split {split!r}")
        return {subset: root / subset / split for subset in listed}, listed
    folders = {p.name: p / split for p in sorted(root.iterdir()) if (p / split / "photos").is_dir()}
    if not folders:
        raise FastsketchError(f"{root}: expected photos/ and sketches/, or SUBSET/{split}/photos; found neither")
    return folders, None


def name_some(ids: Sequence[str], most: int = 5) -> str:
    """The first few ids and how many more there are, for a message; it can be printed whatever they hold."""
    shown = (name.encode(errors="surrogateescape").decode(errors="backslashreplace") for name in ids[:most])
    return ", ".join(shown) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def _check_utf8(paths: Iterable[Path], root: Path) -> None:
    """Refuse names that no table could hold, and no checkpoint: they come from another system's encoding."""
    odd = [name for name in (str(path.relative_to(root)) for path in paths) if not _is_utf8(name)]
    if odd:
        raise FastsketchError(f"{root}: rename what is not UTF-8: {name_some(odd)}")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def not_read(names: Sequence[str]) -> str:
    """What to say of files that are no pictures as they are read here; empty: nothing."""
    if not names:
        return ""
    hint = f"; {HEIC_HINT}" if any(map(is_heic, names)) else ""
    return f"left out, not in a format that is read ({', '.join(IMAGE_SUFFIXES)}): {name_some(names)}{hint}"


def _not_read_in(folders: Iterable[Path], root: Path) -> str:
    """`not_read` of what lies in the photos and sketches of these folders."""
    rest: list[str] = []
    for folder in (folder / kind for folder in folders for kind in ("photos", "sketches", "masks")):
        if folder.is_dir():
            others = sorted(set(list_folder(folder)) - set(list_images(folder)))
            rest += [f"{path.relative_to(root)}{'/' if path.is_dir() else ''}" for path in others]
    return not_read(rest)


def left_out(root: str | Path, split: str = "train", *, unpaired: bool = False) -> list[str]:
    """Lines that say what `find_pairs` passes over; none where a manifest decides what is read.

    Raises:
        FastsketchError: no such folder, or nothing in it.
    """
    root = Path(root)
    folders, listed = _folders(root, split)
    if listed is not None:
        return []
    alone: list[str] = []
    for folder in folders.values() if not unpaired else ():
        photos, sketches = (_images_by_id(folder / kind) for kind in ("photos", "sketches"))
        alone += [str(path.relative_to(root)) for name, path in sketches.items() if name not in photos]
    sketches_alone = f"left out, having no photo of the same name: {name_some(alone)}" if alone else ""
    return [line for line in (_not_read_in(folders.values(), root), sketches_alone) if line]


def find_pairs(root: str | Path, split: str = "train", *, unpaired: bool = False) -> list[Pair]:
    """Lists the photos of a data folder with their sketches and masks, sorted by subset and id.

    A plain pair of folders (ROOT/photos, ROOT/sketches) has no splits: `split` is not looked at, the subset is
    ROOT's name.

    Args:
        root: data folder, in one of the layouts above.
        split: "train" or "test".
        unpaired: photos may lack a sketch of the same id (`Pair.sketch` is then None); see `find_sketches`.

    Returns:
        Pairs; a mask is None where the folder has none for that id.

    Raises:
        FastsketchError: no such folder, nothing in it, a listed file that is missing, a photo without a sketch, a name
            that is not UTF-8, or a subset named "all".
    """
    root = Path(root)
    folders, listed = _folders(root, split)
    plain = (root / "photos").is_dir()
    rest = _not_read_in(folders.values(), root)
    hint = f"; {rest}" if rest else ""
    pairs: list[Pair] = []
    lonely: list[str] = []
    for subset, folder in folders.items():
        if subset == OVERALL:
            called = folder if plain else root / subset
            raise KeptName(f"{called}: the name {OVERALL!r} is kept for the mean over all images: rename the folder")
        photos, sketches, masks = (_images_by_id(folder / kind) for kind in ("photos", "sketches", "masks"))
        ids = list(photos) if listed is None else listed[subset]
        for name in ids:
            if name not in photos:
                missing = folder / "photos" / name
                raise FastsketchError(f"{root / 'manifest.csv'}: lists {missing}, which is missing{hint}")
            if listed is not None and name not in sketches and not unpaired:
                missing = folder / "sketches" / name
                raise FastsketchError(f"{root / 'manifest.csv'}: lists {missing}, which is missing{hint}")
            if name not in sketches:
                lonely.append(f"{subset}/{name}")
            pairs.append(Pair(photos[name], sketches.get(name), masks.get(name), subset, photos[name].stem, plain))
    if not pairs:
        raise FastsketchError(f"{root}: no photos in {', '.join(str(f / 'photos') for f in folders.values())}{hint}")
    _check_utf8((pair.photo for pair in pairs), root)
    if plain and not _is_utf8(pairs[0].subset):
        raise FastsketchError(f"rename the folder {name_some([str(root)])}: it is not UTF-8")
    if lonely and not unpaired:
        raise FastsketchError(
            f"{root}: {len(lonely)} of {len(pairs)} photos have no sketch of the same name: {name_some(lonely)} "
            f"(if they are not meant to: fastsketch train --unpaired){hint}"
        )
    return sorted(pairs, key=lambda pair: (pair.subset, pair.name))


def note_on_split(root: str | Path, split: str) -> str:
    """What to say where `split` is asked of a data folder without splits; else empty."""
    if split != "test" or not (Path(root) / "photos").is_dir():
        return ""
    return f"{root} has no test split: if the generator was trained on it, these are the pictures it was trained on"


def find_sketches(root: str | Path, split: str = "train") -> list[Path]:
    """Lists all sketches of a data folder, for unpaired training; a manifest restricts them to its ids.

    Raises:
        FastsketchError: no such folder, no sketch in it, or one whose name is not UTF-8.
    """
    root = Path(root)
    folders, listed = _folders(root, split)
    found: list[Path] = []
    for subset in sorted(folders):
        sketches = _images_by_id(folders[subset] / "sketches")
        wanted = None if listed is None else set(listed[subset])
        found += [path for name, path in sketches.items() if wanted is None or name in wanted]
    if not found:
        looked, rest = ", ".join(str(f / "sketches") for f in folders.values()), _not_read_in(folders.values(), root)
        raise FastsketchError(f"{root}: no sketches in {looked}{'; ' if rest else ''}{rest}")
    _check_utf8(found, root)
    return found
