"""Does the structure map find structure? Compare definitions of it on a trained generator and paired sketches.

    python -m benchmarks.structure_map --run RUN --data HELD_OUT --window 3

HELD_OUT is a folder of `benchmarks.quality_data --holdout`: training pairs, not test pairs. For each definition,
the means over the pairs: the rank correlation of the sampling density (box mean of the map) with the density of drawn
strokes, everywhere and inside the person mask; the weight an average background position gets, in units of the
picture's mean; how evenly samples spread (exp of the entropy of the sampling weights over the number of positions, 1 is
uniform); and the share of positions above the threshold, which are drawn twice as often.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsketch.functional import attention_statistics, local_density
from fastsketch.nn.attention import DualAttention
from fastsketch.training.checkpoint import load_generator
from fastsketch.training.data import SketchDataset
from fastsketch.training.pairs import find_pairs
from fastsketch.training.run_files import load_settings

Scores = dict[str, Tensor]


def minmax(score: Tensor) -> Tensor:  # [B, H, W]
    flat = score.flatten(1)
    low, high = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
    return (score - low) / torch.where(high > low, high - low, 1)


def norm(values: Tensor) -> Tensor:  # [B, C, H, W] -> [B, H, W]
    return torch.linalg.vector_norm(values, dim=1)


def variation(values: Tensor) -> Tensor:  # [B, C, H, W] -> [B, H, W]
    return norm(values - F.avg_pool2d(values, 3, 1, 1, count_include_pad=False))


def branch_scores(attention: DualAttention, features: Tensor) -> Scores:
    """What the two branches offer: [B, C, H, W] each."""
    query, key, value = (b(features).flatten(2).mT for b in (attention.query, attention.key, attention.value))
    received, entropy = attention_statistics(query.contiguous(), key.contiguous())
    batch, _, height, width = features.shape
    grid = (batch, 1, height, width)
    spatial = F.scaled_dot_product_attention(query, key, value).mT.reshape(features.shape)
    channel = attention._channel_branch(features)
    return {"r": received.view(grid), "-H": -entropy.view(grid), "AV": spatial, "E": channel, "F": features}


DEFINITIONS: dict[str, Callable[[Scores], Tensor]] = {
    "½ r + ½ ‖E‖ (the first one)": lambda s: minmax(s["r"][:, 0]) + minmax(norm(s["E"])),
    "r": lambda s: s["r"][:, 0],
    "‖E‖": lambda s: norm(s["E"]),
    "−H, row entropy": lambda s: s["-H"][:, 0],
    "½ −H + ½ ‖E‖": lambda s: minmax(s["-H"][:, 0]) + minmax(norm(s["E"])),
    "½ r + ½ ‖δE‖": lambda s: minmax(s["r"][:, 0]) + minmax(variation(s["E"])),
    "½ ‖δAV‖ + ½ ‖δE‖": lambda s: minmax(variation(s["AV"])) + minmax(variation(s["E"])),
    "½ δr + ½ ‖δE‖ (chosen)": lambda s: minmax(variation(s["r"])) + minmax(variation(s["E"])),
    "‖δF‖, no attention": lambda s: variation(s["F"]),
}


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of two vectors; ties in order of position."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()


def stroke_density(sketch: Tensor, size: tuple[int, int], window: int) -> Tensor:  # [B, H, W]
    """Gradient magnitude of the drawn sketch, averaged over the map's cells and its density window."""
    padded = F.pad(sketch, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    strokes = F.adaptive_avg_pool2d((across.square() + down.square()).sqrt(), size)[:, 0]
    return local_density(strokes, window)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run with attention")
    parser.add_argument("--data", type=Path, required=True, help="folder whose test split is looked at")
    parser.add_argument("--window", type=int, default=7, help="side of the density's box mean, in map positions")
    arguments = parser.parse_args()
    generator = load_generator(arguments.run / "generator.safetensors")
    config = load_settings(arguments.run / "settings.json")
    pairs = find_pairs(arguments.data, "test")
    data = SketchDataset(pairs, image_size=config.image_size, canvas=config.canvas, flip=False)
    photo, sketch, mask = (torch.stack([item[name] for item in data]) for name in ("photo", "sketch", "mask"))
    features, _ = generator._encode(photo, mask if generator.mask_channel else None)
    grid = tuple(features.shape[2:])
    scores = branch_scores(generator.attention, features)
    strokes = stroke_density(sketch, grid, arguments.window)
    person = F.adaptive_avg_pool2d(mask, grid)[:, 0]

    print(f"{len(pairs)} pairs, map {grid[0]}×{grid[1]}, window {arguments.window}")
    heads = "map", "correlation", "in the person", "background's weight", "evenness", "above threshold"
    print(f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", sep="\n")
    for name, definition in DEFINITIONS.items():
        density = local_density(minmax(definition(scores)), arguments.window)
        relative = density / density.mean((1, 2), keepdim=True)
        weight = relative * torch.where(relative > 1.5, 2.0, 1.0)
        weight = weight / weight.mean((1, 2), keepdim=True)
        share = (weight / weight[0].numel()).flatten(1)
        inside = [rank_correlation(d[p >= 0.5], t[p >= 0.5]) for d, t, p in zip(density, strokes, person, strict=True)]
        everywhere = [rank_correlation(d.flatten(), t.flatten()) for d, t in zip(density, strokes, strict=True)]
        figures = [
            sum(everywhere) / len(pairs),
            sum(inside) / len(pairs),
            ((weight * (1 - person)).sum((1, 2)) / (1 - person).sum((1, 2)).clamp_min(1)).mean().item(),
            (-torch.special.xlogy(share, share).sum(1)).exp().mean().item() / share.shape[1],
            (relative > 1.5).float().mean().item(),
        ]
        print(f"| {name} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")


if __name__ == "__main__":
    main()
