"""Losses over the logits of one positive and many negatives for each example.

Shapes: ``B`` examples, ``N`` negatives. Every loss has the signature of ``Loss``: it knows neither towers
nor samplers.
"""

from __future__ import annotations

from typing import Any, Protocol

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
    loss: Tensor = _SoftmaxLoss.apply(positive, negative)  # type: ignore[no-untyped-call]
    return weighted_mean(loss, weight)


class _SoftmaxLoss(torch.autograd.Function):
    """``log(exp s⁺ + Σ_j exp s_j) - s⁺`` for each example, in as few passes over ``[B, N]`` as possible.

    On a CPU a training step is mostly such passes: autograd's own would be twice as many.
    """

    @staticmethod
    def forward(ctx: Any, positive: Tensor, negative: Tensor) -> Tensor:
        top = positive if not negative.shape[1] else torch.maximum(positive, negative.amax(1))
        own = torch.exp(positive - top)
        others = (negative - top.unsqueeze(1)).exp_()
        total = own + others.sum(1)
        ctx.save_for_backward(own / total, others, total)
        return total.log() + top - positive

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        p_own, others, total = ctx.saved_tensors
        grad = grads[0]
        return grad * (p_own - 1), others * (grad / total).unsqueeze(1)


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """``Σ w x / Σ w`` of two ``[B]`` tensors."""
    return (x * weight).sum() / weight.sum().clamp_min(1e-12)
