"""A data set whose canvases lie on the device, where they are also cut and augmented."""

from collections.abc import Callable, Sequence

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
        names = torch.tensor([list(indices), [d.sketch for d in drawn], [d.owner for d in drawn]])
        index, sketch, owner = names.to(self.device, non_blocking=True).unbind()
        cut = self._cutter([d.place for d in drawn])
        photo = cut(self.photos, index)
        if self.dataset.color_jitter:
            tones = torch.from_numpy(np.stack([d.tones for d in drawn]))
            photo = change_tones(photo, tones.to(self.device, non_blocking=True))
        batch = {"photo": self._signed[photo.int()], "mask": self._unit[cut(self.masks, index).int()], "index": index}
        if self.dataset.unpaired:
            cut = self._cutter([d.sketch_place for d in drawn])
            batch["sketch_mask"] = self._unit[cut(self.masks, owner).int()]
        batch["sketch"] = self._signed[cut(self.sketches, sketch).int()]
        return batch

    def _cutter(self, places: Sequence[Place]) -> Callable[[Tensor, Tensor], Tensor]:
        """Crops of canvases [N, C, S, S] at these places, given the indices [B]: uint8 [B, C, side, side]."""
        side = self.dataset.crop_size
        if self.dataset.random_affine:
            matrices = torch.tensor([place.matrix for place in places]).to(self.device, non_blocking=True)
            return lambda canvases, which: warp(canvases[which], matrices, side)
        line = np.arange(side)
        rows = np.array([place.top + line for place in places])
        columns = np.array([place.left + (line[::-1] if place.mirrored else line) for place in places])
        both = torch.from_numpy(np.stack((rows, columns))).to(self.device, non_blocking=True)
        rows, columns = both[0, :, :, None], both[1, :, None, :]
        # Cloned, as one channel would pass for contiguous and for channels last, and convolutions go by the strides.
        return lambda canvases, which: (
            canvases[which[:, None, None], :, rows, columns]  # [B, side, side, C]
            .permute(0, 3, 1, 2)
            .clone(memory_format=torch.contiguous_format)
        )
