"""Losses that see vectors or other positives: what ``losses`` cannot say with two arrays of logits.

Shapes: ``B`` examples, ``N`` candidates, ``D`` dim, ``P`` pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from towers.errors import ConfigError
from towers.model.contrast import Contrast, VectorLoss
from towers.model.losses import binary, log_sum_exp, weighted_mean


@dataclass(frozen=True)
class MultiPositive(VectorLoss):
    """The softmax of the example's positive, averaged with those of the user's other positives that the draw holds.

        L_b = mean over p ∈ {item of b} ∪ (known of b's user ∩ draw) of  log(1 + Σ_j exp(s_j - s_p))

    The negatives are common and hold no positive, so that positives do not compete with each other ("supervised
    contrastive learning", Khosla et al., 2020, the form with the sum outside of the logarithm). Use it where users take
    many items that stand beside each other (skills of an occupation, tags), with ``negatives=full`` or large batches;
    where what comes next matters (sequences), it blurs the target. Other positives enter as often as they are drawn.
    """

    def __call__(self, contrast: Contrast) -> Tensor:
        """See above."""
        c = contrast
        negative = log_sum_exp(c.negative_logits())  # [B]
        row, column = c.other_positives()
        others = c.logits_as_positives(row, column)  # [P]
        total = F.softplus(negative - c.positive_logits()).index_add(0, row, F.softplus(negative[row] - others))
        count = torch.ones_like(total).index_add(0, row, torch.ones_like(others))
        return weighted_mean(total / count, c.weight)


@dataclass(frozen=True)
class GeneralisedBinary(VectorLoss):
    """``losses.binary`` with the β that makes up for sampled negatives: gBCE.

    ``β = 1 - t (1 - α)``, where α is the share of the catalogue that is drawn ("gSASRec", Petrov and Macdonald, 2023,
    equation 9). At ``t = 1`` scores tend to what they would be without sampling, at ``t = 0`` it is plain binary
    cross-entropy. Use it for sequence models with a few hundred uniform negatives where ``σ(s - log N)`` must be a
    probability; for the ranking alone ``sampled_softmax`` is as good.

    Attributes:
        calibration: ``t``; the paper takes .75.
    """

    calibration: float = 0.75

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.calibration <= 1:
            raise ConfigError(f"loss.calibration is {self.calibration}; set it between 0 and 1")

    def __call__(self, contrast: Contrast) -> Tensor:
        """See above."""
        # a number on the device, in double precision as a number of Python's would be: the host need not wait for it
        share = contrast.draw.log_q.exp().mean().double() if len(contrast.draw.rows) else 0.0
        beta = 1.0 - self.calibration * (1.0 - share)
        return binary(contrast.positive_logits(), contrast.negative_logits(), contrast.weight, beta)


@dataclass(frozen=True)
class AlignmentUniformity(VectorLoss):
    """``mean ‖q - c⁺‖² + γ (uniformity of q + uniformity of c⁺) / 2`` on the unit sphere, without any negatives.

    Uniformity is ``log mean exp(-2 ‖x - y‖²)`` over the pairs of a batch ("DirectAU", Wang et al., 2022). Use it on
    clicks without text with batches of a thousand or more and ``negatives=in_batch`` (no draw is looked at, and that
    one costs nothing), and serve a cosine, since vectors are normalised here. γ is what to tune (.2 to 10).

    Attributes:
        uniformity: γ.
    """

    uniformity: float = 1.0

    def __call__(self, contrast: Contrast) -> Tensor:
        """See above."""
        query = F.normalize(contrast.query.float(), dim=-1)
        positive = F.normalize(contrast.positive.float(), dim=-1)
        loss = weighted_mean((query - positive).square().sum(-1), contrast.weight)
        query, positive = contrast.ranks.examples(query), contrast.ranks.examples(positive)  # pairs of the whole batch
        if len(query) > 1:
            loss = loss + self.uniformity * (_uniformity(query) + _uniformity(positive)) / 2
        return loss


def _uniformity(x: Tensor) -> Tensor:
    """``log mean_{i≠j} exp(-2 ‖x_i - x_j‖²)`` of ``[B, D]`` unit vectors, as ``‖x - y‖² = 2 - 2 ⟨x, y⟩``."""
    n = len(x)
    gram = (4 * (x @ x.T) - 4).float().fill_diagonal_(float("-inf"))
    return log_sum_exp(gram.view(1, n * n)).squeeze(0) - math.log(n * (n - 1))
