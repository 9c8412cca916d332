"""Where a run's batches come from: the device's memory or loading processes, in the order of the epoch."""

import multiprocessing
import os
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from fastsketch.errors import FastsketchError
from fastsketch.training.config import TrainConfig
from fastsketch.training.data import EpochSampler, SketchDataset
from fastsketch.training.device_data import DeviceDataset
from fastsketch.training.distributed import World


def _begin_loading(worker: int) -> None:
    """What a loading process does first: leave what a terminal sends to all to the training process, and end with it.

    From Python 3.14 on it is no fork of that process: it has none of its handlers, and another parent, so that torch
    does not notice when the training process is killed.
    """
    os.setpgrp()
    owner = multiprocessing.parent_process()
    assert owner is not None

    def end_with_it() -> None:
        owner.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()


class ShardedBatches(Sampler[list[int]]):
    """This process's part of each batch of an epoch: of b pictures those at rank, rank + size, …

    No picture comes twice in an epoch. Where an epoch's last batch cannot be shared evenly, the pictures over (fewer
    than there are processes) are left out this time; the next epoch's order leaves out others. One process alone
    leaves none out.

    Args:
        order: of the epoch.
        batch_size: of all processes together.
        world: the processes.

    Raises:
        FastsketchError: a batch size that they cannot share, or fewer pictures than processes.
    """

    def __init__(self, order: EpochSampler, batch_size: int, world: World) -> None:
        self.order, self.batch_size, self.world = order, batch_size, world
        world.check_shares(batch_size)
        if order.length < world.size:
            raise FastsketchError(f"{order.length} pictures cannot be shared by {world.size} processes")

    @property
    def per_epoch(self) -> int:
        """Batches of a whole epoch."""
        whole, rest = divmod(self.order.length, self.batch_size)
        return whole + (rest >= self.world.size)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.order), self.batch_size)
        return whole + (rest >= self.world.size)

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(self.order)
        for start in range(0, len(indices), self.batch_size):
            batch = indices[start : start + self.batch_size]
            shared = len(batch) - len(batch) % self.world.size
            if shared:
                yield batch[self.world.rank : shared : self.world.size]


class Batches:
    """The batches of a run, on its device.

    Args:
        dataset: what to draw from.
        config: the run's settings.
        device: where batches are wanted.
        on_device: keep the pictures there, too; with "auto" in the settings only where they fit.
        world: the processes.

    Raises:
        FastsketchError: pictures that do not fit where they must, or cannot be shared.
    """

    def __init__(
        self, dataset: SketchDataset, config: TrainConfig, device: torch.device, on_device: bool, world: World
    ) -> None:
        self.dataset, self.device = dataset, device
        self.order = EpochSampler(len(dataset), config.seed)
        self.shards = ShardedBatches(self.order, config.batch_size, world)
        fits = on_device and DeviceDataset.fits(dataset, device)
        if config.data_on_device == "on" and not fits:
            raise FastsketchError(
                f"data_on_device is on, but {DeviceDataset.size(dataset) / 2**30:.1f} GiB of pictures are more than "
                f"their share of {device}'s free memory"
            )
        self._resident = DeviceDataset(dataset, device) if fits else None
        self._loader = None if fits else self._make_loader(config.workers)

    def _make_loader(self, workers: int) -> DataLoader:
        return DataLoader(
            self.dataset,
            batch_sampler=self.shards,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_begin_loading,
            generator=torch.Generator(),
        )

    @property
    def per_epoch(self) -> int:
        """Steps of a whole epoch."""
        return self.shards.per_epoch

    def of_epoch(self, epoch: int, seen: int = 0) -> Iterator[dict[str, Tensor]]:
        """The rest of an epoch after `seen` pictures (of all processes).

        Raises:
            FastsketchError: a picture that cannot be read, named.
        """
        self.dataset.set_epoch(epoch)
        self.order.set_epoch(epoch, seen)
        if self._resident is not None:
            for indices in self.shards:
                yield self._resident.batch(indices)
            return
        assert self._loader is not None
        try:
            for batch in self._loader:
                yield {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        except FastsketchError as error:
            # A loading process wraps what happened in it; the last line says it.
            message = str(error).strip().splitlines()[-1]
            raise FastsketchError(message.removeprefix("fastsketch.errors.FastsketchError: ")) from error
