"""Comparing generated sketches with drawn ones: FSIM, SSIM, LPIPS and FID behind one function."""

from fastsketch.metrics.evaluate import Item, evaluate, grey_photo_yardstick
from fastsketch.metrics.report import IMAGE_METRICS, METRICS, Evaluation

__all__ = ["IMAGE_METRICS", "METRICS", "Evaluation", "Item", "evaluate", "grey_photo_yardstick"]
