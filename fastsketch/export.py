"""A trained generator as an ONNX file: any batch, any size, and proven to draw what PyTorch draws.

Needs the extra `export` (onnx, onnxscript, onnxruntime).
"""

import importlib.util
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastsketch import __version__
from fastsketch.errors import FastsketchError
from fastsketch.files import write_bytes
from fastsketch.nn import ResnetGenerator
from fastsketch.nn.convolution import use_winograd
from fastsketch.training.checkpoint import load_generator
from fastsketch.training.run_files import find_generator

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
TOLERANCE = 1e-3
"""Largest difference allowed between the two runtimes, in a picture that spans [-1, 1]."""
CHECKED = ((1, 64, 48), (2, 36, 100), (3, 8, 8))
"""(batch, height, width) at which every exported file is compared with PyTorch before it is written."""
RANGES = {"photo": "[B, 3, H, W] float32 in [-1, 1], RGB", "mask": "[B, 1, H, W] float32 in [0, 1], 1 = person"}


@dataclass(frozen=True)
class Exported:
    """What `export_onnx` wrote.

    Attributes:
        path: the file.
        inputs: names of its inputs.
        difference: the largest that was seen between ONNX Runtime and PyTorch, over `CHECKED`.
    """

    path: Path
    inputs: tuple[str, ...]
    difference: float


def export_onnx(source: Path, target: Path) -> Exported:
    """Write a generator as ONNX, after comparing it with PyTorch in ONNX Runtime.

    Inputs are `photo` [B, 3, H, W] in [-1, 1] and, for a generator with a mask channel, `mask` [B, 1, H, W] in [0, 1];
    the output is `sketch` [B, C, H, W] in [-1, 1]. B is any, H and W are multiples of 4, at least 8. The attention
    over the H·W/16 positions is one matrix there: 4·(H·W/16)² bytes a picture, 64 MiB at 256², 1 GiB at 512².

    Args:
        source: a run's folder, or generator.safetensors.
        target: the file to write.

    Raises:
        FastsketchError: the extra is not installed, no generator, a target that cannot be written, or drawings that
            differ by more than `TOLERANCE`: no file then.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise FastsketchError(f"export needs {', '.join(missing)}: pip install 'fastsketch[export]'")
    if target.is_dir():
        raise FastsketchError(f"{target}: is a folder; name the file to write, {target / 'generator.onnx'} say")
    generator = load_generator(find_generator(source)).requires_grad_(False)
    use_winograd(generator, False)  # what is written are the framework's convolutions
    content = _to_onnx(generator)
    difference = compare(content, generator)
    if not difference <= TOLERANCE:
        raise FastsketchError(
            f"ONNX Runtime draws other pictures than PyTorch: they differ by {difference:.2g}; nothing was written"
        )
    write_bytes(target, content)
    return Exported(target, _inputs(generator), difference)


def compare(content: bytes, generator: ResnetGenerator, sizes: tuple[tuple[int, int, int], ...] = CHECKED) -> float:
    """The largest difference between ONNX Runtime's drawings and PyTorch's, of random pictures of these sizes.

    Args:
        content: of an ONNX file.
        generator: in eval mode, on the CPU.
        sizes: (batch, height, width) of each comparison.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    rng = torch.Generator().manual_seed(0)
    worst = 0.0
    for size in sizes:
        inputs = _example(generator, *size, rng)
        with torch.inference_mode():
            expected = generator(*inputs.values()).numpy()
        (drawn,) = session.run(["sketch"], {name: value.numpy() for name, value in inputs.items()})
        if drawn.shape != expected.shape or not np.isfinite(drawn).all():
            return math.inf
        worst = max(worst, float(np.abs(drawn - expected).max()))
    return worst


def _sizes(generator: ResnetGenerator) -> str:
    """What sizes its pictures may have, in words."""
    height, width = generator.frame or (1, 1)
    shape = "a square" if height == width else f"H:W = {height}:{width}"
    return f"H and W are multiples of 4, at least 8; in training photos are padded to {shape} by their border pixels"


def _inputs(generator: ResnetGenerator) -> tuple[str, ...]:
    return ("photo", "mask") if generator.mask_channel else ("photo",)


def _example(
    generator: ResnetGenerator, batch: int, height: int, width: int, rng: torch.Generator
) -> dict[str, Tensor]:
    photo = torch.rand((batch, generator.in_channels, height, width), generator=rng) * 2 - 1
    mask = (torch.rand((batch, 1, height, width), generator=rng) < 0.5).float()
    return {"photo": photo, "mask": mask} if generator.mask_channel else {"photo": photo}


def _attention(query, key, value, *_unused, **_options):
    """softmax(QKᵀ/√d)V of [B, N, ·], in ONNX operators: torch's own translation wants four dimensions."""
    from onnxscript import opset20 as op

    scale = op.Constant(value_float=1 / math.sqrt(query.shape[-1]))
    scores = op.Mul(op.MatMul(query, op.Transpose(key, perm=[0, 2, 1])), scale)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _to_onnx(generator: ResnetGenerator) -> bytes:
    batch = torch.export.Dim("batch", min=1, max=65535)
    height, width = (4 * torch.export.Dim(f"{name}_quarter", min=2, max=16383) for name in ("height", "width"))
    names = _inputs(generator)
    sizes = {0: batch, 2: height, 3: width}
    shapes = {"image": sizes, "mask": sizes} if generator.mask_channel else {"image": sizes}
    example = _example(generator, 2, 32, 40, torch.Generator())
    # With gradients on, attention is one call and no loop over chunks, whose number would be fixed.
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            generator,
            tuple(example.values()),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=list(names),
            output_names=["sketch"],
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attention},
            verbose=False,
        )
    model = program.model_proto
    model.producer_name, model.producer_version = "fastsketch", __version__
    sizes = _sizes(generator)
    model.doc_string = f"A pencil sketch of a face photo. {sizes}."
    for value in model.graph.input:
        value.doc_string = RANGES[value.name]
    model.graph.output[0].doc_string = f"[B, {generator.out_channels}, H, W] float32 in [-1, 1], 1 = white paper"
    facts = {
        "fastsketch": __version__,
        "torch": torch.__version__,
        "inputs": json.dumps({name: RANGES[name] for name in names}),
        "output": json.dumps({"sketch": model.graph.output[0].doc_string}),
        "sizes": sizes,
        "frame": json.dumps(generator.frame or (1, 1)),
    }
    del model.metadata_props[:]
    for key, text in facts.items():
        model.metadata_props.add(key=key, value=text)
    return model.SerializeToString()
