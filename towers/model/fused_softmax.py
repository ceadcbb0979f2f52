"""The softmax over sampled candidates in one pass over blocks of examples: value and gradients at once.

Shapes: ``B`` examples, ``N`` candidates, ``R`` examples of a block, ``D`` dim.

    s_bj  = ⟨q_b, c_j⟩, corrected and masked
    Z_b   = Σ_j exp s_bj + Σ own                                  (own: candidates of the example alone)
    L     = Σ_b w_b log(1 + Z_b exp -s⁺_b)                        the loss
    g_b   = w_b σ(log Z_b - s⁺_b) / Z_b
    ∂L/∂q_b = g_b Σ_j exp(s_bj) c_j        ∂L/∂c_j = Σ_b g_b exp(s_bj) q_b

A loss is a number, hence its gradients are known up to a factor before anything has been sent back. A block's logits
are therefore used up where they are made, while they are in the cache: three matrix products, the same as by autograd,
and a few passes over ``[R, N]`` instead of many over ``[B, N]``, which is never held. (Hsu et al., "Liger Kernel",
2024, do so for the vocabulary of a language model; Wijmans et al., "Cut Your Losses", 2025, compute the logits twice
instead.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from towers.model.contrast import Contrast, VectorLoss
from towers.model.losses import log_sum_exp

_PAIRS = {"cpu": 1 << 20, "cuda": 1 << 26}  # logits of a block: 4 MiB stay in a cache; a card wants long rows of work
_ROWS = 128  # at least: thinner blocks make slow matrix products


@dataclass(frozen=True)
class SampledSoftmax(VectorLoss):
    """``losses.sampled_softmax`` (see there what it aims at) over inner products, without the ``[B, N]`` logits.

    The first choice for retrieval, with any sampler; with ``negatives=full`` the exact softmax over a catalogue of any
    size that can be embedded in a step.

    Attributes:
        margin: in logits, what a positive must be ahead of each negative: for a margin in the cosine divide that by the
            temperature.
    """

    margin: float = 0.0

    def __call__(self, contrast: Contrast) -> Tensor:
        """``log(1 + Σ_j exp(s_j - s⁺ + m))``, averaged by weight."""
        c = contrast
        if c.bias is not None:  # all of an example's logits have it, hence no softmax sees it: its gradient is 0
            c = replace(c, bias=c.bias - c.bias)
        own = None if c.own is None else log_sum_exp(c.own_logits())
        weight = c.weight / c.weight.sum().clamp_min(1e-12)
        rows = block_rows(len(c.candidates), c.query.device)
        finish = [part.finish for part in c.parts(rows)]
        return fused_softmax(c.query, c.candidates, c.positive_logits() - self.margin, own, weight, rows, finish)


def block_rows(candidates: int, device: torch.device) -> int:
    """``R``: examples whose logits are held at once.

    Args:
        candidates: ``N``.
        device: where they are computed.
    """
    return max(_PAIRS.get(device.type, _PAIRS["cuda"]) // max(candidates, 1), _ROWS)


def fused_softmax(
    query: Tensor,
    candidates: Tensor,
    positive: Tensor,
    own: Tensor | None,
    weight: Tensor,
    rows: int,
    finish: Sequence[Callable[[Tensor], Tensor]],
) -> Tensor:
    """``Σ_b w_b log(1 + exp(log Z_b - s⁺_b))``, see the top of this file.

    Args:
        query: ``[B, D]``.
        candidates: ``[N, D]``.
        positive: ``[B]`` logits, less the margin.
        own: ``[B]`` log of the sum over the example's own candidates, or None.
        weight: ``[B]``.
        rows: ``R``.
        finish: for each block of that many examples, from its ``[R, N]`` inner products to its logits, ``-inf`` where
            masked: constants are added, in place.

    Returns:
        A scalar, with gradients for all but the weights; they are numbers, hence without derivatives of their own.
    """
    out: Tensor = _FusedSoftmax.apply(query, candidates, positive, own, weight, rows, finish)  # type: ignore[no-untyped-call]
    return out


class _FusedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        candidates: Tensor,
        positive: Tensor,
        own: Tensor | None,
        weight: Tensor,
        rows: int,
        finish: Sequence[Callable[[Tensor], Tensor]],
    ) -> Tensor:
        device = query.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
        q, c = query.to(low), candidates.to(low)
        # One array for all blocks, since fresh memory costs as much as a product; a second one beside bfloat16.
        products = q.new_empty(min(rows, len(q)), len(c))
        mixed = products.dtype != positive.dtype
        space = torch.empty_like(products, dtype=positive.dtype) if mixed else products
        loss = positive.new_zeros(())
        for_query, for_positive = torch.empty_like(query), torch.empty_like(positive)
        for_own = None if own is None else torch.empty_like(own)
        for_candidates = torch.zeros_like(candidates, dtype=positive.dtype)  # a sum over blocks: not in bfloat16
        with torch.autocast(device, enabled=False):
            for i, logits in enumerate(finish):
                part = slice(i * rows, min((i + 1) * rows, len(q)))
                product, scores = products[: part.stop - part.start], space[: part.stop - part.start]
                torch.mm(q[part], c.T, out=product)
                s = logits(scores.copy_(product) if mixed else scores)  # [R, N]
                top = s.amax(1).clamp_min(-1e30) if len(c) else s.new_full((len(s),), -1e30)  # finite if all is masked
                terms = s.sub_(top.unsqueeze(1)).exp_()
                log_z = terms.sum(1).log() + top
                if own is not None:
                    log_z = torch.logaddexp(log_z, own[part])
                ahead = log_z - positive[part]
                loss += weight[part] @ F.softplus(ahead)
                slope = weight[part] * ahead.sigmoid()
                log_z = log_z.clamp_min(-1e30)
                each = (slope * (top - log_z).exp()).unsqueeze(1)  # [R, 1]: g_b exp(top)
                terms = product.copy_(terms) if mixed else terms
                for_query[part] = (terms @ c) * each
                for_candidates += terms.T @ (q[part] * each).to(low)
                for_positive[part] = -slope
                if own is not None and for_own is not None:
                    for_own[part] = slope * (own[part] - log_z).exp()
        ctx.save_for_backward(
            for_query, for_candidates.to(candidates.dtype), for_positive, *([] if for_own is None else [for_own])
        )
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        for_query, for_candidates, for_positive, *for_own = (grads[0].to(x.dtype) * x for x in ctx.saved_tensors)
        return for_query, for_candidates, for_positive, for_own[0] if for_own else None, None, None, None
