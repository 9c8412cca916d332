"""All settings of a training run, in one dataclass; presets are data."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from fastsketch.errors import FastsketchError
from fastsketch.functional import Negatives
from fastsketch.nn.generator import Demodulated
from fastsketch.nn.losses import PerceptualDistance
from fastsketch.reference.sampling import MAX_BOOST, MAX_REGIONS
from fastsketch.training.augment import MAX_AFFINE, MAX_JITTER
from fastsketch.training.canvas import Canvas
from fastsketch.training.mask_methods import MaskMethod

Preset = Literal["cut", "fastcut", "fsscl"]

Switch = Literal["auto", "on", "off"]
"""auto: on where it is known to help on the device at hand (`fastsketch.training.speed`)."""

PRESETS: dict[str, dict[str, Any]] = {
    "fsscl": {},
    "cut": {
        "init_gain": 0.02,
        "demodulated": "none",
        "attention": False,
        "regions": False,
        "dynamic": False,
        "mask": False,
        "lambda_pixel": 0.0,
        "lambda_perceptual": 0.0,
        "epochs": 200,
        "decay_epochs": 200,
    },
    "fastcut": {
        "init_gain": 0.02,
        "demodulated": "none",
        "attention": False,
        "regions": False,
        "dynamic": False,
        "mask": False,
        "lambda_pixel": 0.0,
        "lambda_perceptual": 0.0,
        "lambda_nce": 10.0,
        "identity": False,
        "flip_equivariance": True,
        "epochs": 150,
        "decay_epochs": 50,
    },
}
"""What each preset changes from the defaults, which are the paper's full method, `fsscl`."""

SWITCHES = ("channels_last", "fused_adam", "compile", "cuda_graph", "data_on_device", "winograd")
"""What makes a step faster and changes its results by no more than rounding."""

_BEFORE_THERE_WAS_A_CHOICE = {
    "perceptual_distance": "l1",
    "init_gain": 0.02,
    "canvas": "square",
    "demodulated": "none",
}
"""What settings were that runs of before do not name."""

RESUMABLE = {
    *("resume", "epochs", "decay_epochs", "workers", "device", "log_every", "save_every", "weights_dir", "data"),
    "pictures",
    *SWITCHES,
}
"""What may differ between a run and its resumption."""


@dataclass
class TrainConfig:
    """Settings of `fastsketch train`. Defaults are docs/method.md's full method; [D] marks this project's decisions."""

    data: str
    """Folder of photos and sketches (SUBSET/train/photos …, or photos/ and sketches/), or "builtin"."""
    out: Path
    """Folder of the run: settings, checkpoints, weights, pictures, curves."""
    preset: Preset = "fsscl"
    """The full method, CUT or FastCUT: the command line's other defaults. In Python add `**PRESETS["cut"]`."""
    resume: bool = False
    """Go on with the run in `out`, bit for bit on CPU."""
    init_from: Path | None = None
    """Begin with the networks of this run, or the generator of a generator.safetensors; None: with random weights."""

    image_size: int = 256
    """Side of the square that larger photos are scaled down to fit in, in pixels."""
    canvas: Canvas = "tight"
    """What pictures are padded to: that square, or (tight) the smallest rectangle that holds all of them [D]."""
    crop_size: int | None = None
    """Side of a random crop of the canvas (no longer than the canvas) to train on; None: the whole canvas."""
    sketch_channels: int = 1
    """1: grey sketches; 3: colour."""
    unpaired: bool = False
    """Pair each photo with a random sketch; without pixel and perceptual loss, which the command line turns off."""
    flip: bool = True
    """Mirror half of the pictures."""
    random_affine: float = 0.0
    """Strength s of a random turn (s radians at most), scale (e⁻ˢ to eˢ) and shift (s sides) of each pair; 0: none."""
    color_jitter: float = 0.0
    """Strength of a random change of each photo's gamma, contrast, brightness and white balance; 0: none."""
    augment_decay: bool = True
    """`random_affine` and `color_jitter` in the decay epochs too; off: only before them [D]."""
    masks: MaskMethod = "auto"
    """Where the masks come from."""

    width: int = 64
    """Channels of the generator's first layer."""
    blocks: int = 9
    """Residual blocks of the generator (at least 5, the last tapped)."""
    discriminator_width: int = 64
    """Channels of the discriminator's first layer."""
    projection_dim: int = 256
    """Width of the projected patches."""
    init_gain: float = 1.0
    """Scale of the generator's initial Xavier weights [D]; CUT's is 0.02."""
    demodulated: Demodulated = "decoder"
    """Where weights of fixed length take the place of instance norm: none (CUT), the decoder, or blocks too [D]."""
    attention: bool = True
    """Dual-branch attention and its structure map; needed by regions and dynamic sampling [P]."""
    mask: bool = True
    """The mask as an additional input [P]."""

    num_patches: int = 256
    """Patches an image and layer."""
    regions: bool = True
    """Share the patches out over regions of the structure map [P]."""
    dynamic: bool = True
    """Sample by the feature density of the structure map [P]."""
    num_regions: int = 4
    """Regions, the background included [D]."""
    density_window: int = 7
    """Side of the density's box mean on the map [D]."""
    density_threshold: float = 1.5
    """Density, in units of its mean, above which samples are boosted [D]."""
    density_boost: float = 2.0
    """Factor of the sampling frequency above the threshold [P: doubled]."""
    multiplicity: bool = False
    """Above the threshold weigh a sample's loss, and do not draw it more often [D]."""
    negatives: Negatives = "image"
    """Which other patches are a patch's negatives."""
    temperature: float = 0.07
    """Of the contrastive loss."""

    lambda_gan: float = 1.0
    """Weight of the adversarial loss."""
    lambda_nce: float = 1.0
    """Weight of the contrastive loss."""
    lambda_pixel: float = 1.0
    """Weight of the pixel-wise L1 loss, 0 turns it off [P: added; D: how much, see docs/tuning.md]."""
    lambda_perceptual: float = 13.0
    """Weight of the VGG16 perceptual loss, 0 turns it off [P: added; D: how much]."""
    identity: bool = True
    """Contrastive loss of the identity term too, ½ each."""
    flip_equivariance: bool = False
    """FastCUT's flip-equivariance augmentation."""

    batch_size: int = 1
    """Pictures a step, over all processes."""
    epochs: int = 50
    """Epochs at the full learning rate."""
    decay_epochs: int = 50
    """Epochs of linear decay after them."""
    lr: float = 2e-4
    """Adam's learning rate."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's momenta."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the networks; the contrastive loss is float32. auto: bfloat16 where it is fast (docs/training.md)."""
    seed: int = 0
    """Of everything random."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto: a GPU if there is one."""
    workers: int = 0
    """Data loading processes; the data set is kept decoded in memory either way."""
    weights_dir: Path | None = None
    """Folder of pretrained weights (vgg16_features.safetensors …) for machines that cannot download."""
    channels_last: Switch = "auto"
    """Memory layout of the networks; auto: on a GPU, and with bfloat16 on a processor with AMX."""
    fused_adam: Switch = "auto"
    """The optimiser as one kernel."""
    compile: Switch = "auto"
    """torch.compile; takes minutes at the start. auto: off."""
    cuda_graph: Switch = "auto"
    """The whole step as one CUDA graph; auto: one process, uncompiled, on a GPU where its trial gave a plain step's."""
    data_on_device: Switch = "auto"
    """Keep the pictures on the device, and augment them there; auto: on a GPU, where they fit."""
    winograd: Switch = "auto"
    """Fewer multiplications in 3×3 and 4×4 convolutions, in float32; auto: on CPUs, but for bfloat16 with AMX."""
    perceptual_distance: PerceptualDistance = "normalized"
    """Of VGG16's features: normalized at each position, squared, or l1 (a weight of 10 suits that) [D]."""
    perceptual_weights: Literal["imagenet", "random"] = "imagenet"
    """VGG16's weights; random (fixed, seeded) serves where ImageNet's cannot be had, and is worse."""

    log_every: int = 10
    """Steps between two rows of losses.csv and TensorBoard."""
    save_every: int = 0
    """Steps between checkpoints beside the one after each epoch; 0: none."""
    pictures: int = 4
    """Rows of the picture grid after each epoch; 0: none."""

    def __post_init__(self) -> None:
        if self.init_from is not None:  # as it is saved: found from another folder too
            self.init_from = Path(self.init_from).absolute()
        for field in fields(self):
            if get_origin(field.type) is Literal:
                value, choices = getattr(self, field.name), get_args(field.type)
                _require(value in choices, field.name, f"one of {', '.join(choices)}", repr(value))
        positive = "image_size width blocks discriminator_width projection_dim num_patches batch_size log_every"
        for name in positive.split():
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ["epochs", "decay_epochs", "workers", "save_every", "pictures", "seed"]:
            _require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ["lambda_gan", "lambda_nce", "lambda_pixel", "lambda_perceptual", "density_threshold"]:
            value = getattr(self, name)
            _require(0 <= value < float("inf"), name, "finite and at least 0", value)
        for name, most in [("random_affine", MAX_AFFINE), ("color_jitter", MAX_JITTER)]:
            _require(0 <= getattr(self, name) <= most, name, f"0 to {most:g}", getattr(self, name))
        for name in ["lr", "temperature", "density_boost", "init_gain"]:
            value = getattr(self, name)
            _require(0 < value < float("inf"), name, "finite and above 0", value)
        _require(self.density_boost <= MAX_BOOST, "density_boost", f"at most {MAX_BOOST:g}", self.density_boost)
        _require(self.blocks >= 5, "blocks", "at least 5 (layer 16 is tapped)", self.blocks)
        _require(self.sketch_channels in (1, 3), "sketch_channels", "1 or 3", self.sketch_channels)
        _require(2 <= self.num_regions <= MAX_REGIONS, "num_regions", f"2 to {MAX_REGIONS}", self.num_regions)
        window = self.density_window
        _require(window % 2 == 1 and window >= 1, "density_window", "odd and at least 1", window)
        _require(self.seed < 2**63, "seed", "below 2⁶³", self.seed)
        betas = self.betas
        _require(len(betas) == 2 and all(0 <= b < 1 for b in betas), "betas", "two numbers from 0 to below 1", betas)
        _require(self.epochs + self.decay_epochs > 0, "epochs", "above 0 in all", self.epochs)
        side = self.crop_size or self.image_size
        _require(side % 4 == 0 and side >= 32, "crop_size or image_size", "a multiple of 4, at least 32", side)
        _require(side <= self.image_size, "crop_size", f"at most image_size {self.image_size}", side)
        if (self.regions or self.dynamic) and not self.attention:
            raise FastsketchError("regions and dynamic need attention: add --no-regions --no-dynamic, or --attention")
        if self.negatives in ("same_region", "other_regions") and not self.regions:
            raise FastsketchError(f"negatives {self.negatives} need regions: add --regions, or --negatives image")
        if not (self.augment_decay or self.random_affine or self.color_jitter):
            raise FastsketchError(
                "augment_decay is off but there is no augmentation to end: add --random-affine or --color-jitter, or "
                "--augment-decay"
            )
        if self.multiplicity and not self.dynamic:
            raise FastsketchError("multiplicity needs dynamic sampling: add --dynamic, or --no-multiplicity")
        if not (self.lambda_gan or self.lambda_nce or self.lambda_pixel or self.lambda_perceptual):
            raise FastsketchError("all losses are off: one of the lambda_ settings must be above 0")
        if self.unpaired and (self.lambda_pixel or self.lambda_perceptual):
            raise FastsketchError(
                "unpaired data has no target to compare with: add --lambda-pixel 0 --lambda-perceptual 0"
            )
        self.check_patches(side, side)

    @property
    def total_epochs(self) -> int:
        """Epochs in all."""
        return self.epochs + self.decay_epochs

    @property
    def mask_method(self) -> MaskMethod:
        """Where the masks come from that the networks get; none without `mask`."""
        return self.masks if self.mask else "none"

    def check_patches(self, height: int, width: int) -> None:
        """Refuse more patches than the map of pictures of this size, pixels, has positions.

        The settings know no other size than a square's: on a tight canvas that of the pictures is smaller.
        """
        positions = (height // 4) * (width // 4)
        if self.lambda_nce and self.num_patches > positions:
            way_out = "" if height == width else "; or add --canvas square"
            raise FastsketchError(
                f"num_patches must be at most {positions}, the positions of the {width // 4}×{height // 4} map of "
                f"pictures of {width}×{height} pixels, as they are padded, got {self.num_patches}{way_out}"
            )

    def to_json(self) -> str:
        """The settings as JSON, paths as text."""
        return json.dumps(asdict(self), default=str, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "TrainConfig":
        """Settings from JSON; unknown or missing names are an error that names `source`."""
        try:
            values = json.loads(text)
            known = {f.name for f in fields(cls)}
            if unknown := sorted(set(values) - known):
                raise FastsketchError(f"{source}: unknown settings {', '.join(unknown)}")
            values["out"] = Path(values["out"])
            values = _BEFORE_THERE_WAS_A_CHOICE | values
            values["betas"] = tuple(values.get("betas", (0.5, 0.999)))
            for name in ("weights_dir", "init_from"):
                if values.get(name) is not None:
                    values[name] = Path(values[name])
            return cls(**values)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise FastsketchError(f"{source}: not the settings of a run ({error})") from error

    def check_resumes(self, saved: "TrainConfig") -> None:
        """Refuse a resumption whose settings are not those of the run."""
        mine, theirs = asdict(self), asdict(saved)
        changed = [n for n in mine if n not in RESUMABLE and n != "out" and mine[n] != theirs[n]]
        if changed:
            listed = ", ".join(f"{n} {theirs[n]} -> {mine[n]}" for n in changed)
            raise FastsketchError(f"a resumed run keeps its settings; changed: {listed}")


def _require(ok: bool, name: str, wanted: str, got: object) -> None:
    if not ok:
        raise FastsketchError(f"{name} must be {wanted}, got {got}")
