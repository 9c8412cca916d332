"""What a run shows of itself: a grid of pictures an epoch, and the loss curves."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from fastsketch.files import written_whole
from fastsketch.training.history import LossHistory, running_mean
from fastsketch.training.images import save_image, to_image
from fastsketch.training.translator import Translator

REGION_COLOURS = ((150, 150, 150), (86, 180, 233), (240, 228, 66), (230, 80, 30), (0, 158, 115), (204, 121, 167))
"""Background, then regions by ascending structure, and so on round."""

SMALLEST_TILE = 128
"""Tiles of smaller pictures are enlarged to this many pixels, to be looked at."""


@torch.no_grad()
def save_picture_grid(translator: Translator, examples: list[dict[str, Tensor]], path: Path, seed: int) -> None:
    """A row an example: photo | map with the sampled points coloured by region | generated | real.

    Args:
        translator: left in the mode it was in.
        examples: items of `SketchDataset`.
        path: the PNG, written whole.
        seed: of the sampled points, so that epochs can be compared.
    """
    device = next(translator.parameters()).device
    training = translator.training
    translator.eval()
    rows = []
    for example in examples:
        photo, mask = (example[name][None].to(device) for name in ("photo", "mask"))
        masks = mask if translator.config.mask else None
        drawn, features = translator.generator(photo, masks, return_features=True)
        structure = features.structure_or_zeros
        rng = torch.Generator(device).manual_seed(seed)
        sample = translator.sampler(structure, masks, generator=rng)
        points = draw_points(structure[0], sample.index[0], sample.region[0], _tile_size(*photo.shape[:-3:-1]))
        tiles = [to_image(example["photo"]), points, to_image(drawn[0]), to_image(example["sketch"])]
        rows.append([tile.convert("RGB") for tile in tiles])
    translator.train(training)
    save_image(tile_pictures(rows), path)


def draw_points(structure: Tensor, index: Tensor, region: Tensor, size: tuple[int, int]) -> Image.Image:
    """A structure map with the positions drawn on it.

    Args:
        structure: [h, w] in [0, 1].
        index: [S] flat positions on the map.
        region: [S] region of each, its colour.
        size: (width, height) of the picture, pixels.
    """
    values = (structure.float().clamp(0, 1).cpu().numpy() * 255).astype(np.uint8)
    colours = (matplotlib.colormaps["magma"](values)[..., :3] * 255).astype(np.uint8)
    picture = Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    height, width = structure.shape
    for place, number in zip(index.tolist(), region.tolist(), strict=True):
        x, y = (place % width + 0.5) * size[0] / width, (place // width + 0.5) * size[1] / height
        r = max(1.5, min(0.45 * size[0] / width, min(size) / 64))
        colour = REGION_COLOURS[number % len(REGION_COLOURS)]
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=(20, 20, 20))
    return picture


def _tile_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of a tile, the longer side `SMALLEST_TILE` at least."""
    scale = max(1.0, SMALLEST_TILE / max(width, height))
    return round(width * scale), round(height * scale)


def tile_pictures(rows: list[list[Image.Image]], gap: int = 4) -> Image.Image:
    """Pictures of one shape side by side, row below row, on white."""
    size = max(_tile_size(*tile.size) for row in rows for tile in row)
    width, height = (side + gap for side in size)
    sheet = Image.new("RGB", (len(rows[0]) * width - gap, len(rows) * height - gap), "white")
    for j, row in enumerate(rows):
        for i, tile in enumerate(row):
            fitted = tile if tile.size == size else tile.resize(size, Image.Resampling.BICUBIC)
            sheet.paste(fitted, (i * width, j * height))
    return sheet


def save_loss_curve(history: LossHistory, path: Path) -> None:
    """One small panel a loss over the steps: raw values, and their running mean."""
    names = history.names
    columns = min(3, len(names))
    figure = Figure(figsize=(4 * columns, 2.6 * -(-len(names) // columns)), layout="constrained")
    for panel, name in enumerate(names):
        axes = figure.add_subplot(-(-len(names) // columns), columns, panel + 1)
        points = [(row["step"], row[name]) for row in history.rows if name in row]
        steps, values = np.array(points).T
        axes.plot(steps, values, color="#bbbbbb", linewidth=0.8)
        axes.plot(steps, running_mean(values), color="#1f4e79", linewidth=1.6)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    with written_whole(path) as part:
        figure.savefig(part, format="png", dpi=110)
