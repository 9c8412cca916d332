"""The sampler in C++ gives the reference's indices for the same uniforms, ties and odd numbers included."""

import pytest
import torch

from fastsketch import reference


def draw(seed):
    """Densities, regions and uniforms of a random kind."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    def integer(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    positions = integer(1, 3000)
    samples = integer(1, min(positions, 400) + 1)
    density, uniform = rand(2, positions) ** 3, rand(2, positions)
    regions = torch.randint(0, integer(1, 9), (2, positions), generator=generator)
    kind = seed % 10
    if kind == 1:
        density = (4 * density).floor()  # many zeros, many equal
    elif kind == 2:
        density = torch.zeros_like(density)
    elif kind == 3:
        uniform = (16 * uniform).floor() / 16  # ties, and u = 0
    elif kind == 4:
        uniform = uniform * 0.01  # far from uniform: the bound on the keys is guessed wrong
    elif kind == 5:
        density[:, 0] = 1e8
    elif kind == 6:
        uniform = torch.ones_like(uniform)
    elif kind == 7:
        samples = positions
    elif kind == 8:
        density, uniform = density.double(), uniform.to(torch.float16)
    elif kind == 9:
        density, uniform, regions = density.bfloat16(), uniform.double(), regions * 100
    return density, None if seed % 4 == 0 else regions, uniform, samples


@pytest.mark.parametrize("seed", range(200))
def test_same_indices(cpp, seed):
    density, region, uniform, samples = draw(seed)
    for boost in (2.0, 1.0):
        ours = cpp.sample_patches(density, region, uniform, samples, 1.5, boost)
        assert torch.equal(ours, reference.sample_patches(density, region, uniform, samples, 1.5, boost))


def test_large(cpp):
    """A picture's worth of positions, where a few candidates stand for all."""
    generator = torch.Generator().manual_seed(0)
    density, uniform = (torch.rand(2, 65536, generator=generator) for _ in range(2))
    region = torch.randint(0, 4, (2, 65536), generator=generator, dtype=torch.int32)
    for samples in (1, 256, 20000):
        ours = cpp.sample_patches(density, region, uniform, samples, 1.5, 2.0)
        assert torch.equal(ours, reference.sample_patches(density, region, uniform, samples, 1.5, 2.0))
