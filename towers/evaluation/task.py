"""What an evaluation asks: who wants what, out of which candidates, with what left out.

``Q`` queries, ``N`` candidates. A query is a user (all targets of a split at once), a single event (a user at a
moment), or, where users are retrieved, an item; which of them is the dataset's choice, the arrays are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from towers.features import Batch, Ragged


class QueryBatches(Protocol):
    """Users as model inputs, in order: ``Batch`` objects whose ``item`` is ``-1`` and whose ``weight`` is 0."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches, from the first user to the last."""
        ...

    def __len__(self) -> int:
        """Number of batches."""
        ...


@dataclass(frozen=True)
class Task:
    """One ranking question, as arrays of row numbers.

    Attributes:
        name: as declared in the dataset (``valid``, ``test``, ``cold`` …).
        query: ``[Q]`` row of each query: a user's, or an item's where users are retrieved.
        batches: the users as model inputs: one for each query, or for each candidate where users are retrieved.
        targets: ``[Q]`` lists of distinct rows to be found; never empty.
        candidates: ``[N]`` sorted rows that may be ranked: of items, or of users.
        exclude: ``[Q]`` lists of rows that must not be ranked (earlier splits, say).
        time: ``[Q]`` microseconds UTC, or None where the log has no clock.
        posted: ``[N]`` first microsecond at which each candidate may be ranked, or None: always.
        expires: ``[N]`` first microsecond at which it may no longer be, or None: never.
        retrieve: ``items`` for users, or ``users`` for items (matching).
    """

    name: str
    query: NDArray[np.int64]
    batches: QueryBatches
    targets: Ragged
    candidates: NDArray[np.int64]
    exclude: Ragged
    time: NDArray[np.int64] | None = None
    posted: NDArray[np.int64] | None = None
    expires: NDArray[np.int64] | None = None
    retrieve: Literal["items", "users"] = "items"

    def __post_init__(self) -> None:
        """Check what every reader of a task relies on."""
        q, n = len(self.query), len(self.candidates)
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
        return len(self.query)
