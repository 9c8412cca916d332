"""Processes of tests: forked from a server that has imported everything once, with one thread each."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from fastsketch.training.distributed import World

CONTEXT = multiprocessing.get_context("forkserver")
"""Where processes come from quickly: the imports cost seconds, a fork milliseconds."""
# Said while tests are collected: from Python 3.14 on the first loading process of a test starts this server.
CONTEXT.set_forkserver_preload(["fastsketch.training.trainer", "fastsketch.cpp"])


def start(function: Callable, *arguments) -> multiprocessing.Process:
    """A process that runs the function, with one thread."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the server when it starts: forking and OpenMP's threads do not mix
    try:
        process = CONTEXT.Process(target=function, args=arguments)
        process.start()
    finally:
        os.environ.pop("OMP_NUM_THREADS") if threads is None else os.environ.update(OMP_NUM_THREADS=threads)
    return process


def _joined(function: Callable, rank: int, size: int, folder: Path, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    world = World(rank, size, dist.new_group(backend="gloo"))
    torch.save(function(world, *arguments), folder / f"result_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run_together(function: Callable, size: int, folder: Path, *arguments) -> list:
    """function(world, *arguments) in each of `size` processes; their results, tensors and plain values."""
    folder.mkdir()
    running = [start(_joined, function, rank, size, folder, arguments) for rank in range(size)]
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0] * size
    return [torch.load(folder / f"result_{rank}.pt", weights_only=True) for rank in range(size)]
