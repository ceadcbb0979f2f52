"""Losses over the logits of one positive and many negatives for each example.

Shapes: ``B`` examples, ``N`` negatives. Every loss has the signature of ``Loss``: it knows neither towers
nor samplers.
"""

from __future__ import annotations

from typing import Protocol

import torch
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


def sampled_softmax(positive: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
    """``-s⁺ + log(exp s⁺ + Σ_j exp s_j)``, averaged by weight.

    With corrected logits it estimates the softmax over all items (Bengio and Senécal, "Adaptive Importance
    Sampling", 2008); the ranking it aims at is by ``log p(item | user)``. The first choice for retrieval, with
    any sampler. An example without a negative left costs nothing.

    Args:
        positive: ``[B]`` logits.
        negative: ``[B, N]`` logits, ``-inf`` where masked.
        weight: ``[B]`` label weights.

    Returns:
        A scalar; 0 if all weights are.
    """
    every = torch.cat([positive.unsqueeze(1), negative], dim=1)
    return weighted_mean(every.logsumexp(dim=1) - positive, weight)


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """``Σ w x / Σ w`` of two ``[B]`` tensors."""
    return (x * weight).sum() / weight.sum().clamp_min(1e-12)
