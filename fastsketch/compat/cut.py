"""Drop-in `PatchNCELoss` and `PatchSampleF` for projects built on the public CUT code.

[L: Park et al., ECCV 2020] Same signatures, return values, parameter names, random draws and
numbers; docs/migrate.md shows the lines to change.

`PatchSampleF` notes the number of images on each tensor that it returns, as the attribute
`num_images`, and `PatchNCELoss` reads it there, so a last, smaller batch is right too. Whatever
makes a new tensor of it (arithmetic, indexing, the gathering of `DataParallel`) drops the note;
then `opt.batch_size` counts, as in CUT.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastsketch._checks import FLOATING, check_int, check_list, check_tensor
from fastsketch.functional import gather_layers, patch_nce, project_and_normalize, project_patches
from fastsketch.nn.projection import is_plain, plain_parameters
from fastsketch.reference.precision import EPSILON, accumulation_dtype

INITIALISERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "normal": lambda weight, gain: nn.init.normal_(weight, 0.0, gain),
    "xavier": lambda weight, gain: nn.init.xavier_normal_(weight, gain=gain),
    "kaiming": lambda weight, gain: nn.init.kaiming_normal_(weight, a=0, mode="fan_in"),
    "orthogonal": lambda weight, gain: nn.init.orthogonal_(weight, gain=gain),
}
"""CUT's weight initialisations by `init_type`; kaiming ignores the gain, as there."""


class Normalize(nn.Module):
    """x / (‖x‖_p + 1e-7) along dimension 1, p = `power` [L: CUT].

    A zero vector stays zero and gets a finite gradient, where CUT's is NaN.
    """

    def __init__(self, power: float = 2) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [N, D] or [N, D, ...] along D."""
        return x / (torch.linalg.vector_norm(x, ord=self.power, dim=1, keepdim=True) + EPSILON)


class PatchNCELoss(nn.Module):
    """CUT's patch contrastive loss, τ = `opt.nce_T`; every other patch of the image is a negative.

    Args:
        opt: the options, read at each call: `nce_T` (> 0), `batch_size` (used when the tensors do
            not tell) and, if it is there, `nce_includes_all_negatives_from_minibatch` (the patches
            of all images of the batch are negatives).
    """

    def __init__(self, opt: Namespace | Any) -> None:
        super().__init__()
        self.opt = opt
        # Not used here: subclasses written for CUT find them where they expect them.
        self.cross_entropy_loss = nn.CrossEntropyLoss(reduction="none")
        self.mask_dtype = torch.bool

    def forward(
        self,
        feat_q: Tensor,  # [B·S, D]
        feat_k: Tensor,  # [B·S, D]
    ) -> Tensor:  # [B·S]
        """The loss of each query, not reduced; the keys are detached.

        Args:
            feat_q: normalised queries, images one after the other, any floating dtype.
            feat_k: normalised keys of the same shape, positives row by row.

        Returns:
            Losses [B·S], float32 (float64 for float64 input).

        Raises:
            TypeError: other types or several dtypes.
            ValueError: other shapes, an empty batch of `PatchSampleF`, or no number of images is known that divides
                the rows.
        """
        shape = self._shape(feat_q, feat_k)
        temperature = self.opt.nce_T
        if isinstance(temperature, Tensor) and temperature.requires_grad:  # it is learned: let autograd see it
            feat_q, temperature = feat_q / temperature, 1.0
        loss = patch_nce(
            feat_q.reshape(shape), feat_k.detach().reshape(shape), temperature=temperature, reduction="none"
        )
        return loss.flatten()

    @staticmethod
    def _check(feat_q: Tensor, feat_k: Tensor) -> None:
        check_tensor("feat_q", feat_q, FLOATING)
        check_tensor("feat_k", feat_k, FLOATING)
        if accumulation_dtype(feat_q.dtype) != accumulation_dtype(feat_k.dtype):
            raise TypeError(f"feat_k must have feat_q's dtype {feat_q.dtype}, got {feat_k.dtype}")
        if feat_q.dim() != 2 or feat_q.shape != feat_k.shape:
            raise ValueError(
                f"feat_q and feat_k must both be [B·S, D], got {list(feat_q.shape)} and {list(feat_k.shape)}"
            )

    def _shape(self, feat_q: Tensor, feat_k: Tensor) -> tuple[int, int, int]:
        """(images, S, D) of the rows once checked; one image, as it were, where all of the batch are negatives."""
        self._check(feat_q, feat_k)
        whole = getattr(self.opt, "nce_includes_all_negatives_from_minibatch", False)
        images = 1 if whole else self._num_images(feat_q, feat_k)
        return images, feat_q.shape[0] // images, feat_q.shape[1]

    def _num_images(self, feat_q: Tensor, feat_k: Tensor) -> int:
        """How many images the rows hold: as noted by `PatchSampleF`, else `opt.batch_size`."""
        rows = feat_q.shape[0]
        from_q = getattr(feat_q, "num_images", None)
        from_k = getattr(feat_k, "num_images", None)
        if from_q is not None and from_k is not None and from_q != from_k:
            raise ValueError(f"feat_q holds {from_q} images, feat_k {from_k}: they must agree")
        noted = from_k if from_q is None else from_q
        if noted == 0:
            raise ValueError("feat_q and feat_k hold patches of no image: the batch that PatchSampleF got was empty")
        num_images = self.opt.batch_size if noted is None else noted
        check_int("opt.batch_size", num_images)
        if num_images < 1 or rows % num_images:
            raise ValueError(
                f"opt.batch_size = {num_images} does not divide the {rows} rows of feat_q; pass "
                "PatchSampleF's tensors on as they are, then the batch size is read from them"
            )
        return num_images


class PatchSampleF(nn.Module):
    """CUT's patch sampling and projection network ("netF").

    Args:
        use_mlp: project patches by Linear, ReLU, Linear (C → nc → nc), one per layer: `mlp_0`,
            `mlp_1`, ...; made at the first forward, or by an earlier `load_state_dict` from the
            checkpoint's shapes.
        init_type: normal, xavier, kaiming or orthogonal; biases start at 0.
        init_gain: standard deviation of normal, gain of xavier and orthogonal.
        nc: projected width, at least 1; not used without mlp.
        gpu_ids: CUDA devices, the mlps are made on the first; if empty, on the features' device.
        opt: kept and not used; some projects hand their options over.

    Raises:
        TypeError: for an `nc` that is no int.
        ValueError: for an unknown `init_type`, or an `nc` below 1.
    """

    def __init__(
        self,
        use_mlp: bool = False,
        init_type: str = "normal",
        init_gain: float = 0.02,
        nc: int = 256,
        gpu_ids: Sequence[int] = (),
        opt: Namespace | Any = None,
    ) -> None:
        super().__init__()
        if init_type not in INITIALISERS:
            raise ValueError(f"init_type must be one of {list(INITIALISERS)}, got {init_type!r}")
        if use_mlp:
            check_int("nc", nc)
            if nc < 1:
                raise ValueError(f"nc must be at least 1, got {nc}")
        self.l2norm = Normalize(2)
        self.use_mlp = use_mlp
        self.nc = nc
        self.mlp_init = False
        self.init_type = init_type
        self.init_gain = init_gain
        self.gpu_ids = list(gpu_ids)
        self.opt = opt

    @torch.compiler.disable  # new parameters have no place in a graph
    def create_mlp(self, feats: Sequence[Tensor]) -> None:
        """Make and initialise the mlps for `feats`, a list of [B, C, *spatial]."""
        self._create_mlp([feat.shape[1] for feat in feats], feats[0].device)

    def _create_mlp(self, widths: Sequence[int], device: torch.device) -> None:
        """Draw in CUT's order: the defaults of all layers first, then the initialisation; `device` without gpu_ids."""
        for mlp_id, width in enumerate(widths):
            mlp = nn.Sequential(nn.Linear(width, self.nc), nn.ReLU(), nn.Linear(self.nc, self.nc))
            setattr(self, f"mlp_{mlp_id}", mlp)
        if self.gpu_ids:
            self.to(self.gpu_ids[0])
        for module in self.modules():
            if isinstance(module, nn.Linear):
                INITIALISERS[self.init_type](module.weight.data, self.init_gain)
                nn.init.zeros_(module.bias.data)
        if not self.gpu_ids:
            self.to(device)
        self.mlp_init = True

    def forward(
        self,
        feats: Sequence[Tensor],  # each [B, C, *spatial]
        num_patches: int = 64,
        patch_ids: Sequence[Tensor | np.ndarray | Sequence[int]] | None = None,  # each [S]
    ) -> tuple[list[Tensor], list[Tensor | list]]:  # each [B·S, nc], [S]
        """Sample, project and normalise patches.

        Projected and normalised in float32 (float64 if features or weights are) whatever autocast
        says: at initialisation norms are as small as 3e-5, too small for half precision.

        Args:
            feats: one feature map a layer, 1-D to 3-D in space, any floating dtype.
            num_patches: positions a layer, shared by all images; all positions if there are fewer.
                0: no sampling.
            patch_ids: flat positions for each layer, the ids of an earlier call, say. None: drawn
                from numpy's global generator, the same as CUT's for a seed; then compiling with
                `fullgraph=True` is not possible.

        Returns:
            (patches, ids). For each layer: patches [B·S, nc] (nc = C without mlp), each with the
            attribute `num_images` = B, and int64 ids [S]. With `num_patches=0`: maps
            [B, nc, *spatial] and []; there CUT's numbers are normalised over the positions of each
            channel, not over the channels, and so are these.

        Raises:
            TypeError: `feats` is no list of floating tensors, `num_patches` no int, or `patch_ids` no lists of
                integers.
            ValueError: `feats`, `num_patches`, `patch_ids` and the mlps do not fit together.
        """
        self._check(feats, num_patches, patch_ids)
        if self.use_mlp and not self.mlp_init:
            self.create_mlp(feats)
        if num_patches > 0 and patch_ids is None:
            sizes = [feat.shape[2:].numel() for feat in feats]
            patch_ids = self.draw_ids(sizes, num_patches, feats[0].device)

        if num_patches > 0:
            ids = [self._as_ids(i, feats[0].device, n) for n, i in enumerate(patch_ids[: len(feats)])]
            return_feats = self._project_layers(gather_layers(feats, ids, differentiable=True))
            for feat, patches in zip(feats, return_feats, strict=True):
                patches.num_images = feat.shape[0]
            return return_feats, ids
        everywhere = (feat.flatten(2).mT for feat in feats)  # [B, N, C]
        maps = [self._project_and_normalise(feat_id, patches) for feat_id, patches in enumerate(everywhere)]
        return [x.mT.unflatten(2, feat.shape[2:]) for x, feat in zip(maps, feats, strict=True)], [[] for _ in feats]

    @staticmethod
    @torch.compiler.disable  # a compiled np.random draws from another generator
    def draw_ids(sizes: Sequence[int], num_patches: int, device: torch.device) -> list[Tensor]:
        """Distinct random positions for each layer, each [min(num_patches, size)] int64; may be overridden.

        The whole permutation is drawn although little of it is kept: nothing cheaper leaves the same
        ids and the same generator state as CUT (0.9 ms for 262², 0.05 ms for 64² positions on a CPU
        core). All layers share one transfer to the device.
        """
        ids = [np.random.permutation(size)[:num_patches] for size in sizes]  # noqa: NPY002
        everything = torch.from_numpy(np.concatenate(ids)).to(device, torch.int64)
        return list(everything.split([len(layer) for layer in ids]))

    @staticmethod
    def _as_ids(ids: Tensor | np.ndarray | Sequence[int], device: torch.device, feat_id: int) -> Tensor:
        """int64 on the device; a numpy array is copied, since its owner may shuffle it before the backward."""
        make = torch.tensor if isinstance(ids, np.ndarray) else torch.as_tensor
        made = make(ids, device=device)
        if made.dim() == 0:
            raise TypeError(f"patch_ids must hold positions for each layer, got a number for layer {feat_id}")
        fractional = made.is_floating_point() or made.is_complex() or made.dtype == torch.bool
        if fractional and made.numel():  # an empty list has no dtype of its own
            raise TypeError(f"patch_ids[{feat_id}] must hold integers, got {made.dtype}")
        return made if made.dtype == torch.int64 else made.to(torch.int64)

    def _project_layers(self, patches: Sequence[Tensor]) -> list[Tensor]:  # each [B, S, C] -> [B·S, nc]
        """Project and normalise, all layers in one call where they are alike and the modules are as they were made."""
        mlps = [getattr(self, f"mlp_{feat_id}", None) for feat_id in range(len(patches))] if self.use_mlp else []
        parameters = [plain_parameters(mlp) for mlp in mlps if mlp is not None]
        first = patches[0]
        dtype = accumulation_dtype(first.dtype)
        alike = len(parameters) == len(patches) and all(
            layer and layer[0].dtype == dtype and layer[0].shape[1] == x.shape[2]
            for layer, x in zip(parameters, patches, strict=True)
        )
        alike = alike and all(x.dtype == first.dtype and x.shape[:2] == first.shape[:2] for x in patches)
        if not (alike and is_plain(self.l2norm, Normalize) and self.l2norm.power == 2):
            return [self._project_and_normalise(feat_id, x.flatten(0, 1)) for feat_id, x in enumerate(patches)]
        with torch.autocast(first.device.type, enabled=False):
            flat = [parameter for layer in parameters for parameter in layer]
            return project_and_normalize([x.to(dtype) for x in patches], flat)

    def _project_and_normalise(self, feat_id: int, patches: Tensor) -> Tensor:
        with torch.autocast(patches.device.type, enabled=False):
            return self.l2norm(self._project(feat_id, patches))

    def _project(self, feat_id: int, patches: Tensor) -> Tensor:
        """The layer's mlp, if there is one, in float32, or float64 if patches or weights are."""
        dtype = accumulation_dtype(patches.dtype)
        if not self.use_mlp:
            return patches.to(dtype)
        mlp = getattr(self, f"mlp_{feat_id}", None)
        if mlp is None:
            raise ValueError(f"feats has a layer {feat_id}, but there is no mlp_{feat_id} for it")
        first = mlp[0]
        if isinstance(first, nn.Linear) and patches.shape[-1] != first.in_features:
            raise ValueError(
                f"feats[{feat_id}] has {patches.shape[-1]} channels, mlp_{feat_id} was made for {first.in_features}"
            )
        dtype = torch.promote_types(dtype, first.weight.dtype)
        patches, parameters = patches.to(dtype), [x.to(dtype) for x in plain_parameters(mlp)]
        if parameters:
            shape = patches.shape if patches.dim() == 3 else (1, *patches.shape)
            return project_patches([patches.view(shape)], parameters)[0].view(*patches.shape[:-1], len(parameters[2]))
        if first.weight.dtype == dtype:
            return mlp(patches)
        weights = {name: weight.to(dtype) for name, weight in mlp.named_parameters()}
        return torch.func.functional_call(mlp, weights, patches)

    @staticmethod
    def _check(feats: Sequence[Tensor], num_patches: int, patch_ids: Sequence | None) -> None:
        check_list("feats", feats)
        check_int("num_patches", num_patches)
        if len(feats) == 0:
            raise ValueError("feats must have at least one layer, got none")
        for feat_id, feat in enumerate(feats):
            check_tensor(f"feats[{feat_id}]", feat, FLOATING)
            if feat.dim() < 3:
                raise ValueError(f"feats[{feat_id}] must be [B, C, *spatial], got {list(feat.shape)}")
        if num_patches < 0:
            raise ValueError(f"num_patches must be 0 or more, got {num_patches}")
        if num_patches == 0 or patch_ids is None:
            return
        if not hasattr(patch_ids, "__len__"):
            raise TypeError(f"patch_ids must hold positions for each layer, got {type(patch_ids).__name__}")
        if len(patch_ids) < len(feats):
            raise ValueError(f"patch_ids has {len(patch_ids)} layers, feats has {len(feats)}")

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Make the mlps by the checkpoint's widths if there are none yet; torch then fills them."""
        if self.use_mlp and not self.mlp_init:
            first_weights = []
            while (key := f"{prefix}mlp_{len(first_weights)}.0.weight") in state_dict:
                first_weights.append(state_dict[key])
            if first_weights:
                # Loading must leave the random generators as they are.
                with torch.random.fork_rng(devices=self.gpu_ids[:1]):
                    self._create_mlp([weight.shape[1] for weight in first_weights], first_weights[0].device)
        super()._load_from_state_dict(state_dict, prefix, *args)
