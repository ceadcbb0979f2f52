"""A batch against its draw of candidates: what a training step has computed when it comes to the loss.

Shapes: ``B`` examples, ``N`` shared candidates, ``M`` candidates of each example's own, ``I`` items, ``D`` dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from towers.features import Batch
from towers.model import logits
from towers.model.gathering import ALONE, Ranks
from towers.model.grad_cache import parts
from towers.model.heads import Heads
from towers.model.mixture import MixtureOfLogits
from towers.model.negatives import Negatives
from towers.model.similarity import Similarity


@dataclass(frozen=True)
class Own:
    """Candidates that stand against one example only, such as negatives mined for its positive.

    Attributes:
        vectors: ``[B, M, D]``.
        masked: ``[B, M]`` bool: places without a candidate, known positives, jobs that were not live.
        log_q: ``[B, M]``; None: each stands for itself.
    """

    vectors: Tensor
    masked: Tensor
    log_q: Tensor | None = None


@dataclass(frozen=True)
class Contrast:
    """Vectors, corrections and masks of a step; logits of it are computed when they are asked for.

    Attributes:
        batch: the examples.
        draw: the shared candidates.
        columns: ``[I]``, from ``logits.item_columns`` of the draw.
        query: ``[B, D]``; divided by the temperature when a loss sees it.
        positive: ``[B, D]``.
        candidates: ``[N, D]``.
        corrected: whether log q is subtracted from the negatives' logits.
        positive_log_q: ``[B]``, subtracted from the positives' logits if given.
        posted: ``[N]`` first microsecond of each candidate, or None: always live.
        expires: ``[N]`` first microsecond after, or None: for ever.
        own: negatives of each example's own, such as mined ones.
        shown: what else each user was shown when she chose the positive, and left.
        mixture: scores pairs instead of the inner product, if given.
        bias: ``[B]``, added to all scores of an example, if given; corrections come after it.
        ranks: the processes whose examples the draw serves.
    """

    batch: Batch
    draw: Negatives
    columns: Tensor
    query: Tensor
    positive: Tensor
    candidates: Tensor
    corrected: bool = True
    positive_log_q: Tensor | None = None
    posted: Tensor | None = None
    expires: Tensor | None = None
    own: Own | None = None
    shown: Own | None = None
    mixture: MixtureOfLogits | None = None
    bias: Tensor | None = None
    ranks: Ranks = ALONE

    @property
    def weight(self) -> Tensor:
        """``[B]`` label weights."""
        weight: Tensor = self.batch.weight
        return weight

    def positive_logits(self) -> Tensor:
        """``[B]``."""
        s = self.positive_scores()
        return s if self.positive_log_q is None else logits.correct_log_q(s, self.positive_log_q)

    def negative_logits(self) -> Tensor:
        """``[B, N + M]``, ``-inf`` where masked."""
        shared = self.shared_logits()
        return shared if self.own is None else torch.cat([shared, self.own_logits()], 1)

    def shared_logits(self) -> Tensor:
        """``[B, N]``: logits of the shared candidates, ``-inf`` where masked."""
        score = logits.candidate_scores if self.mixture is None else self.mixture.shared
        return self.finish(score(self.query, self.candidates))

    def finish(self, scores: Tensor) -> Tensor:
        """From the ``[B, N]`` scores of the shared candidates to their logits. Changes ``scores`` itself."""
        s = scores if self.bias is None else scores.add_(self.bias.unsqueeze(1))
        if self.corrected:
            s = s.sub_(self.draw.log_q)  # ``logits.correct_log_q`` in place: the largest array of a step
        live = None if self.batch.time is None else logits.not_live(self.batch.time, self.posted, self.expires)
        return logits.mask(s, live, self._struck())

    def _struck(self) -> tuple[Tensor, Tensor]:
        """``[P]`` examples and columns that are no negatives: known positives, what own candidates stand for."""
        known = logits.known_positives(self.columns, self.batch.item, self.batch.known)
        if self.draw.covered is None:
            return known
        covered = logits.listed(self.columns, len(self.draw.rows), self.draw.covered)
        return torch.cat([known[0], covered[0]]), torch.cat([known[1], covered[1]])

    def parts(self, size: int) -> list[Contrast]:
        """The same for at most ``size`` examples at a time, with the shared candidates only."""
        if len(self.batch) <= size:
            return [self]
        batches = list(parts(self.batch, size))
        count = len(batches)

        def cut(x: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * count if x is None else torch.split(x, size)

        columns = zip(batches, *map(cut, (self.query, self.positive, self.bias, self.draw.covered)), strict=True)
        return [
            replace(
                self, batch=batch, draw=self.draw._replace(own=None, own_log_q=None, covered=covered), query=query,
                positive=positive, positive_log_q=None, bias=bias, own=None, shown=None,
            )
            for batch, query, positive, bias, covered in columns
        ]  # fmt: skip

    def own_logits(self) -> Tensor:
        """``[B, M]``: logits of each example's own candidates."""
        return self._of_own(self.own, self.corrected)

    def positive_scores(self) -> Tensor:
        """``[B]``, without a correction."""
        if self.mixture is not None:
            return self.mixture.own(self.query, self.positive.unsqueeze(1)).squeeze(1)
        s = logits.positive_scores(self.query, self.positive)
        return s if self.bias is None else s + self.bias

    def shown_scores(self) -> Tensor:
        """``[B, M]``, ``-inf`` where masked: what was shown and not chosen. Nobody drew it, nothing is to correct."""
        return self._of_own(self.shown, corrected=False)

    def _of_own(self, own: Own | None, corrected: bool) -> Tensor:
        if own is None:
            return self.query.new_empty((len(self.batch), 0), dtype=torch.float32)
        s = self._biased((logits.own_scores if self.mixture is None else self.mixture.own)(self.query, own.vectors))
        return logits.mask(logits.correct_log_q(s, own.log_q) if corrected and own.log_q is not None else s, own.masked)

    def _biased(self, scores: Tensor) -> Tensor:
        return scores if self.bias is None else scores + self.bias.unsqueeze(1)

    def other_positives(self) -> tuple[Tensor, Tensor]:
        """``[P]`` examples and ``[P]`` columns: known positives of the example's user that the draw happens to hold."""
        known = logits.known_positives(self.columns, self.batch.item, self.batch.known)
        held = logits.mask(torch.zeros(len(self.batch), len(self.draw.rows), device=self.query.device), pairs=known)
        row, column = held.nonzero(as_tuple=True)
        other = column != self.columns[self.batch.item][row]
        return row[other], column[other]

    def logits_as_positives(self, row: Tensor, column: Tensor) -> Tensor:
        """``[P]``: logits of shared candidates that are positives of these examples, corrected as these."""
        s = logits.positive_scores(self.query[row], self.candidates[column])
        if self.bias is not None:
            s = s + self.bias[row]
        return s if self.positive_log_q is None else logits.correct_log_q(s, self.draw.log_q[column])

    def cool(self, similarity: Similarity, heads: Heads | None = None) -> Contrast:
        """The same with queries divided by the temperature, scaled and biased by the calibration of their actions."""
        query = similarity.cool(self.query)
        if heads is None or heads.calibration is None:
            return replace(self, query=query)
        scale, bias = heads.calibration(self.batch.action)
        return replace(self, query=query * scale.unsqueeze(1), bias=bias)

    def prefix(self, dim: int, similarity: Similarity) -> Contrast:
        """The same with the first ``dim`` dimensions of all vectors, normalised again."""
        return self._map(lambda x: similarity.normalise(x[..., :dim]))

    def _map(self, f: Callable[[Tensor], Tensor]) -> Contrast:
        """The same with ``f`` applied to all vectors."""

        def inside(own: Own | None) -> Own | None:
            return None if own is None else replace(own, vectors=f(own.vectors))

        query, positive, candidates = f(self.query), f(self.positive), f(self.candidates)
        own, shown = inside(self.own), inside(self.shown)
        return replace(self, query=query, positive=positive, candidates=candidates, own=own, shown=shown)


class VectorLoss(ABC):
    """A loss that needs more than the logits of one positive and its negatives."""

    @abstractmethod
    def __call__(self, contrast: Contrast) -> Tensor:
        """A scalar."""
