"""What the CPU's and the GPU's benchmarks have in common; the cases themselves are `fastsketch.bench.cases`."""

from fastsketch.bench.cases import CASES
from fastsketch.bench.layers import BORDERS, DIM, LAYERS, SAMPLES

__all__ = ["BORDERS", "CASES", "DIM", "LAYERS", "SAMPLES"]
