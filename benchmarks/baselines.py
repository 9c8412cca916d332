"""The baselines by their short names; they are in `fastsketch.bench.baselines`."""

from fastsketch.bench.baselines.attention import statistics as attention_statistics
from fastsketch.bench.baselines.cut import draw_ids, index_patches, loss_path, normalize, patch_nce, project

__all__ = ["attention_statistics", "draw_ids", "index_patches", "loss_path", "normalize", "patch_nce", "project"]
