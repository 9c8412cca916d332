"""FSIM and SSIM of image batches, by piq."""

from __future__ import annotations

import piq
from torch import Tensor


def fsim(generated: Tensor, reference: Tensor) -> Tensor:  # [B, 1, H, W] twice -> [B]
    """Feature similarity on luminance [L: Zhang et al., IEEE TIP 20(8), 2011], as computed by piq.

    Args:
        generated: [B, 1, H, W] float32 in [0, 1].
        reference: the same shape and range.

    Returns:
        [B] float32; 1 for equal images, higher is better.
    """
    return piq.fsim(generated, reference, reduction="none", data_range=1.0, chromatic=False)


def ssim(generated: Tensor, reference: Tensor) -> Tensor:  # [B, 1, H, W] twice -> [B]
    """Structural similarity on luminance [L: Wang et al., IEEE TIP 13(4), 2004], as computed by piq.

    Window 11x11, sigma 1.5. From 384 pixels on (smaller side) piq first averages both images down by
    round(side / 256).

    Args:
        generated: [B, 1, H, W] float32 in [0, 1], at least 11x11.
        reference: the same shape and range.

    Returns:
        [B] float32; 1 for equal images, higher is better.
    """
    return piq.ssim(generated, reference, reduction="none", data_range=1.0)
