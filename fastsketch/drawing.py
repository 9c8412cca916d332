"""A photo drawn, with all that the generator saw on the way: what the report and the demo app show."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from fastsketch.errors import FastsketchError
from fastsketch.nn import ResnetGenerator
from fastsketch.nn.sampler import StructureSampler
from fastsketch.training.images import crop_back, mask_to_tensor, pad_to_multiple, to_image, to_tensor
from fastsketch.training.pictures import draw_points
from fastsketch.training.trainer import RunPaths

MAP_SIDE = 320
"""The longer side of a map's picture, at least, in pixels: its points must be told apart."""


@dataclass(frozen=True)
class Drawing:
    """What became of one photo.

    Attributes:
        sketch: of the photo's size, grey or RGB.
        points: the structure map with the sampled points on it, RGB, of the photo's proportions; without attention
            there is no map, and the points stand on black.
        has_map: whether the generator has a map.
    """

    sketch: Image.Image
    points: Image.Image
    has_map: bool


def find_generator(source: Path) -> Path:
    """The weights file of a run's folder, or the file itself.

    Raises:
        FastsketchError: neither is there.
    """
    path = RunPaths(source).generator if source.is_dir() else source
    if not path.is_file():
        what = "no generator.safetensors in this folder" if source.is_dir() else "no such file or run"
        raise FastsketchError(f"{source}: {what}")
    return path


@torch.inference_mode()
def draw(
    generator: ResnetGenerator,
    photo: Image.Image,
    mask: Image.Image | None,
    sampler: StructureSampler,
    seed: int = 0,
) -> Drawing:
    """Draw a photo, and the points that training would sample on it.

    Args:
        generator: in eval mode, on the device to use.
        photo: RGB, any size; padded to multiples of 4 and cut back.
        mask: mode L, the photo's size; needed by a generator with a mask channel.
        sampler: of the run's settings.
        seed: of the sampled points.
    """
    device = next(generator.parameters()).device
    x, padding = pad_to_multiple(to_tensor(photo)[None], 4)
    m = None
    if generator.mask_channel:
        if mask is None:
            raise ValueError("mask must be given: the generator has a mask channel")
        m = pad_to_multiple(mask_to_tensor(mask)[None], 4)[0].to(device)
    drawn, features = generator(x.to(device), m, return_features=True)
    structure = features.structure
    if structure is None:
        structure = drawn.new_zeros((1, *features.sizes[-1]))
    sample = sampler(structure, m, generator=torch.Generator(device).manual_seed(seed))
    scale = max(1, -(-MAP_SIDE // max(photo.size)))
    points = draw_points(
        structure[0], sample.index[0], sample.region[0], (x.shape[-1] * scale, x.shape[-2] * scale)
    ).crop((padding.left * scale, padding.top * scale, (padding.left + photo.width) * scale,
            (padding.top + photo.height) * scale))
    return Drawing(to_image(crop_back(drawn, padding)[0]), points, features.structure is not None)
