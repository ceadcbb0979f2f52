"""A batch against its draw of candidates: what a training step has computed when it comes to the loss.

Shapes: ``B`` examples, ``N`` shared candidates, ``M`` candidates of each example's own, ``I`` items, ``D`` dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from towers.features import Batch
from towers.model import logits
from towers.model.gathering import ALONE, Ranks
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
        shared = self.shared_logits(0, len(self.draw.rows))
        return shared if self.own is None else torch.cat([shared, self.own_logits()], 1)

    def shared_logits(self, start: int, end: int) -> Tensor:
        """``[B, end - start]``: logits of a part of the shared candidates."""
        part = slice(start, end)
        score = logits.candidate_scores if self.mixture is None else self.mixture.shared
        s = self._biased(score(self.query, self.candidates[part]))
        if self.corrected:
            s = logits.correct_log_q(s, self.draw.log_q[part])
        live = None
        if self.batch.time is not None:
            posted = None if self.posted is None else self.posted[part]
            live = logits.not_live(self.batch.time, posted, None if self.expires is None else self.expires[part])
        n, covered = end - start, self.draw.covered
        known = logits.known_positives(self.columns, n, self.batch.item, self.batch.known, start)
        covered = None if covered is None else logits.listed(self.columns, n, covered, start)
        return logits.mask(s, known, live, covered)

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
        n = len(self.draw.rows)
        known = logits.known_positives(self.columns, n, self.batch.item, self.batch.known)
        row, column = known.nonzero(as_tuple=True)
        other = column != self.columns[self.batch.item][row]
        return row[other], column[other]

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

    def single_precision(self) -> Contrast:
        """The same with float32 vectors."""
        return self._map(lambda x: x.float())

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
