"""Queries whose histories are read while they are asked, some users at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data.batches import Collator, QueryBatches
from data.examples import Examples
from data.prepared import PreparedDataset
from towers.features import Batch

_EVENT = 13  # bytes of an event in a history: item, action, time


def query_batches(
    data: PreparedDataset, queries: Examples, length: int, batch_size: int, window: int | None = None
) -> QueryBatches | StreamedQueries:
    """Batches of queries, in their order.

    Args:
        data: the prepared dataset.
        queries: sorted by user.
        length: the newest events of a history that a batch holds.
        batch_size: queries in a batch.
        window: bytes of histories that may be held at once; None: all of them, which are then read once.
    """
    if window is None:
        return QueryBatches(queries, Collator(data.history, data.schema.clock, length), batch_size)
    return StreamedQueries(data, queries, length, batch_size, window)


def histories_window(data: PreparedDataset, budget: int | None) -> int | None:
    """Bytes of histories to be held at once within a budget; None where it holds them all."""
    if budget is None or int(data.row_groups("history").starts[-1]) * _EVENT <= budget:
        return None
    return budget // 4  # as a window of training examples


class StreamedQueries:
    """The batches of ``QueryBatches``; each pass over them reads the history log once, a stretch of users at a time."""

    def __init__(self, data: PreparedDataset, queries: Examples, length: int, batch_size: int, window: int) -> None:
        self._data, self._queries, self._length, self._size = data, queries, length, batch_size
        self._events = window // _EVENT

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._queries) // self._size)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the first query to the last."""
        offsets, _ = self._data.history_bounds
        for start, stop in self._stretches(offsets):
            some = self._queries.take(np.arange(start, stop))
            first = int(some.user[0])
            log = self._data.history_of(first, int(some.user[-1]) + 1)
            here = replace(some, place=some.user - first, history_end=some.history_end - offsets[first])
            yield from QueryBatches(here, Collator(log, self._data.schema.clock, self._length), self._size)

    def _stretches(self, offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Runs of whole batches whose users' histories are held together; a single batch may take more."""
        n, start, user = len(self._queries), 0, self._queries.user
        for i in range(0, n, self._size):
            stop = min(i + self._size, n)
            if i > start and offsets[int(user[stop - 1]) + 1] - offsets[int(user[start])] > self._events:
                yield start, i
                start = i
        if start < n:
            yield start, n
