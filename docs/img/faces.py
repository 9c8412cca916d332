"""Draw docs/img/faces.png from a run on the built-in faces, the demo's say:

make demo && .venv/bin/python docs/img/faces.py runs/demo/run runs/demo/faces

A row a test face: photo, structure map with the sampled positions (coloured by region), drawing, reference sketch.
"""

import sys
from pathlib import Path

import torch

from fastsketch.nn import StructureSampler
from fastsketch.training.checkpoint import load_generator
from fastsketch.training.data import SketchDataset
from fastsketch.training.images import save_image, to_image
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import find_pairs
from fastsketch.training.pictures import draw_points, tile_pictures
from fastsketch.training.run_files import load_settings

FACES = (1, 4, 6)
"""Which of the test faces."""


SCALE = 2
"""Of a map's picture: its points must be told apart."""


@torch.no_grad()
def main(run: Path, data: Path, target: Path) -> None:
    """Make the picture."""
    config = load_settings(run / "settings.json")
    generator = load_generator(run / "generator.safetensors").eval()
    pairs = find_pairs(data, "test")
    dataset = SketchDataset(
        [pairs[number] for number in FACES],
        image_size=config.image_size,
        canvas=config.canvas,
        sketch_channels=config.sketch_channels,
        masks=MaskSource("auto"),
        flip=False,
    )
    sampler = StructureSampler(config.num_patches, num_regions=config.num_regions, window=config.density_window)
    rows = []
    for item in (dataset[number] for number in range(len(dataset))):
        photo, mask = item["photo"][None], item["mask"][None]
        drawn, features = generator(photo, mask, return_features=True)
        size = photo.shape[-1] * SCALE, photo.shape[-2] * SCALE
        sample = sampler(features.structure, mask, generator=torch.Generator().manual_seed(0))
        points = draw_points(features.structure[0], sample.index[0], sample.region[0], size)
        tiles = [to_image(item["photo"]), points, to_image(drawn[0]), to_image(item["sketch"])]
        rows.append([tile.convert("RGB") for tile in tiles])
    save_image(tile_pictures(rows), target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(__file__).with_name("faces.png"))
