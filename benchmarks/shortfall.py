"""Where do drawings lose their score? Put the artist's own strokes into one part of each, and see what that brings.

    python -m benchmarks.shortfall DRAWN --data HELD_OUT --weights-dir WEIGHTS

HELD_OUT is a folder of `benchmarks.quality_data --holdout`: training pairs, not test pairs. The parts of a picture
H×W: frame, a strip of 1/32 of H along the edges (of a scan: paper's end, notes); face, the middle ellipse of half its
height and 0.54 of its width; hair and outline, round it out to an ellipse of 0.84 of both; paper, the rest. Also what
blurring all of a drawing (σ in pixels), or more or less ink, would do to its score.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from fastsketch.commands.evaluate import drawings_of
from fastsketch.metrics import IMAGE_METRICS, Item, evaluate
from fastsketch.training.images import fit_within, read_sketch
from fastsketch.training.pairs import Pair, find_pairs

PARTS = ("frame", "paper", "hair and outline", "face")
Change = Callable[[Image.Image, Image.Image], Image.Image]  # (drawing, sketch), both grey and of one size


def part_of(height: int, width: int) -> np.ndarray:
    """The number in PARTS of each pixel, [H, W]."""
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    outside = ((y[:, None] - 0.52) / 0.42) ** 2 + ((x - 0.5) / 0.42) ** 2 > 1
    face = ((y[:, None] - 0.55) / 0.25) ** 2 + ((x - 0.5) / 0.27) ** 2 < 1
    edge = height // 32
    frame = np.ones((height, width), dtype=bool)
    frame[edge : height - edge, edge : width - edge] = False
    return np.select([frame, outside, face], [0, 1, 3], 2)


def truth_in(part: int) -> Change:
    """The sketch in that part, the drawing elsewhere."""

    def change(drawing: Image.Image, sketch: Image.Image) -> Image.Image:
        inside = part_of(drawing.height, drawing.width) == part
        return Image.composite(sketch, drawing, Image.fromarray(inside.astype(np.uint8) * 255))

    return change


def blurred(sigma: float) -> Change:
    """The drawing blurred."""
    return lambda drawing, sketch: drawing.filter(ImageFilter.GaussianBlur(sigma))


def inked(factor: float) -> Change:
    """The drawing with so many times the ink."""
    return lambda drawing, sketch: drawing.point(lambda value: 255 - min((255 - value) * factor, 255))


CHANGES: dict[str, Change] = {
    "as drawn": lambda drawing, sketch: drawing,
    **{f"the artist's {name}": truth_in(part) for part, name in enumerate(PARTS)},
    "blurred, σ = 0.4": blurred(0.4),
    "blurred, σ = 0.7": blurred(0.7),
    "0.9 of the ink": inked(0.9),
    "1.15 of the ink": inked(1.15),
}


def write_changed(change: Change, pairs: list[Pair], drawn: Path, folder: Path, image_size: int | None) -> list[Item]:
    """The changed drawings, as something to evaluate."""
    items = []
    for number, (pair, found) in enumerate(zip(pairs, drawings_of(pairs, drawn), strict=True)):
        sketch = read_sketch(pair.sketch)
        sketch = fit_within(sketch, image_size) if image_size else sketch
        drawing = Image.open(found.generated).convert("L")
        path = folder / f"{number}.png"
        change(drawing, sketch).save(path)
        items.append(Item(pair.subset, pair.name, path, pair.sketch))
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawn", type=Path, help="folder of drawings, as `fastsketch generate` writes it")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--image-size", type=int, help="as for `fastsketch evaluate`")
    parser.add_argument("--weights-dir", type=Path)
    options = parser.parse_args()
    pairs = find_pairs(options.data, "test")
    print(f"| {len(pairs)} pairs | FSIM ↑ | SSIM ↑ | LPIPS-alex ↓ | LPIPS-vgg ↓ |\n|---|---|---|---|---|", flush=True)
    for name, change in CHANGES.items():
        with tempfile.TemporaryDirectory() as folder:
            items = write_changed(change, pairs, options.drawn, Path(folder), options.image_size)
            settings = {"weights_dir": options.weights_dir, "quiet": True, "image_size": options.image_size}
            means = evaluate(items, metrics=IMAGE_METRICS, **settings).summary["all"]
        print(f"| {name} | " + " | ".join(f"{means[metric]:.4f}" for metric in IMAGE_METRICS) + " |", flush=True)


if __name__ == "__main__":
    main()
