"""The demo app: drop a photo into the browser, see its sketch, and what the generator saw. Needs the extra `app`.

Everything is served from here: a content security policy keeps the browser from asking anybody else, and gradio's
analytics are off.
"""

import importlib.util
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from fastsketch.drawing import draw
from fastsketch.errors import FastsketchError
from fastsketch.nn import ResnetGenerator, StructureSampler
from fastsketch.training.checkpoint import load_generator
from fastsketch.training.generate import read_for_drawing
from fastsketch.training.mask_methods import MakingMethod
from fastsketch.training.masks import MaskSource
from fastsketch.training.run_files import (
    RunPaths,
    find_generator,
    find_weights_dir,
    load_settings,
    trained_masks,
    trained_size,
)
from fastsketch.training.translator import structure_sampler

IMAGE_SIZE = 256
"""Photos are scaled down to fit this many pixels where the size of training is not known."""
LARGEST_FILE = "32mb"
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:"
)
BUTTONS = ["download", "fullscreen"]
STYLE = """
footer { display: none !important; }
#app { max-width: 72rem; margin: 0 auto; }
#app .image-container img { width: 100%; height: 100%; object-fit: contain; }
"""


@dataclass
class Sketcher:
    """Draws uploaded photos.

    Attributes:
        generator: in eval mode, on its device.
        sampler: of the run's settings.
        masks: where masks come from.
        image_size: photos are scaled down to fit this square, in pixels.
    """

    generator: ResnetGenerator
    sampler: StructureSampler
    masks: MaskSource
    image_size: int

    @classmethod
    def load(
        cls,
        weights: Path,
        masks: MakingMethod | Literal["trained"] = "trained",
        weights_dir: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> "Sketcher":
        """Of a run's folder or a generator.safetensors; the settings beside it say how points are sampled.

        Raises:
            FastsketchError: no generator, or settings that cannot be read.
        """
        path = find_generator(weights)
        settings = RunPaths(path.parent).settings
        sampler = structure_sampler(load_settings(settings)) if settings.is_file() else StructureSampler()
        generator = load_generator(path, device)
        if masks == "trained":  # without a mask channel it is only shown
            method = trained_masks(path) if generator.mask_channel else "auto"
            masks = "auto" if method == "folder" else method
        source = MaskSource(masks, weights_dir=find_weights_dir(weights_dir, path))
        return cls(generator, sampler, source, trained_size(path) or IMAGE_SIZE)

    def __call__(self, file: str | Path) -> tuple[Image.Image, Image.Image, Image.Image, Image.Image]:
        """Sketch, mask, structure map, and the map with the sampled points, of one picture file.

        Raises:
            FastsketchError: as `read_for_drawing`.
        """
        photo, mask = read_for_drawing(Path(file), self.masks, self.image_size)
        drawing = draw(self.generator, photo, mask, self.sampler)
        return drawing.sketch, mask, drawing.structure, drawing.points


def build(sketcher: Sketcher):
    """The page, as a FastAPI application.

    Raises:
        FastsketchError: the extra `app` is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise FastsketchError("demo-app needs gradio: pip install 'fastsketch[app]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import gradio
    from fastapi import FastAPI

    def sketch(file: str | None):
        if file is None:
            return (None,) * 4
        try:
            return sketcher(file)
        except (FastsketchError, ValueError) as error:
            # Where the upload lies tells a visitor nothing.
            text = str(error).replace(f"{file}: ", "").replace(str(file), Path(file).name)
            raise gradio.Error(text[:1].upper() + text[1:], duration=None, print_exception=False) from error

    sans = gradio.themes.Font
    theme = gradio.themes.Default(
        primary_hue="slate",
        font=[sans("system-ui"), sans("sans-serif")],
        font_mono=[sans("ui-monospace"), sans("monospace")],
    )
    generator = sketcher.generator
    about = f"Larger photos are scaled down to fit {sketcher.image_size} pixels. Nothing leaves this machine."
    if generator.attention is None:
        about += " This generator has no structure map: it stays black, and the points are sampled uniformly."
    if not generator.mask_channel:
        about += " This generator does not read the mask; it is shown all the same."
    blocks = gradio.Blocks(title="fastsketch", analytics_enabled=False, delete_cache=(600, 600))
    with blocks, gradio.Column(elem_id="app"):
        gradio.Markdown(f"# fastsketch\nDrop a photo of a face to see its pencil sketch. {about}")
        with gradio.Row():
            with gradio.Column(scale=2):
                photo = gradio.Image(
                    label="photo", type="filepath", sources=["upload", "clipboard"], elem_id="photo", height=380
                )
            with gradio.Column(scale=2):
                drawn = gradio.Image(label="sketch", format="png", elem_id="sketch", height=380, buttons=BUTTONS)
        with gradio.Row():
            others = [
                gradio.Image(label=label, format="png", elem_id=name, height=280, buttons=BUTTONS)
                for name, label in (
                    ("mask", "mask"),
                    ("structure", "structure map"),
                    ("points", "sampled points, by region"),
                )
            ]
        # gradio would open the file first, and answer a damaged one with its own stack of messages.
        photo.preprocess = lambda upload: None if upload is None else upload.path
        photo.change(sketch, photo, [drawn, *others], api_name="sketch", show_progress="minimal")
    application = FastAPI(openapi_url=None)

    @application.middleware("http")
    async def keep_to_ourselves(request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return gradio.mount_gradio_app(
        application, blocks, path="/", theme=theme, css=STYLE, max_file_size=LARGEST_FILE, footer_links=[]
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        FastsketchError: the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FastsketchError(f"{host}:{port}: cannot listen there ({reason}); choose another --port") from error
    return listener


def serve(
    weights: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    masks: MakingMethod | Literal["trained"] = "trained",
    weights_dir: Path | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        weights: a run's folder, or generator.safetensors.
        host: address to listen on.
        port: port to listen on; 0 takes a free one, which is printed.
        masks: method of `MaskSource`; trained: that of training, but auto for folder.
        weights_dir: folder of pretrained weights, for the masks; default the run's own.
        device: where to draw.

    Raises:
        FastsketchError: the extra `app` is not installed, no generator, or an address that cannot be had.
    """
    application = build(Sketcher.load(weights, masks, weights_dir, device))
    import uvicorn

    listener = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{listener.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
    uvicorn.Server(uvicorn.Config(application, log_level="warning")).run(sockets=[listener])
