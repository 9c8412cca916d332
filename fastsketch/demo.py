"""`fastsketch demo`: the full method, small, on the built-in faces; made to be watched once and called again."""

from dataclasses import replace
from pathlib import Path

from fastsketch.errors import FastsketchError
from fastsketch.metrics import Item, evaluate
from fastsketch.training.checkpoint import load_generator
from fastsketch.training.config import TrainConfig
from fastsketch.training.faces import write_faces
from fastsketch.training.generate import draw_sketches
from fastsketch.training.masks import MaskSource
from fastsketch.training.pairs import find_pairs
from fastsketch.training.trainer import Trainer
from fastsketch.weights import WeightsNotFound, load_vgg16_features

HEIGHT, WIDTH = 80, 64
TRAIN, TEST = 64, 8


def demo_config(out: Path, weights_dir: Path | None) -> TrainConfig:
    """Every part of the method on, sized for two CPU cores and three to five minutes."""
    config = TrainConfig(
        data="builtin",
        out=out / "run",
        image_size=HEIGHT,
        width=16,
        discriminator_width=16,
        projection_dim=64,
        num_patches=64,
        epochs=9,
        decay_epochs=8,
        lr=5e-4,
        lambda_gan=0.1,  # at weight 1 the first thousand steps draw stripes
        lambda_perceptual=10.0,
        perceptual_distance="l1",  # its settings were found with it
        lambda_pixel=10.0,  # with random perceptual weights the pixel loss has to do more
        weights_dir=weights_dir,
    )
    try:
        load_vgg16_features(weights_dir, download=False)
    except WeightsNotFound:
        print("VGG16's ImageNet weights are not on this machine: the perceptual loss uses fixed random ones here")
        return replace(config, perceptual_weights="random")
    return config


def run_demo(out: Path, weights_dir: Path | None = None, config: TrainConfig | None = None) -> None:
    """Draw faces, train, generate, evaluate; what is there already is not done again.

    Args:
        out: folder for all of it.
        weights_dir: folder of pretrained weights, if there is one.
        config: other settings than `demo_config`'s.
    """
    print(f"[1/4] drawing {TRAIN + TEST} faces with their sketches")
    data = write_faces(out / "faces", train=TRAIN, test=TEST, height=HEIGHT, width=WIDTH, quiet=False)

    config = config or demo_config(out, weights_dir)
    config = replace(config, resume=(config.out / "checkpoint.pt").exists())
    trainer = Trainer(config, data)
    steps = config.total_epochs * len(trainer.dataset)
    high, wide = trainer.dataset.item_size
    print(f"[2/4] training the full method: {steps} steps at {wide}×{high} pixels, width {config.width}")
    if not trainer.run():
        raise FastsketchError("the demo was interrupted and saved; call it again to go on")

    print("[3/4] drawing the test photos")
    generator = load_generator(trainer.paths.generator)
    pairs = find_pairs(data, "test")
    drawn = draw_sketches(generator, pairs, out / "sketches", MaskSource("auto"), overwrite=True)

    print("[4/4] comparing them with the true sketches")
    items = [Item(p.subset, p.name, path, p.sketch) for p, path in zip(pairs, drawn, strict=True)]
    result = evaluate(
        items, metrics=("fsim", "ssim", "lpips-alex"), weights_dir=weights_dir, download=False, quiet=True
    )
    print(result.table())
    result.save(out / "sketches")
    last = max(trainer.paths.pictures.glob("epoch_*.png"))
    print("look at:")
    print(f"  {last}   photo | structure map and sampled points | drawn | true sketch")
    print(f"  {trainer.paths.curve}   losses")
    print(f"  {out / 'sketches'}   the drawings and their metrics")
