"""From embeddings to the logits of a sampled softmax: one pure function for each step.

Shapes: ``B`` examples, ``N`` sampled candidates, ``M`` candidates of each example's own, ``I`` items, ``D`` dim.

    s⁺_b   = ⟨q_b, c⁺_b⟩ / τ                     ``positive_scores``   (queries are already divided by τ)
    s_bj   = ⟨q_b, c_j⟩ / τ                      ``candidate_scores``; ``own_scores`` where c_bj is b's own
    s_bj  -= log q_j                             ``correct_log_q``
    s_bj   = -∞  if j is a positive of b's user  ``known_positives``; ``known_among`` for b's own
           = -∞  if j was not live at b's time   ``not_live``
           = -∞  if b's own candidates stand for j  ``listed``
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from towers.features import Ragged


def positive_scores(query: Tensor, positive: Tensor) -> Tensor:
    """Score of each example's own item.

    Args:
        query: ``[B, D]``.
        positive: ``[B, D]``.

    Returns:
        ``[B]``, in single precision at least: a softmax over thousands does not suffer bfloat16.
    """
    return (query.float() * positive.float()).sum(-1)


def candidate_scores(query: Tensor, candidates: Tensor) -> Tensor:
    """Score of every candidate for every example.

    Args:
        query: ``[B, D]``.
        candidates: ``[N, D]``.

    Returns:
        ``[B, N]``, float32.
    """
    return (query @ candidates.T).float()


def own_scores(query: Tensor, own: Tensor) -> Tensor:
    """Score of each example's own candidates.

    Args:
        query: ``[B, D]``.
        own: ``[B, M, D]``.

    Returns:
        ``[B, M]``, float32.
    """
    return torch.einsum("bd,bmd->bm", query, own).float()


def correct_log_q(scores: Tensor, log_q: Tensor) -> Tensor:
    """Make up for how often the sampler draws each candidate.

    For the candidates, ``Σ_j exp(s_j - log q_j)`` then is an unbiased estimate of the sum over the support
    (see ``negatives``). Two conventions exist for the positive:

    * It is certain to stand in its own softmax, hence its q is 1, and it stays as it is: the unbiased form, and ours by
      default. It is what Khrylchenko et al. arrive at ("Correcting the LogQ Correction", 2025): their weight
      ``1 - p(positive)`` on a softmax over negatives only is the gradient of this form, term by term, and their
      proposal without the positive is our mask.
    * It is corrected as well (Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
      Recommendations", 2019, equation 4), as if it had come out of the sampler like all others. The optimum then moves
      from ``log p(item | user)`` towards ``log p(item | user) + log q(item)`` for items of small q: a preference
      for popular items is left in the scores.

    Args:
        scores: ``[B, N]``, or ``[B]`` for positives.
        log_q: ``[N]``, or ``[B]`` for positives.

    Returns:
        What ``scores`` is.
    """
    return scores - log_q


def item_columns(rows: Tensor, n_items: int) -> Tensor:
    """Where each item stands in a draw.

    Args:
        rows: ``[N]`` distinct item rows.
        n_items: ``I``.

    Returns:
        ``[I]`` int64 column numbers, ``N`` (one past the last) for items that were not drawn.
    """
    n = len(rows)
    columns = rows.new_full((n_items,), n)
    columns[rows] = torch.arange(n, device=rows.device)
    return columns


def known_positives(columns: Tensor, items: Tensor, known: Ragged) -> tuple[Tensor, Tensor]:
    """Candidates that a user is known to want: they are no negatives for her.

    Her own positive of this example is one of them (an "accidental hit" when another example or the sampler
    brings it), and so are those of her other examples.

    Args:
        columns: ``[I]``, from ``item_columns``.
        items: ``[B]`` positives.
        known: ``[B]`` lists of item rows.

    Returns:
        ``[P]`` examples and ``[P]`` columns, one past the last for what was not drawn; pairs may occur twice.
    """
    b = torch.arange(len(items), device=items.device)
    row = torch.cat([b, b.repeat_interleave(known.offsets.diff(), output_size=len(known.values))])
    return row, columns[torch.cat([items, known.values])]


def listed(columns: Tensor, n: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates of the draw that stand in a list of the example's own.

    Args:
        columns: ``[I]``, from ``item_columns``.
        n: ``N``.
        rows: ``[B, K]`` item rows, negative where there is none.

    Returns:
        As from ``known_positives``.
    """
    row = torch.arange(len(rows), device=rows.device).unsqueeze(1).expand_as(rows)
    return row.reshape(-1), torch.where(rows >= 0, columns[rows.clamp(min=0)], n).reshape(-1)


def known_among(rows: Tensor, items: Tensor, known: Ragged, n_items: int) -> Tensor:
    """Which of each example's own candidates its user is known to want: see ``known_positives``.

    Args:
        rows: ``[B, M]`` item rows.
        items: ``[B]`` positives.
        known: ``[B]`` lists of item rows.
        n_items: ``I``.

    Returns:
        ``[B, M]`` bool, true where masked.
    """
    b = torch.arange(len(items), device=items.device)
    owner = torch.cat([b, b.repeat_interleave(known.offsets.diff(), output_size=len(known.values))])
    taken = owner * n_items + torch.cat([items, known.values])
    return torch.isin(b.unsqueeze(1) * n_items + rows, taken) & (rows >= 0)


def not_live(time: Tensor, posted: Tensor | None, expires: Tensor | None) -> Tensor | None:
    """Candidates that could not have been shown: jobs not yet posted at the example's time, or expired by then.

    Args:
        time: ``[B]`` int64 microseconds UTC.
        posted: ``[N]`` or ``[B, N]``, first microsecond of each candidate, or None: always there.
        expires: ``[N]`` or ``[B, N]``, first microsecond after, or None: for ever.

    Returns:
        ``[B, N]`` bool, true where masked, or None if nothing ever is.
    """
    early = None if posted is None else time.unsqueeze(1) < posted
    late = None if expires is None else time.unsqueeze(1) >= expires
    return late if early is None else early if late is None else early | late


class _Masked(torch.autograd.Function):
    """``-inf`` in place. Every loss is flat there, hence gradients need no second masking on their way back."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, whole: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
        ctx.mark_dirty(scores)
        if whole is not None:
            scores.masked_fill_(whole, float("-inf"))
        n = scores.shape[1]
        if row is not None and column is not None and n:
            drawn = column < n  # to the others' rows a zero is added: no shape depends on the data
            penalty = torch.where(drawn, float("-inf"), 0.0).to(scores.dtype)
            scores.view(-1).index_add_(0, row * n + torch.where(drawn, column, 0), penalty)
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None, None


def mask(scores: Tensor, whole: Tensor | None = None, pairs: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Leave candidates out. Changes ``scores`` itself.

    Args:
        scores: ``[B, N]``.
        whole: ``[B, N]`` bool, true where masked.
        pairs: ``[P]`` examples and ``[P]`` columns that are masked too, none where the column is ``N``: most masks are
            a few pairs, and looking at all places would cost more than they do.

    Returns:
        ``[B, N]``, ``-inf`` where masked.
    """
    row, column = (None, None) if pairs is None else pairs
    out: Tensor = _Masked.apply(scores, whole, row, column)  # type: ignore[no-untyped-call]
    return out
