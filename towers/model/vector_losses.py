"""Losses that see vectors, chunks or other positives: everything that ``losses`` cannot say with two arrays of logits.

Shapes: ``B`` examples, ``N`` candidates, ``C`` candidates of a chunk, ``D`` dim, ``P`` pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from towers.errors import ConfigError
from towers.model.contrast import Contrast, VectorLoss
from towers.model.losses import binary, log_sum_exp, weighted_mean


@dataclass(frozen=True)
class ChunkedSoftmax(VectorLoss):
    """``sampled_softmax`` without ever holding ``[B, N]`` logits: value and gradient are the same.

    The forward pass keeps a running ``log Σ exp`` over chunks of candidates, the backward pass computes the logits of
    each chunk again (as in "Cut Your Losses in Large-Vocabulary Language Models", Wijmans et al., 2025). It costs one
    matrix product more and holds ``[B, C]`` instead of ``[B, N]``.

    Use it with ``negatives=full``: the exact cross-entropy over all trained jobs, known positives masked, for a hundred
    thousand jobs and more. With a few thousand candidates ``sampled_softmax`` is faster.

    Attributes:
        chunk: ``C``.
    """

    chunk: int = 8192

    def __post_init__(self) -> None:
        """Check the size."""
        if self.chunk < 1:
            raise ConfigError(f"loss.chunk is {self.chunk}; set it to at least 1")

    def __call__(self, contrast: Contrast) -> Tensor:
        """``log(1 + Σ_j exp(s_j - s⁺))``, averaged by weight."""
        c = contrast.single_precision()
        negative: Tensor = _ChunkedLogSumExp.apply(c.query, c.candidates, c.shared_logits, self.chunk)  # type: ignore[no-untyped-call]
        if c.own is not None:
            negative = log_sum_exp(torch.stack([negative, log_sum_exp(c.own_logits())], 1))
        return weighted_mean(F.softplus(negative - c.positive_logits()), c.weight)


class _ChunkedLogSumExp(torch.autograd.Function):
    """``log Σ_j exp s_bj`` of logits ``s_bj = ⟨q_b, c_j⟩ + constant`` that are computed when they are needed, twice."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, candidates: Tensor, logits_of: Callable[[int, int], Tensor], chunk: int
    ) -> Tensor:
        ctx.logits_of, ctx.chunk = logits_of, chunk
        top = query.new_full((len(query),), -1e30)
        total = torch.zeros_like(top)
        with torch.autocast(query.device.type, enabled=False):
            for start in range(0, len(candidates), chunk):
                s = logits_of(start, min(start + chunk, len(candidates)))
                higher = torch.maximum(top, s.amax(1))
                total = total * (top - higher).exp_() + s.sub_(higher.unsqueeze(1)).exp_().sum(1)
                top = higher
        out = total.log() + top
        ctx.save_for_backward(query, candidates, out.clamp_min(-1e30))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        query, candidates, partition = ctx.saved_tensors
        for_query, for_candidates = torch.zeros_like(query), torch.empty_like(candidates)
        with torch.autocast(query.device.type, enabled=False):
            for start in range(0, len(candidates), ctx.chunk):
                part = slice(start, min(start + ctx.chunk, len(candidates)))
                s = ctx.logits_of(part.start, part.stop)
                p = s.sub_(partition.unsqueeze(1)).exp_().mul_(grads[0].unsqueeze(1))  # [B, C]
                for_query.addmm_(p, candidates[part])
                torch.mm(p.T, query, out=for_candidates[part])
        return for_query, for_candidates, None, None


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
        others = (c.query.float()[row] * c.candidates.float()[column]).sum(-1)  # [P]
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
