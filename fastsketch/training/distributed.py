"""Several processes under torchrun: who they are, what they share, and the loss over all of them.

`torchrun --nproc-per-node=N -m fastsketch train …` starts N processes; torch's DistributedDataParallel averages their
gradients (see `step.py`). Here is what remains: joining the group, agreeing on things, and `batch` negatives.
"""

import os
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from fastsketch.errors import FastsketchError
from fastsketch.functional import patch_nce
from fastsketch.reference.precision import unit_rows, widened


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: number of this one, 0 to size − 1; rank 0 writes the files.
        size: how many there are.
        control: a gloo group to agree on things by, on the host, whatever the devices are.
    """

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = field(default=None, compare=False)

    @property
    def writes(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def check_shares(self, count: int) -> None:
        """That the processes can share `count` pictures a step.

        Raises:
            FastsketchError: the processes cannot share them evenly.
        """
        if count % self.size:
            raise FastsketchError(
                f"batch_size counts the pictures of all processes together and must be a multiple of their "
                f"number, {self.size}; got {count}"
            )

    def highest(self, mine: int) -> int:
        """The highest of all processes' numbers; all must ask."""
        if self.size == 1:
            return mine
        number = torch.tensor(mine)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self.control)
        return int(number)

    def collect(self, mine: list[int]) -> list[int]:
        """The lists of all processes, one behind the other; all must ask."""
        if self.size == 1:
            return mine
        parts: list[list[int]] = [[]] * self.size
        dist.all_gather_object(parts, mine, group=self.control)
        return [number for part in parts for number in part]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def mean_(self, values: Tensor) -> Tensor:
        """Put the mean over all processes in place; not finite if it is not in one."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values


def join_world(device: str) -> tuple[World, str]:
    """Join the processes that torchrun started, if it did.

    Args:
        device: of the settings; auto or cuda becomes each process's own GPU.

    Returns:
        The world, and the device for this process.

    Raises:
        FastsketchError: more processes on this machine than GPUs.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        return World(), device
    if device in ("auto", "cuda") and torch.cuda.is_available():
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise FastsketchError(f"more processes than GPUs: this machine has {gpus}; give --nproc-per-node={gpus}")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=10))
    return World(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo")), device


def leave_world() -> None:
    """Leave the group again, so that torchrun sees an orderly end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def gather_rows(x: Tensor) -> list[Tensor]:
    """Every process's tensor of this shape, in order of rank; gradients go back to where the values came from."""
    return list(all_gather(x)) if torch.is_grad_enabled() and x.requires_grad else _gathered(x)


def _gathered(x: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return parts


def patch_nce_over_ranks(
    query: Tensor,  # [L, N, D]
    key: Tensor,  # [L, N, D]
    temperature: float = 0.07,
) -> Tensor:  # [L, N]
    """`patch_nce(…, normalize=True, reduction="none")` of local queries, all processes' keys being the negatives.

    The operator is called once a process: with ℓ_i its loss of query i among the keys of one process, of which the
    i-th counts as its positive, log Σ_j exp(s_ij/τ) over those keys is ℓ_i + s_ii/τ; the sums of all processes
    are then added. So no matrix of all queries and keys is stored.

    Args:
        query: [L, N, D] projected patches, L layers apart from one another.
        key: [L, N, D], its gradient reaching every process; shapes are the same in all of them.
        temperature: τ.

    Returns:
        float32 [L, N] (float64 for float64).
    """
    own = dist.get_rank()
    query, key = (unit_rows(widened(x)) for x in (query, key))  # as the operator normalises
    sums = []
    for rank, keys in enumerate(gather_rows(key)):
        stand_in = (query * keys).sum(-1) / temperature
        loss = patch_nce(query, keys, temperature=temperature, reduction="none")
        sums.append(loss + stand_in)
        if rank == own:
            positive = stand_in
    return torch.stack(sums).logsumexp(0) - positive
