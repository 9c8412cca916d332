"""A data set whose canvases lie on the device, where they are also cut and augmented."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastsketch.training.augment import Place, change_tones, warp
from fastsketch.training.data import SketchDataset

FREE_SHARE = 0.25
"""Part of a GPU's free memory that the canvases may take."""


class DeviceDataset:
    """Batches of a `SketchDataset`, equal to the last bit, made on the device from uint8 canvases.

    The host draws crop, flip, augmentation and choice (a few numbers an item, the very ones of the data set); pixels
    never leave the device.

    Args:
        dataset: read whole here; each file that cannot be read is an error now, and not in the middle of a run.
        device: where to keep it.

    Raises:
        FastsketchError: as the items of the data set.
    """

    def __init__(self, dataset: SketchDataset, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        photos, masks, sketches = dataset.canvases()
        # What is cut in one place lies in one canvas: photo, mask and, of a pair, the sketch.
        if dataset.unpaired:
            self._photos = torch.cat((photos, masks), 1).to(device)
            their_masks = torch.stack([dataset.mask_of_drawing(number) for number in range(len(sketches))])
            self._sketches = torch.cat((sketches, their_masks), 1).to(device)
        else:
            self._photos = torch.cat((photos, masks, sketches), 1).to(device)
        # A table in place of arithmetic: a GPU divides by 255 with another rounding than a CPU.
        unit = torch.arange(256, dtype=torch.float32) / 255.0
        self._unit, self._signed = unit.to(device), (unit * 2.0 - 1.0).to(device)

    @staticmethod
    def size(dataset: SketchDataset) -> int:
        """Bytes it would take."""
        of_sketch = dataset.sketch_channels + dataset.unpaired
        return ((3 + 1) * len(dataset) + of_sketch * len(dataset.drawings)) * math.prod(dataset.canvas_size)

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
        index = torch.tensor(list(indices)).to(self.device, non_blocking=True)
        photo, mask, sketch = self._cut(self._photos, index, [d.place for d in drawn]).tensor_split((3, 4), 1)
        if drawn[0].tones is not None:
            tones = torch.from_numpy(np.stack([d.tones for d in drawn]))
            photo = change_tones(photo, tones.to(self.device, non_blocking=True))
        batch = {"photo": self._signed[photo.int()], "mask": self._unit[mask.int()], "index": index}
        if self.dataset.unpaired:
            which = torch.tensor([d.sketch for d in drawn]).to(self.device, non_blocking=True)
            both = self._cut(self._sketches, which, [d.sketch_place for d in drawn])
            sketch, mask = both.split((self.dataset.sketch_channels, 1), 1)
            batch["sketch_mask"] = self._unit[mask.int()]
        batch["sketch"] = self._signed[sketch.int()]
        return batch

    def _cut(self, canvases: Tensor, which: Tensor, places: Sequence[Place]) -> Tensor:
        """Crops of the canvases [N, C, H, W] of these indices [B], each in its place: uint8 [B, C, h, w]."""
        height, width = self.dataset.item_size
        if places[0].matrix:
            matrices = torch.tensor([place.matrix for place in places]).to(self.device, non_blocking=True)
            return warp(canvases[which], matrices, (height, width))
        down, across = np.arange(height), np.arange(width)
        rows = np.array([place.top + down for place in places])
        columns = np.array([place.left + (across[::-1] if place.mirrored else across) for place in places])
        both = torch.from_numpy(np.concatenate((rows, columns), 1)).to(self.device, non_blocking=True)
        rows, columns = both[:, :height, None], both[:, None, height:]
        crops = canvases[which[:, None, None], :, rows, columns].permute(0, 3, 1, 2)  # of [B, h, w, C]
        # The layout of the data set's items: convolutions go by the strides.
        return crops.contiguous()
