"""What an evaluation asks: who wants what, out of which candidates, with what left out.

``Q`` queries, ``N`` candidates. A query is a user (all targets of a split at once) or a single event
(a user at a moment); which of the two is the dataset's choice, the arrays are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from towers.features import Batch, Ragged


class QueryBatches(Protocol):
    """Query batches in query order: ``Batch`` objects whose ``item`` is ``-1`` and whose ``weight`` is 0."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches, from query 0 to query ``Q - 1``."""
        ...

    def __len__(self) -> int:
        """Number of batches."""
        ...


@dataclass(frozen=True)
class Task:
    """One ranking question, as arrays of row numbers.

    Attributes:
        name: as declared in the dataset (``valid``, ``test``, ``cold`` …).
        user: ``[Q]`` user row of each query.
        batches: the same queries as model inputs.
        targets: ``[Q]`` lists of distinct item rows to be found; never empty.
        candidates: ``[N]`` sorted item rows that may be ranked.
        exclude: ``[Q]`` lists of item rows that must not be ranked (earlier splits, say).
        time: ``[Q]`` microseconds UTC, or None where the log has no clock.
        posted: ``[N]`` first microsecond at which each candidate may be ranked, or None: always.
        expires: ``[N]`` first microsecond at which it may no longer be, or None: never.
    """

    name: str
    user: NDArray[np.int64]
    batches: QueryBatches
    targets: Ragged
    candidates: NDArray[np.int64]
    exclude: Ragged
    time: NDArray[np.int64] | None = None
    posted: NDArray[np.int64] | None = None
    expires: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Check what every reader of a task relies on."""
        q, n = len(self.user), len(self.candidates)
        lengths = {
            "targets": (len(self.targets.offsets) - 1, q),
            "exclude": (len(self.exclude.offsets) - 1, q),
            "time": (q if self.time is None else len(self.time), q),
            "posted": (n if self.posted is None else len(self.posted), n),
            "expires": (n if self.expires is None else len(self.expires), n),
        }
        if wrong := [
            f"{name} has {found} rows, expected {want}" for name, (found, want) in lengths.items() if found != want
        ]:
            raise ValueError(f"task {self.name!r}: {'; '.join(wrong)}")
        if (np.diff(self.candidates) <= 0).any():
            raise ValueError(f"task {self.name!r}: candidates must be distinct and sorted")
        if (np.diff(self.targets.offsets) <= 0).any():
            raise ValueError(f"task {self.name!r}: every query needs a target")

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.user)
