"""Drop-in `PatchNCELoss` and `PatchSampleF` for the public DCLGAN code [L: Han et al., CVPRW 2021].

They differ from CUT's in two things: the loss takes cosine similarities and the patches of all images of the batch as
negatives; positions are drawn by torch.randperm on the features' device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsketch.compat import cut
from fastsketch.functional import patch_nce
from fastsketch.reference.precision import accumulation_dtype, unit_rows


class PatchNCELoss(cut.PatchNCELoss):
    """DCLGAN's patch contrastive loss, τ = `opt.nce_T`; every other patch of the batch is a negative.

    Args:
        opt: the options, read at each call; only `nce_T` (> 0) is used.
    """

    def forward(
        self,
        feat_q: Tensor,  # [B·S, D]
        feat_k: Tensor,  # [B·S, D]
    ) -> Tensor:  # [B·S]
        """The loss of each query, not reduced; the keys are detached. Normalises, so the input need not be.

        Args:
            feat_q: queries, any floating dtype.
            feat_k: keys of the same shape, positives row by row.

        Returns:
            Losses [B·S], float32 (float64 for float64 input).

        Raises:
            ValueError: other shapes.
        """
        self._check(feat_q, feat_k)
        query, key, temperature = feat_q, feat_k.detach(), self.opt.nce_T
        learned = isinstance(temperature, Tensor) and temperature.requires_grad
        if learned:  # let autograd see it: dividing queries by it takes normalised ones
            dtype = accumulation_dtype(feat_q.dtype)
            query, key, temperature = unit_rows(query.to(dtype)) / temperature, unit_rows(key.to(dtype)), 1.0
        return patch_nce(query[None], key[None], temperature=temperature, normalize=not learned, reduction="none")[0]


PatchNCELoss2 = cut.PatchNCELoss
"""The other loss of DCLGAN's file: CUT's."""


class PatchSampleF(cut.PatchSampleF):
    """CUT's sampling and projection network, with DCLGAN's random positions."""

    @staticmethod
    def draw_ids(sizes: Sequence[int], num_patches: int, device: torch.device) -> list[Tensor]:
        """Distinct random positions for each layer, from torch's generator of the device, as DCLGAN draws them."""
        return [torch.randperm(size, device=device)[:num_patches] for size in sizes]
