"""Where a generator's maps have a cell that outshines all others: blots in the making (docs/results.md, Blots).

    python -m benchmarks.spikes --run RUN --data CUFS

Of each convolution that a norm or a ReLU follows, over the test photos: the root mean square over channels at the
largest cell in units of the map's median, and how often that cell lies in the padding, on the paper or on the person.
"""

import argparse
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from fastsketch.nn import ResnetGenerator
from fastsketch.nn.instance_norm import InstanceNorm
from fastsketch.training.checkpoint import load_generator
from fastsketch.training.generate import read_for_drawing, to_inputs
from fastsketch.training.images import Padding
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import find_pairs
from fastsketch.training.run_files import find_generator, trained_size

PLACES = "padding", "paper", "person"


def before_activations(generator: ResnetGenerator) -> dict[str, nn.Module]:
    """Convolutions of `model` that a norm or a ReLU follows, by number; those inside of blocks are left out."""
    layers = list(generator.model)
    return {
        str(number): layer
        for number, layer in enumerate(layers[:-1])
        if isinstance(layer, nn.Conv2d) and isinstance(layers[number + 1], (InstanceNorm, nn.ReLU))
    }


def place_of(cell: tuple[float, float], mask: Tensor, padding: Padding) -> str:
    """What a cell lies on.

    Args:
        cell: (row, column) as shares of the canvas.
        mask: [1, 1, H, W] of the person on the canvas.
        padding: of the picture on it.
    """
    height, width = mask.shape[-2:]
    row, column = int(cell[0] * height), int(cell[1] * width)
    inside = padding.top <= row < height - padding.bottom and padding.left <= column < width - padding.right
    if not inside:
        return "padding"
    return "person" if mask[0, 0, row, column] >= 0.5 else "paper"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run with a mask channel, or its weights")
    parser.add_argument("--data", type=Path, required=True, help="folder whose test split is drawn")
    arguments = parser.parse_args()
    weights = find_generator(arguments.run)
    generator, size, masks = load_generator(weights), trained_size(weights), MaskSource("auto")
    if not generator.mask_channel:
        parser.error(f"{weights}: --run must be of a generator with a mask channel: it says what is person")
    heights: dict[str, list[float]] = defaultdict(list)
    places: dict[str, Counter[str]] = defaultdict(Counter)
    seen: dict[str, Tensor] = {}
    for name, layer in before_activations(generator).items():
        layer.register_forward_hook(lambda _layer, _inputs, out, name=name: seen.__setitem__(name, out))
    pairs = find_pairs(arguments.data, "test")
    for pair in pairs:
        photo, mask = read_for_drawing(pair.photo, masks, size, given=pair.mask)
        x, m, padding = to_inputs(generator, photo, mask)
        generator(x, m)
        for name, maps in seen.items():
            energy = maps.float().square().mean(1)[0].sqrt()
            row, column = divmod(int(energy.argmax()), energy.shape[1])
            heights[name].append(float(energy.max() / energy.median()))
            cell = (row + 0.5) / energy.shape[0], (column + 0.5) / energy.shape[1]
            places[name][place_of(cell, m, padding)] += 1
    print(f"{len(pairs)} photos")
    print(f"| layer | largest cell, median | most | {' | '.join(PLACES)} |", "|---" * 6 + "|", sep="\n")
    for name, values in heights.items():
        counts = " | ".join(str(places[name][place]) for place in PLACES)
        print(f"| {name} | {median(values):.1f} | {max(values):.1f} | {counts} |")


if __name__ == "__main__":
    main()
