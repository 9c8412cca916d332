"""Drop-in `MoNCELoss` for the public MoNCE code [L: Zhan et al., CVPR 2022].

`PatchSampleF` is CUT's, with positions from torch.randperm; `PatchNCELoss` is CUT's.
"""

import math
from argparse import Namespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsketch._checks import check_number
from fastsketch.compat import cut
from fastsketch.compat.cut import PatchNCELoss
from fastsketch.compat.dclgan import PatchSampleF
from fastsketch.ops.transport import TransportPlan
from fastsketch.reference.precision import accumulation_dtype

__all__ = ["MoNCELoss", "PatchNCELoss", "PatchSampleF"]


class MoNCELoss(cut.PatchNCELoss):
    """MoNCE's patch loss: negatives weighted by an entropic optimal-transport plan.

    Args:
        opt: the options, read at each call: CUT's, and `eps` (ε > 0), `cost_type` ("easy" or "hard"),
            `neg_term_weight` (≥ 0), `num_patches` (≥ 1).
        detach_plan: leave the plan out of the gradient [D]; MoNCE does not.
    """

    def __init__(self, opt: Namespace | Any, detach_plan: bool = False) -> None:
        super().__init__(opt)
        self.detach_plan = detach_plan
        self.l2_norm = cut.Normalize(2)  # not used here, nor in MoNCE

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
            TypeError, ValueError: an option that is no number, or out of its range.
            TypeError: other types or several dtypes.
            ValueError: other shapes, an unknown `opt.cost_type`, or no number of images is known that divides the rows.
        """
        self._check_options()
        if self.opt.cost_type not in ("easy", "hard"):
            raise ValueError(f"opt.cost_type must be easy or hard, got {self.opt.cost_type!r}")
        shape = self._shape(feat_q, feat_k)
        if shape[1] == 0:  # no patches, and no plan
            return super().forward(feat_q, feat_k)
        dtype = accumulation_dtype(feat_q.dtype)
        with torch.autocast(feat_q.device.type, enabled=False):
            query, key = feat_q.to(dtype).reshape(shape), feat_k.detach().to(dtype).reshape(shape)
            products = torch.bmm(query, key.mT)
            diagonal = torch.eye(shape[1], dtype=torch.bool, device=query.device)
            cost = products if self.opt.cost_type == "hard" else 1 - products
            cost = (cost.detach() if self.detach_plan else cost).masked_fill(diagonal, -10.0)
            plan = TransportPlan.apply(cost, self.opt.eps)
            weight = plan * ((self.opt.num_patches - 1) * self.opt.neg_term_weight) + 1e-8
            logits = products / self.opt.nce_T + weight.log().masked_fill(diagonal, 0.0)  # the diagonal is the positive
            target = torch.arange(shape[1], device=query.device).expand(shape[:2])
            return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")

    def _check_options(self) -> None:
        """Refuse options out of their range; a tensor (a learned one, say) is not looked at, but for ε."""
        for name, wanted, fits in (
            ("nce_T", "positive and finite", lambda value: 0 < value < math.inf),
            ("eps", "positive and finite", lambda value: 0 < value < math.inf),
            ("num_patches", "at least 1 and finite", lambda value: 1 <= value < math.inf),
            ("neg_term_weight", "non-negative and finite", lambda value: 0 <= value < math.inf),
        ):
            value = getattr(self.opt, name)
            if isinstance(value, Tensor) and name != "eps":  # whose gradient would be lost in the plan
                continue
            check_number(f"opt.{name}", value)
            if not fits(value):
                raise ValueError(f"opt.{name} must be {wanted}, got {value}")
