"""What is counted while a log is prepared."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass
class Tally:
    """What was counted on the way; tallies of different users add up.

    Attributes:
        rows: of the log.
        faults: rows set aside or left out, by fault.
        positives: examples with a positive weight, by split.
        first, last: times of the earliest and the latest example.
        user_events: row of a first user → positive training events from there on.
        item_events, context_events: positive training events by row.
    """

    item_events: Ints
    context_events: Ints
    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    positives: Counter[str] = field(default_factory=Counter)
    first: int = np.iinfo(np.int64).max
    last: int = np.iinfo(np.int64).min
    user_events: dict[int, Ints] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Count what another one has counted, too."""
        self.rows += other.rows
        self.faults += other.faults
        self.positives += other.positives
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)
        self.user_events |= other.user_events
        self.item_events += other.item_events
        self.context_events += other.context_events

    def of_users(self, n: int) -> Ints:
        """``[n]`` positive training events of each user."""
        out = np.zeros(n, np.int64)
        for first, counts in self.user_events.items():
            out[first : first + len(counts)] += counts  # between them may lie users of other tallies
        return out

    def save(self, path: Path) -> None:
        """Write it to a file of its own."""
        plain = [self.rows, dict(self.faults), dict(self.positives), int(self.first), int(self.last)]
        arrays: dict[str, Any] = {f"user{first}": counts for first, counts in self.user_events.items()}
        arrays |= {"plain": json.dumps(plain), "items": self.item_events, "contexts": self.context_events}
        with path.open("wb") as f:
            np.savez(f, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """What ``save`` has written."""
        with np.load(path, allow_pickle=False) as f:
            rows, faults, positives, first, last = json.loads(str(f["plain"]))
            users = {int(name.removeprefix("user")): f[name] for name in f.files if name.startswith("user")}
            return cls(f["items"], f["contexts"], rows, Counter(faults), Counter(positives), first, last, users)
