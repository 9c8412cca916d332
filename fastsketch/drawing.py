"""A photo drawn, with all that the generator saw on the way: what the report and the demo app show."""

from dataclasses import dataclass

import torch
from PIL import Image

from fastsketch.nn import ResnetGenerator
from fastsketch.nn.sampler import StructureSampler
from fastsketch.training.generate import to_inputs
from fastsketch.training.images import crop_back, to_image
from fastsketch.training.pictures import draw_points

MAP_SIDE = 320
"""The longer side of a map's picture, at least, in pixels: its points must be told apart."""


@dataclass(frozen=True)
class Drawing:
    """What became of one photo.

    Attributes:
        sketch: of the photo's size, grey or RGB.
        structure: the structure map, RGB, of the photo's proportions, enlarged; black without attention.
        points: the same with the sampled points on it, coloured by region.
    """

    sketch: Image.Image
    structure: Image.Image
    points: Image.Image


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
        photo: RGB, any size; padded as in training and cut back.
        mask: mode L, the photo's size; needed by a generator with a mask channel.
        sampler: of the run's settings.
        seed: of the sampled points.

    Raises:
        ValueError: no mask for a generator with a mask channel.
    """
    x, m, padding = to_inputs(generator, photo, mask)
    drawn, features = generator(x, m, return_features=True)
    structure = features.structure_or_zeros
    sample = sampler(structure, m, generator=torch.Generator(x.device).manual_seed(seed))
    scale = max(1, -(-MAP_SIDE // max(photo.size)))
    size = x.shape[-1] * scale, x.shape[-2] * scale
    left, top = padding.left * scale, padding.top * scale
    inside = left, top, left + photo.width * scale, top + photo.height * scale
    points = draw_points(structure[0], sample.index[0], sample.region[0], size).crop(inside)
    nothing = sample.index[0, :0]
    plain = draw_points(structure[0], nothing, nothing, size).crop(inside)
    return Drawing(to_image(crop_back(drawn, padding)[0]), plain, points)
