"""A data set whose canvases lie on the device, where they are also cut and mirrored."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastsketch.training.data import SketchDataset

FREE_SHARE = 0.25
"""Part of a GPU's free memory that the canvases may take."""


class DeviceDataset:
    """Batches of a `SketchDataset`, equal to the last bit, made on the device from uint8 canvases.

    The host draws crop, flip and choice (a few numbers an item, the very ones of the data set); pixels never leave the
    device.

    Args:
        dataset: read whole here; each file that cannot be read is an error now, and not in the middle of a run.
        device: where to keep it.

    Raises:
        FastsketchError: as the items of the data set.
    """

    def __init__(self, dataset: SketchDataset, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        canvases = dataset.canvases()
        self.photos, self.masks, self.sketches = (x.to(device) for x in canvases)
        # One mask more, for drawn sketches of no known photo: all of it is person.
        self.masks = torch.cat((self.masks, torch.full_like(self.masks[:1], 255)))
        # A table in place of arithmetic: a GPU divides by 255 with another rounding than a CPU.
        unit = torch.arange(256, dtype=torch.float32) / 255.0
        self._unit, self._signed = unit.to(device), (unit * 2.0 - 1.0).to(device)

    @staticmethod
    def size(dataset: SketchDataset) -> int:
        """Bytes it would take."""
        channels = (3 + 1) * len(dataset) + dataset.sketch_channels * len(dataset.drawings)
        return channels * dataset.image_size**2

    @classmethod
    def fits(cls, dataset: SketchDataset, device: torch.device) -> bool:
        """Whether it takes no more than its share of the device's free memory."""
        if device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(device)
        return cls.size(dataset) <= FREE_SHARE * free

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The items of these indices as one batch, in the data set's current epoch."""
        drawn = [self.dataset.draw(index) for index in indices]
        place = np.array([d.place for d in drawn])
        names = torch.tensor([list(indices), [d.sketch for d in drawn], [d.owner for d in drawn]])
        index, sketch, owner = names.to(self.device, non_blocking=True).unbind()
        where = self._grid(place)
        batch = {
            "photo": self._cut(self.photos, index, where, self._signed),
            "mask": self._cut(self.masks, index, where, self._unit),
            "index": index,
        }
        if self.dataset.unpaired:
            where = self._grid(np.array([d.sketch_place for d in drawn]))
            batch["sketch_mask"] = self._cut(self.masks, owner, where, self._unit)
        batch["sketch"] = self._cut(self.sketches, sketch, where, self._signed)
        return batch

    def _grid(self, place: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows [B, side, 1] and columns [B, 1, side] of the canvas for (top, left, mirrored) [B, 3]."""
        side = np.arange(self.dataset.crop_size)
        rows = place[:, :1] + side
        columns = place[:, 1:2] + np.where(place[:, 2:] > 0, side[::-1], side)
        both = torch.from_numpy(np.stack((rows, columns))).to(self.device, non_blocking=True)
        return both[0, :, :, None], both[1, :, None, :]

    @staticmethod
    def _cut(canvases: Tensor, which: Tensor, where: tuple[Tensor, Tensor], table: Tensor) -> Tensor:
        rows, columns = where
        pixels = canvases[which[:, None, None], :, rows, columns]  # [B, side, side, C]
        # Cloned, as one channel would pass for contiguous and for channels last, and convolutions go by the strides.
        return table[pixels.int()].permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
