"""Which candidates a query may be given: not the excluded ones, and only those live at its time.

Shapes: ``Q`` queries, ``N`` candidates, ``B`` queries of a block, ``W`` columns of its score buffer.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from towers.evaluation.task import Task
from towers.features import Ragged


class Columns:
    """Item rows → candidate columns, through one lookup array.

    Args:
        candidates: ``[N]`` item rows.
    """

    def __init__(self, candidates: NDArray[np.int64]) -> None:
        self._column = np.full(int(candidates.max(initial=-1)) + 2, -1, np.int64)  # the last entry: everything beyond
        self._column[candidates] = np.arange(len(candidates))

    def __call__(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Columns of item rows of any shape; ``-1`` for items that are not candidates."""
        return self._column[np.minimum(items, len(self._column) - 1)]

    def pairs(self, lists: Ragged) -> Pairs:
        """(query, column) pairs of lists of item rows; items that are not candidates are left out."""
        lists = Ragged(np.asarray(lists.offsets, np.int64), np.asarray(lists.values, np.int64))
        columns = self(lists.values)
        queries = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))
        kept = np.flatnonzero(columns >= 0)
        return Pairs(queries[kept], columns[kept], kept)


class Pairs:
    """(query, column) pairs, sorted by query.

    Attributes:
        queries: ``[P]`` queries.
        columns: ``[P]`` candidate columns.
        source: ``[P]`` the position in the lists from which each pair came.
    """

    def __init__(self, queries: NDArray[np.int64], columns: NDArray[np.int64], source: NDArray[np.int64]) -> None:
        self.queries, self.columns, self.source = queries, columns, source

    def of(self, queries: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The pairs of ``[q]`` queries: ``[p]`` their place in ``queries``, and ``[p]`` their position among all."""
        first = np.searchsorted(self.queries, queries)
        count = np.searchsorted(self.queries, queries, side="right") - first
        ends = np.cumsum(count)
        place = np.repeat(np.arange(len(queries)), count)
        return place, np.arange(len(place)) + np.repeat(first - ends + count, count)


class Exclusions:
    """Hides each query's excluded items.

    Args:
        task: the question.
    """

    def __init__(self, task: Task) -> None:
        self._pairs = Columns(task.candidates).pairs(task.exclude)

    def apply(self, scores: Tensor, queries: NDArray[np.int64]) -> None:
        """Write ``-inf`` into ``[B, W]`` contiguous scores of ``[B]`` queries."""
        rows, pairs = self._pairs.of(queries)
        _hide(scores, rows, self._pairs.columns[pairs])


class Clock:
    """Hides candidates that are not live (posted <= time < expires), for queries in order of time.

    Of a few neighbouring moments nearly every candidate is live throughout or not at all: these share
    one row of zeros and ``-inf`` that is added to the scores and kept up to date as time goes on. Only
    what comes or goes between those moments is looked at query by query.

    Args:
        task: the question; its ``time`` is given.
        device: of the scores.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        assert task.time is not None  # made only then
        n = len(task.candidates)
        posted = np.full(n, np.iinfo(np.int64).min) if task.posted is None else task.posted
        expires = np.full(n, np.iinfo(np.int64).max) if task.expires is None else task.expires
        self._time = task.time
        # Queries that share the row. A step costs some 150 µs by itself; each query of it looks at what changes
        # meanwhile, some 5 ns for each of the ``n * step / len(task)`` candidates: the two are balanced here.
        self._step = int(np.clip(math.sqrt(30_000 * len(task) / max(n, 1)), 16, 1024))
        self._coming = _Sorted(posted, np.flatnonzero(posted < expires))  # the others are never live
        self._going = _Sorted(expires, np.arange(n))
        self._shared = torch.full((n,), -math.inf, device=device)
        self._first = self._last = np.iinfo(np.int64).min
        self._show(self._coming.between(None, self._last), 0.0)

    def apply(self, scores: Tensor, queries: NDArray[np.int64]) -> None:
        """Write ``-inf`` into ``[B, W]`` contiguous scores of ``[B]`` queries, none earlier than those before."""
        for start in range(0, len(queries), self._step):
            part = scores[start : start + self._step]
            now = self._time[queries[start : start + self._step]]
            first, last = now[0], now[-1]
            self._show(self._coming.between(self._last, last), 0.0)
            self._show(self._going.between(self._first, first), -math.inf)
            self._first, self._last = first, last
            part[:, : len(self._shared)].add_(self._shared)
            for changing, dead in ((self._coming, np.greater), (self._going, np.less_equal)):
                columns = changing.between(first, last)
                rows, places = np.nonzero(dead(changing.moment[columns], now[:, None]))
                _hide(part, rows, columns[places])

    def _show(self, columns: NDArray[np.int64], value: float) -> None:
        self._shared.index_fill_(0, torch.from_numpy(columns).to(self._shared.device), value)


class _Sorted:
    """Columns in the order of a moment of theirs."""

    def __init__(self, moment: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
        self.moment = moment
        self._columns = columns[np.argsort(moment[columns], kind="stable")]
        self._moments = moment[self._columns]

    def between(self, after: np.int64 | int | None, until: np.int64 | int) -> NDArray[np.int64]:
        """Columns whose moment lies in ``(after, until]``; None: from the beginning."""
        low = 0 if after is None else int(np.searchsorted(self._moments, after, side="right"))
        return self._columns[low : int(np.searchsorted(self._moments, until, side="right"))]


def _hide(scores: Tensor, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
    """Write ``-inf`` at ``(rows, columns)`` of contiguous scores."""
    flat = torch.from_numpy(rows * scores.shape[1] + columns).to(scores.device)
    scores.view(-1).index_fill_(0, flat, -math.inf)
