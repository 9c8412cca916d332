"""Drop-in `SRC_Loss`, `PatchHDCELoss` and `PatchNCELoss` for the public Hneg_SRC code [L: Jung et al., CVPR 2022].

`PatchSampleF` is CUT's, with positions from torch.randperm.
"""

import torch
from torch import Tensor

from fastsketch._checks import FLOATING, INTEGER, check_above_zero, check_number, check_tensor
from fastsketch.compat import cut
from fastsketch.compat.dclgan import PatchSampleF
from fastsketch.ops.relation import Relation, WeightedNCE, relation_weight
from fastsketch.reference.precision import widened

__all__ = ["PatchHDCELoss", "PatchNCELoss", "PatchSampleF", "SRC_Loss"]


class SRC_Loss(cut.PatchNCELoss):
    """Semantic relation consistency, and the weights of negatives that `PatchHDCELoss` takes.

    Args:
        opt: the options, read at each call: `HDCE_gamma` (γ > 0), `use_curriculum`; with a curriculum also
            `HDCE_gamma_min`, `n_epochs`, `n_epochs_decay`, `step_gamma` and `step_gamma_epoch`; and CUT's for the
            number of images.
    """

    def forward(
        self,
        feat_q: Tensor,  # [B·S, D]
        feat_k: Tensor,  # [B·S, D]
        only_weight: bool = False,
        epoch: int | None = None,
    ) -> tuple[Tensor | int, Tensor]:
        """Jensen–Shannon divergence of the two images' relations, summed over rows; the keys are detached.

        Args:
            feat_q: features of the drawn image, any floating dtype; normalised here.
            feat_k: those of the source, of the same shape.
            only_weight: make the weights alone.
            epoch: the curriculum's; not used without.

        Returns:
            (loss, weights): a float32 scalar (float64 for float64 input), summed over images, or 0 with
            `only_weight`; weights [B, S, S] of that dtype in [0, 1], without gradient.

        Raises:
            TypeError, ValueError: an option or epoch that is no number, or out of its range.
            TypeError: other types or several dtypes.
            ValueError: other shapes, or no number of images is known that divides the rows.
        """
        gamma = self._gamma(epoch)
        shape = self._shape(feat_q, feat_k)
        with torch.autocast(feat_q.device.type, enabled=False):
            key = widened(feat_k.detach()).reshape(shape)
            if shape[1] == 0:  # no patches
                return 0 if only_weight else widened(feat_q).sum(), key.new_zeros(shape[0], 0, 0)
            if only_weight:
                return 0, relation_weight(key, gamma)
            loss, weight = Relation.apply(widened(feat_q).reshape(shape), key, gamma)
            return loss.sum(), weight

    def _gamma(self, epoch: int | None) -> float:
        """γ, from `HDCE_gamma` towards `HDCE_gamma_min` over the epochs with a curriculum, 1 behind its step."""
        opt, gamma = self.opt, self.opt.HDCE_gamma
        check_above_zero("opt.HDCE_gamma", gamma)
        if opt.use_curriculum:
            check_number("epoch", epoch)
            check_above_zero("opt.HDCE_gamma_min", opt.HDCE_gamma_min)
            gamma = gamma + (opt.HDCE_gamma_min - gamma) * epoch / (opt.n_epochs + opt.n_epochs_decay)
            if opt.step_gamma and epoch > opt.step_gamma_epoch:
                gamma = 1.0
            check_above_zero(f"the γ that opt's curriculum gives for epoch {epoch}", gamma)
        return float(gamma)


class PatchNCELoss(cut.PatchNCELoss):
    """CUT's loss, whose negatives may be weighted.

    Args:
        opt: CUT's options, read at each call.
    """

    decoupled = False

    def forward(
        self,
        feat_q: Tensor,  # [B·S, D]
        feat_k: Tensor,  # [B·S, D]
        weight: Tensor | None = None,  # [B, S, S]
    ) -> Tensor:  # [B·S]
        """The loss of each query, not reduced; the keys are detached.

        Args:
            feat_q: normalised queries, images one after the other, any floating dtype.
            feat_k: normalised keys of the same shape, positives row by row.
            weight: factors of the products with the negatives, finite, the diagonal not used; no gradient. None: 1.

        Returns:
            Losses [B·S], float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: a temperature that is no number, or not positive and finite.
            TypeError: other types or several dtypes.
            ValueError: other shapes, or no number of images is known that divides the rows.
        """
        check_above_zero("opt.nce_T", self.opt.nce_T)
        images, samples, width = self._shape(feat_q, feat_k)
        if weight is not None:
            check_tensor("weight", weight, (*FLOATING, *INTEGER))
            if weight.shape != (images, samples, samples):
                raise ValueError(f"weight must be {[images, samples, samples]}, got {list(weight.shape)}")
        with torch.autocast(feat_q.device.type, enabled=False):
            query, key = (widened(x).reshape(images, samples, width) for x in (feat_q, feat_k.detach()))
            weight = None if weight is None else weight.detach().to(query.dtype)
            return WeightedNCE.apply(query, key, weight, float(self.opt.nce_T), self.decoupled).flatten()


class PatchHDCELoss(PatchNCELoss):
    """Decoupled contrastive loss with hard negatives: the value of `PatchNCELoss`, the gradient of the decoupled form.

    Each loss has the mean of all queries' gradients, as there: take the mean of the losses.

    Args:
        opt: CUT's options, read at each call.
    """

    decoupled = True
