"""Parts of an evaluation worth a number of their own: new users, cold jobs.

Shapes: ``Q`` queries, ``T`` targets of all queries end to end.

A slice gives every query, or every target, one of a few labels. A part then holds the targets of its
label and the queries that have any: recall over a part divides by the targets of that part alone,
while the ranking stays the one over all candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from towers.features import Ragged


@dataclass(frozen=True)
class Slice:
    """A division of the queries or of the targets.

    Attributes:
        labels: names of the parts, in the order in which they are shown.
        codes: ``[Q]`` or ``[T]`` the part of each query or target; ``-1`` leaves it out. (Where ``Q`` equals
            ``T``, every query has one target, and the two readings are the same.)
    """

    labels: tuple[str, ...]
    codes: NDArray[np.int64]

    def by_target(self, targets: Ragged) -> NDArray[np.int64]:
        """``[T]`` the part of each target.

        Raises:
            ValueError: there are neither ``Q`` nor ``T`` codes.
        """
        if len(self.codes) == len(targets.values):
            return self.codes
        counts = np.diff(targets.offsets)
        if len(self.codes) != len(counts):
            raise ValueError(f"{len(self.codes)} codes; expected {len(counts)} (queries) or {len(targets.values)}")
        return np.repeat(self.codes, counts)


def history_length(lengths: NDArray[np.int64], edges: Sequence[int] = (0, 1, 2, 5, 10, 20, 50)) -> Slice:
    """Queries by the number of events in their history.

    Args:
        lengths: ``[Q]`` events.
        edges: least length of each part, rising from 0.

    >>> s = history_length(np.array([0, 3, 70]), edges=(0, 1, 5))
    >>> s.labels, s.codes.tolist()
    (('0', '1-4', '5+'), [0, 1, 2])
    """
    ends = [str(b - 1) for b in edges[1:]]
    labels = [str(a) if str(a) == b else f"{a}-{b}" for a, b in zip(edges, ends, strict=False)]
    return Slice((*labels, f"{edges[-1]}+"), np.searchsorted(edges, lengths, side="right") - 1)


def target_warmth(targets: Ragged, events: NDArray[np.int64]) -> Slice:
    """Targets by whether their item had any event in training.

    Args:
        targets: ``[Q]`` lists of item rows.
        events: ``[items]`` training events by item row.
    """
    return Slice(("cold", "warm"), (events[targets.values] > 0).astype(np.int64))
