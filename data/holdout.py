"""The last training events of some users, held out, and the users as they were before them.

Shapes: ``Q`` users, ``I`` items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.batches import Collator, QueryBatches
from data.examples import Examples
from data.prepared import PreparedDataset
from towers.features import Ragged

_BATCH = 256  # users whose scores of all items are held at once


@dataclass(frozen=True)
class Holdout:
    """What a model that is fitted to the rest can be asked, with the answers.

    Attributes:
        user: ``[Q]`` rows of the users asked about.
        queries: the same with the histories that are left to them.
        seen: ``[Q]`` lists of the items in these histories.
        targets: ``[Q]`` lists of the items held out.
        pairs: ``[n]`` ascending ``user · I + item`` of every held-out event, of all users.
    """

    user: NDArray[np.int64]
    queries: QueryBatches
    seen: Ragged
    targets: Ragged
    pairs: NDArray[np.int64]


def hold_out(data: PreparedDataset, share: float, users: int, seed: int) -> Holdout:
    """Hold out the last events of every user's training history: the newest ones, without a clock random ones.

    A history is a slice, hence what is left of it is a shorter one, and nothing is copied.

    Args:
        data: the prepared dataset.
        share: of each user's events, at least one of two; a single event stays.
        users: how many are asked about, at most.
        seed: of their choice.
    """
    log = data.history
    start, stop = log.offsets[:-1], log.stage_ends[:, 0]
    n = stop - start
    ends = stop - np.where(n > 1, np.clip(np.rint(share * n), 1, n - 1), 0).astype(np.int64)
    held = Ragged.of_slices(log.item, ends, stop)
    pairs = np.repeat(np.arange(len(ends)), np.diff(held.offsets)) * len(data.items) + held.values
    with_targets = np.flatnonzero(ends < stop)
    user = np.sort(np.random.default_rng(seed).permutation(with_targets)[:users])
    queries = Examples(
        user=user.astype(np.int32),
        item=np.full(len(user), -1, np.int32),
        time=None if log.time is None else log.time[ends[user]],
        weight=np.zeros(len(user), np.float32),
        split=np.zeros(len(user), np.int8),
        history_end=ends[user],
        context=np.zeros(len(user), np.int32) if data.schema.context else None,
    )
    batches = QueryBatches(queries, Collator(log, data.schema.clock, data.schema.history_length), _BATCH)
    seen, targets = (Ragged.of_slices(log.item, a[user], b[user]) for a, b in ((start, ends), (ends, stop)))
    return Holdout(user, batches, seen, targets, np.unique(pairs))
