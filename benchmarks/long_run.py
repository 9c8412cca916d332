"""Is a long run's memory flat? Trains a tiny model for ten thousand steps and prints its resident memory on the way.

Everything of a real run is on: logging, TensorBoard, pictures, checkpoints. One thread.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch

from fastsketch.training.config import TrainConfig
from fastsketch.training.faces import write_faces
from fastsketch.training.trainer import Trainer

SHOWN = (100, 500, 1000, 2000, 5000, 10_000)


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(steps: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = write_faces(Path(folder) / "faces", train=10, test=2, height=40, width=32)
        config = TrainConfig(
            data="builtin",
            out=Path(folder) / "run",
            image_size=40,
            crop_size=32,
            width=4,
            blocks=5,
            discriminator_width=4,
            projection_dim=8,
            num_patches=16,
            lambda_perceptual=0.0,
            epochs=steps // 10,
            decay_epochs=0,
            pictures=1,
            device="cpu",
        )
        trainer = Trainer(config, data, quiet=True)
        train_step = trainer.train_step

        def step(batch):
            if trainer.step in SHOWN:
                print(f"step {trainer.step:6}: {resident_mib():7.1f} MiB resident", flush=True)
            return train_step(batch)

        trainer.train_step = step
        trainer.run()
        print(f"step {trainer.step:6}: {resident_mib():7.1f} MiB resident")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", type=int, nargs="?", default=SHOWN[-1])
    main(parser.parse_args().steps)
