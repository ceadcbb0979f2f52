"""Losses over the logits of one positive and many negatives for each example.

Shapes: ``B`` examples, ``N`` negatives. Every loss has the signature of ``Loss``: it knows neither towers
nor samplers. What needs more than logits (vectors, chunks, other positives) is in ``vector_losses``.

    sampled_softmax      log(1 + Σ_j exp(s_j - s⁺ + m))                    wants logits corrected by log q
    bpr                  mean_j log(1 + exp(s_j - s⁺))                     wants plain scores
    binary               -(β log σ(s⁺ - log N) + Σ_j log σ(log N - s_j)) / (1 + N)   plain; corrected on both sides: NCE
    cosine_contrastive   1 - s⁺ + w mean_j max(0, s_j - m)                 plain cosines, temperature 1
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss(Protocol):
    """What the training step calls."""

    def __call__(self, positive: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
        """A scalar.

        Args:
            positive: ``[B]`` logits.
            negative: ``[B, N]`` logits, ``-inf`` where masked.
            weight: ``[B]`` label weights.
        """
        ...


def sampled_softmax(positive: Tensor, negative: Tensor, weight: Tensor, margin: float = 0.0) -> Tensor:
    """``-s⁺ + log(exp s⁺ + Σ_j exp s_j)``, averaged by weight.

    With corrected logits it estimates the softmax over all items (Bengio and Senécal, "Adaptive Importance
    Sampling", 2008); the ranking it aims at is by ``log p(item | user)``. The first choice for retrieval, with
    any sampler. An example without a negative left costs nothing.

    With a margin, every pair (positive, negative) must differ by that much before it counts as told apart: additive
    margin softmax (Yang et al., "Improving Multilingual Sentence Embedding using Bi-directional Dual Encoder with
    Additive Margin Softmax", 2019). Use one where positives are clean and near misses are known to be wrong (job
    titles, text pairs); with clicks, where a near miss is often a job that was not seen, it rarely helps.

    Args:
        positive: ``[B]`` logits.
        negative: ``[B, N]`` logits, ``-inf`` where masked.
        weight: ``[B]`` label weights.
        margin: in logits: for a margin in the cosine divide that by the temperature.

    Returns:
        A scalar; 0 if all weights are.
    """
    return weighted_mean(F.softplus(log_sum_exp(negative) - positive + margin), weight)


def bpr(positive: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
    """``-log σ(s⁺ - s_j)``, averaged over the negatives that are left and by weight.

    "Bayesian Personalised Ranking" (Rendle et al., 2009): an estimate of AUC, hence indifferent to whether a job
    stands at rank 1 or 100. A baseline of the literature; for top-K use ``sampled_softmax``. With uniform negatives,
    their logits not corrected: what it aims at depends on who is drawn.

    Args:
        positive: ``[B]`` scores.
        negative: ``[B, N]`` scores, ``-inf`` where masked.
        weight: ``[B]`` label weights.
    """
    pairs = F.softplus(negative - positive.unsqueeze(1))  # 0 where masked
    return weighted_mean(pairs.sum(1) / _left(negative), weight)


def binary(positive: Tensor, negative: Tensor, weight: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """``-(β log σ(s⁺ - log N) + Σ_j log(1 - σ(s_j - log N))) / (1 + N)``: is this pair a click, yes or no.

    Binary cross-entropy, as in SASRec (Kang and McAuley, 2018). The more negatives are drawn, the more it believes
    that nothing is ever clicked, and the positives at the top saturate; ``vector_losses.GeneralisedBinary`` finds the β
    that mends it. On plain scores, with uniform negatives.

    ``log N`` is the log-odds that a pair of the step is a negative. An inner product has no bias that could learn it;
    without it a thousand negatives first push all vectors into one direction. No ranking depends on it.

    With log q subtracted on both sides (``correct_negatives=true correct_positive=true``) it is noise-contrastive
    estimation (Gutmann and Hyvärinen, 2010), whose scores tend to ``log p(item | user) + log N`` with any sampler.

    Args:
        positive: ``[B]`` scores.
        negative: ``[B, N]`` scores, ``-inf`` where masked.
        weight: ``[B]`` label weights.
        beta: power of the positive's probability, a number or ``[]``.
    """
    left = _left(negative)
    odds = left.log()
    each = F.softplus(negative - odds.unsqueeze(1)).sum(1) + beta * F.softplus(odds - positive)
    return weighted_mean(each / (1 + left), weight)


def cosine_contrastive(
    positive: Tensor, negative: Tensor, weight: Tensor, margin: float = 0.4, negative_weight: float = 150.0
) -> Tensor:
    """``1 - s⁺ + w · mean_j max(0, s_j - m)``: negatives beyond the margin cost nothing.

    "SimpleX" (Mao et al., 2021), whose point is that many uniform negatives and a margin do what better models
    were praised for. Use it on clicks without text, with a cosine of temperature 1, histories pooled by their mean and
    some 1,000 uniform negatives, not corrected; tune the margin first (0 to .9), then the weight.

    Args:
        positive: ``[B]`` cosines.
        negative: ``[B, N]`` cosines, ``-inf`` where masked.
        weight: ``[B]`` label weights.
        margin: ``m``.
        negative_weight: ``w``.
    """
    beyond = F.relu(negative - margin).sum(1) / _left(negative)
    return weighted_mean(1 - positive + negative_weight * beyond, weight)


def log_sum_exp(x: Tensor) -> Tensor:
    """``log Σ_j exp x_j`` for each row; ``-inf``, with a gradient of 0, where nothing is left.

    Args:
        x: ``[B, N]`` logits, ``-inf`` where masked.

    Returns:
        ``[B]``.
    """
    if not x.shape[1]:
        return x.new_full((len(x),), float("-inf"))
    out: Tensor = _LogSumExp.apply(x)  # type: ignore[no-untyped-call]
    return out


class _LogSumExp(torch.autograd.Function):
    """In as few passes over ``[B, N]`` as possible: on a CPU a training step is mostly such passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        top = x.amax(1).clamp_min(-1e30)  # finite also where all is masked
        terms = (x - top.unsqueeze(1)).exp_()
        total = terms.sum(1)
        ctx.save_for_backward(terms, total)
        return total.log() + top

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        terms, total = ctx.saved_tensors
        grad: Tensor = terms * (grads[0] / total.clamp_min(1e-30)).unsqueeze(1)
        return grad


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """``Σ w x / Σ w`` of two ``[B]`` tensors."""
    return (x * weight).sum() / weight.sum().clamp_min(1e-12)


def _left(negative: Tensor) -> Tensor:
    """``[B]``: negatives that are not masked, at least 1."""
    left: Tensor = torch.clamp(torch.isfinite(negative).sum(1), min=1)
    return left
