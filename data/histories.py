"""Where each example's history ends: the arithmetic behind "a history is a slice".

The history log holds the history-eligible events of every user, sorted by (user, stage, time), where
the stage is 0 for train, 1 for valid and 2 for every test split. What an example may see is then always
a prefix of its user's part, and stored as the length of that prefix: it depends on no other user's rows.

* With a clock or an order: events strictly earlier in (stage, time). Ties are left out, since nobody can
  say which came first.
* Without: a training example sees all of its user's training events (its own item is taken out when the
  batch is made); a valid or test example sees the stages before its own. Within a stage the order is that of a
  hash of user and item, so that a history cut to ``history_length`` keeps a fixed random choice of its events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class HistoryLog:
    """All history-eligible events, sorted by (user, stage, time).

    Attributes:
        offsets: ``[users + 1]``; user ``u``'s events are ``offsets[u] : offsets[u + 1]``.
        stage_ends: ``[users, 2]``: where a user's training, and training + validation, events end.
        item, action, time: ``[n]`` columns; time is None where the log has no clock.
    """

    offsets: NDArray[np.int64]
    stage_ends: NDArray[np.int64]
    item: NDArray[np.int32]
    action: NDArray[np.int8]
    time: NDArray[np.int64] | None


def stage(split: NDArray[np.int8]) -> NDArray[np.int8]:
    """``[n]`` split codes → ``[n]`` stages: every split after valid is a test."""
    return np.minimum(split, 2).astype(np.int8)


def history_ends(
    user: NDArray[np.int32], stages: NDArray[np.int8], time: Ints, eligible: NDArray[np.bool_], clock: str
) -> Ints:
    """Number of eligible rows of the same user that precede what each row may not see.

    Args:
        user: ``[n]``, sorted; whole users only.
        stages: ``[n]``, sorted within a user.
        time: ``[n]``, sorted within a stage; ignored if there is no clock.
        eligible: ``[n]`` whether a row enters the history log.
        clock: ``time``, ``order`` or ``none``.

    Returns:
        ``[n]`` lengths of prefixes of the user's eligible rows.
    """
    n = len(user)
    if n == 0:
        return np.zeros(0, np.int64)
    before = np.concatenate([[0], np.cumsum(eligible)]).astype(np.int64)  # eligible rows before row i
    first = np.empty(n, bool)  # rows of their users
    first[0] = True
    np.not_equal(user[1:], user[:-1], out=first[1:])
    new = first.copy()
    new[1:] |= stages[1:] != stages[:-1]
    if clock != "none":
        new[1:] |= time[1:] != time[:-1]
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, n))
    earlier = before[np.flatnonzero(first)][(np.cumsum(first) - 1)[starts]]  # rows of the users before
    if clock != "none":
        return np.repeat(before[starts] - earlier, sizes)
    # without a clock a training block sees itself whole; later stages see what precedes them
    ends = np.where(stages[starts] == 0, before[starts + sizes], before[starts])
    return np.repeat(ends - earlier, sizes)
