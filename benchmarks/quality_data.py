"""A data folder for quality runs: links to pairs, masks made once for all runs, and held-out training pairs.

`python -m benchmarks.quality_data --data DIR --out DIR --holdout 40` writes a folder whose test split is held-out
*training* pairs: decisions are tuned on it, and the real test pairs are never looked at.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from fastsketch.training.images import read_photo, save_image
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import Pair, find_pairs


def split_training(pairs: Sequence[Pair], held: int, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Training pairs as (rest, held out): `held` of them, from each subset in proportion, the same for a seed."""
    if not 0 < held < len(pairs):
        raise ValueError(f"held must lie in 1..{len(pairs) - 1}, got {held}")
    order = list(pairs)
    random.Random(seed).shuffle(order)
    # Sorted by how far along its own subset each stands, so that the first `held` are spread over the subsets.
    place: dict[str, int] = {}
    share = {}
    for pair in order:
        place[pair.subset] = place.get(pair.subset, 0) + 1
        share[pair] = place[pair.subset]
    order.sort(key=lambda pair: (share[pair] - 0.5) / place[pair.subset])
    return order[held:], order[:held]


def prepare(data: Path, out: Path, *, holdout: int = 0, most: int | None = None) -> Path:
    """Link the pairs of `data` into `out` and make the masks that they lack; what is there already stays.

    Args:
        data: SUBSET/{train,test}/{photos,sketches[,masks]}.
        out: folder to fill in the same layout.
        holdout: this many training pairs become the test split; the real one is then left out. 0: the real split.
        most: of each subset and split only this many pairs, for rehearsals.

    Returns:
        `out`.
    """
    train = find_pairs(data, "train")
    splits = {"train": train, "test": find_pairs(data, "test")} if not holdout else {}
    if holdout:
        splits["train"], splits["test"] = split_training(train, holdout)
    masks = MaskSource("auto")
    for split, pairs in splits.items():
        counts: dict[str, int] = {}
        for pair in pairs:
            counts[pair.subset] = counts.get(pair.subset, 0) + 1
            if most is None or counts[pair.subset] <= most:
                _place(pair, out / pair.subset / split, masks)
    return out


def _place(pair: Pair, folder: Path, masks: MaskSource) -> None:
    for kind, path in (("photos", pair.photo), ("sketches", pair.sketch), ("masks", pair.mask)):
        if path is not None:
            link = folder / kind / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path.resolve())
    made = folder / "masks" / f"{pair.name}.png"
    if pair.mask is None and not made.exists():
        save_image(masks(read_photo(pair.photo), name=str(pair.photo)), made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--holdout", type=int, default=0, help="training pairs to hold out as the test split")
    arguments = parser.parse_args()
    print(prepare(arguments.data, arguments.out, holdout=arguments.holdout))


if __name__ == "__main__":
    main()
