"""What prepares a log: DuckDB on this machine, or Spark on many. The plan in ``data.prepare`` is the same for both.

An engine scans the log, joins ids to row numbers, sorts by user, and sees to it that whole users meet the consumer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from data import splits
from data.consumer import Repeated, Rules
from data.entities import Entities
from data.events import PLAUSIBLE_US
from data.numbering import Numbering
from data.spec import DatasetSpec
from data.tally import Tally

Progress = Callable[[str, float], None]  # what is being done, share done
_BINS = 16  # bits


@dataclass
class Consumed:
    """A log that was read to its end.

    Attributes:
        tally: what was counted.
        files: part → rows.
    """

    tally: Tally
    files: Mapping[str, int]


class Engine(Protocol):
    """What the plan asks of an engine. ``con`` is DuckDB's on this machine, which reads users, items and tasks."""

    @property
    def numbering(self) -> Numbering | None:
        """Rows of users, filled by ``run``, where users are the integer ids of the log and need no table before."""

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The few rows that a query returns; ``log`` has the columns of ``Log.select``."""

    def ids(self, side: str) -> pa.Array:
        """The distinct ids of ``user`` or ``item`` in the log, sorted."""

    def contexts(self) -> Entities:
        """The distinct contexts of the log; in ``con`` also as the table ``context_ids``."""

    def run(self, rules: Rules, users: Entities | Numbering, out: Path, repeated: Repeated, tell: Progress) -> Consumed:
        """Number and sort the log, and let whole users be consumed; ``con`` has the tables of row numbers.

        Args:
            rules: what is done to whole users.
            users: their rows, which a ``Numbering`` gets here.
            out: folder of the dataset, where the parts go.
            repeated: takes the rows that repeat others.
            tell: called with (what, share done).

        Returns:
            What was counted, and the parts with their rows.
        """

    def reject(self, fault: str, folder: Path) -> str:
        """Write all rows with this fault, as they are, to ``folder/FAULT.parquet``; say where the first one is."""

    def where_repeated(self, user: object, item: object) -> str:
        """Which rows hold a (user, item) pair that repeats itself."""


def boundaries(spec: DatasetSpec, engine: Engine) -> tuple[int, int] | None:
    """Microseconds at which valid and test begin, where time decides."""
    if spec.split.rule != "global_time":
        return None
    log = f"log WHERE time BETWEEN {PLAUSIBLE_US[0]} AND {PLAUSIBLE_US[1]}"
    first, last, n = engine.rows(f"SELECT min(time), max(time), count(*) FROM {log}")[0]
    if not n:  # no time that can be read: ``faults.check`` says why
        return 0, 0

    def begin(share: float, end: int) -> int:
        before = engine.rows(f"SELECT count(*) FROM {log} AND time < {end}")[0][0]
        rank = before - math.ceil(share * n - 1e-9)  # of the first event that belongs to the share
        return first if rank < 0 or not before else _ranked(engine, f"{log} AND time < {end}", first, last, rank)

    return splits.boundaries(spec.split, first, last, begin)


def _ranked(engine: Engine, log: str, low: int, high: int, rank: int) -> int:
    """The ``rank``-th smallest time (from 0), by ever finer histograms: no engine has to hold or sort the times."""
    shift = max(0, (high - low).bit_length() - _BINS)
    while True:
        query = f"SELECT (time - {low}) >> {shift} AS bin, count(*) FROM {log} AND time BETWEEN {low} AND {high}"
        steps, counts = zip(*engine.rows(f"{query} GROUP BY bin ORDER BY bin"), strict=True)
        upto = np.cumsum(counts)
        at = int(np.searchsorted(upto, rank, side="right"))
        step, rank = int(steps[at]), rank - int(upto[at] - counts[at])
        low, high = low + (step << shift), low + ((step + 1) << shift) - 1
        if not shift:
            return low
        shift = max(0, shift - _BINS)


def described(places: list[tuple[Any, ...]], user: object, item: object) -> str:
    """Files and rows of a repeated pair, in words."""
    where = ", ".join(f"{file} row {row}" for file, row in places[:5])
    return f"first for user {user!r}, item {item!r}: {where} (counted from 0)"
