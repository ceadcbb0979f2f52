"""Queries of users as training leaves them: what a model would be asked if it were served at that moment."""

from __future__ import annotations

import numpy as np

from data.batches import Collator, QueryBatches
from data.examples import Examples
from data.prepared import PreparedDataset


def training_queries(data: PreparedDataset, n: int, seed: int) -> QueryBatches:
    """A sample of the users who have a history, each with all of it that belongs to training.

    Args:
        data: the prepared dataset.
        n: how many, or all if there are no more.
        seed: of the sample.
    """
    ends = data.history.stage_ends[:, 0]
    known = np.flatnonzero(ends > data.history.offsets[:-1])
    users = np.sort(np.random.default_rng(seed).permutation(known)[:n])
    queries = Examples(
        user=users.astype(np.int32),
        item=np.full(len(users), -1, np.int32),
        time=None if data.history.time is None else data.history.time[ends[users] - 1],
        weight=np.zeros(len(users), np.float32),
        split=np.zeros(len(users), np.int8),
        history_end=ends[users],
        context=np.zeros(len(users), np.int32) if data.schema.context else None,
    )
    return QueryBatches(queries, Collator(data.history, data.schema.clock, data.schema.history_length))
