"""Training examples of a prepared dataset, read part by part; a part is a row group.

A part is read with what its users did: their stretch of the history log and the items that they are known to have
taken. Hence what is in memory are some parts, the tables of users and items, and two numbers for each user; and a
window of all parts is simply the whole dataset.

Shapes: ``P`` parts, ``n`` positions of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.batches import Collator
from data.examples import Examples
from data.histories import HistoryLog
from data.impressions import Impressions
from data.prepared import PreparedDataset
from towers.errors import ConfigError
from towers.features import Batch, Ragged
from towers.features import columns as c

Ints = NDArray[np.int64]

# Column → the field of ``Examples`` that it fills, and its type; the widest first.
_FIELDS: dict[str, tuple[str, Any]] = {
    c.TIME: ("time", np.int64),
    c.HISTORY_END: ("history_end", np.int64),
    c.USER_ROW: ("user", np.int32),
    c.ITEM_ROW: ("item", np.int32),
    c.WEIGHT: ("weight", np.float32),
    c.CONTEXT_ROW: ("context", np.int32),
    c.ACTION: ("action", np.int8),
}
_ORDER = 8  # bytes of a position in the shuffled order
_EVENT = 21  # bytes of an event in a history: its columns, its item among the known ones
_USER = 32  # bytes: where a user's histories and known items begin and end
_EACH_USER, _EACH_ITEM = 40, 64  # bytes of the whole log: where histories lie; ids, counts and weights of negatives


@dataclass(frozen=True)
class Window:
    """Some parts in memory.

    Attributes:
        records: ``[n]`` their examples, end to end; a row each, since a shuffled batch takes rows from anywhere, and
            one row is one visit to memory, where eight columns are eight.
        train: code of the split that they are of.
        collate: makes a batch of some of them.
    """

    records: NDArray[Any]
    train: int
    collate: Callable[[Examples], Batch]

    def __call__(self, rows: Ints) -> Batch:
        """The batch of some of its ``n`` positions."""
        return self.collate(self.take(rows))

    def take(self, rows: Ints) -> Examples:
        """``[m]`` of its ``n`` positions as columns, which are views."""
        chosen = self.records.take(rows)
        columns: dict[str, Any] = {name: chosen[name] for name in chosen.dtype.names or ()}
        return Examples(**{"time": None, "split": np.full(len(rows), self.train, np.int8), **columns})


class TrainingParts:
    """The training examples of a dataset: positive events of the train split.

    Args:
        dataset: the prepared dataset.
        memory_budget: bytes that examples, histories and known items may take, while one window is used and the next
            one is read; None: all that they need. What is smaller stays in memory as a whole.
        impressions: jobs in each example that its user was shown and did not take; see ``data.impressions``.

    Raises:
        ConfigError: the budget does not hold two windows of a single part, or impressions were asked for: those need
            the whole log.
    """

    def __init__(self, dataset: PreparedDataset, memory_budget: int | None = None, impressions: int = 0) -> None:
        self.dataset = dataset
        self._groups, self._train = dataset.row_groups("examples"), dataset.splits.index("train")
        looks = np.array([self._look(group) for group in range(len(self._groups))], np.int64).reshape(-1, 3)
        self._group = np.flatnonzero(looks[:, 0])
        self.sizes, self._first, self._stop = looks[self._group].T
        named = [_FIELDS[name] for name in _FIELDS if name in self._groups.names]
        named += [("place", np.int32)] + ([("shown_end", np.int64)] if impressions else [])
        self._record = np.dtype(named, align=True)
        offsets, _ = dataset.history_bounds
        self.weights: Ints = (
            self.sizes * (self._record.itemsize + _ORDER)
            + (offsets[self._stop] - offsets[self._first]) * _EVENT
            + (self._stop - self._first) * _USER
        )
        self.capacity = self._capacity(memory_budget)
        self.impressions: Impressions | None = None
        if impressions:
            if self.capacity is not None:
                raise ConfigError(
                    f"impressions={impressions} needs the whole log in memory: {self.bytes:,} bytes, and "
                    f"data.memory_budget is {memory_budget:,}; raise it, or set impressions=0"
                )
            self.impressions = Impressions.of(dataset, dataset.examples("train"), impressions)

    def __len__(self) -> int:
        """Number of training examples."""
        return int(self.sizes.sum())

    @property
    def bytes(self) -> int:
        """What all parts take in memory."""
        offsets, _ = self.dataset.history_bounds
        every = int(self.weights.sum())
        if self.dataset.generations > 1:  # each of them counts the whole histories of its users
            every = len(self) * (self._record.itemsize + _ORDER) + int(offsets[-1]) * _EVENT + len(offsets) * _USER
        return every + self._always

    @property
    def _always(self) -> int:
        """What the users and items of the whole log take, however small the windows are."""
        return len(self.dataset.users) * _EACH_USER + len(self.dataset.items) * _EACH_ITEM

    def open(self, parts: Ints) -> Window:
        """Read some parts, of which neighbours are read as one.

        Args:
            parts: ascending numbers.
        """
        return self._whole if len(parts) == len(self.sizes) else self._open(parts)

    @cached_property
    def _whole(self) -> Window:
        return self._open(np.arange(len(self.sizes)))

    def _open(self, parts: Ints) -> Window:
        records = self.records(parts)
        if self.dataset.generations > 1 and len(parts) == len(self.sizes):  # as if there were one: by user, by time
            records = records[np.argsort(records["user"], kind="stable")]
        logs = [self._log(*span) for _, span in self._runs(parts)]
        known = [self._known(span[0], log) for (_, span), log in zip(self._runs(parts), logs, strict=True)]
        log, taken = (logs[0], known[0]) if len(logs) == 1 else (_joined_logs(logs), Ragged.joined(known))
        schema = self.dataset.schema
        collate = Collator(log, schema.clock, schema.history_length, taken, self.impressions)
        window = Window(records, self._train, collate)
        if self.impressions is not None:
            records["shown_end"] = self.impressions.attach(window.take(np.arange(len(records)))).shown_end
        return window

    def records(self, parts: Ints) -> NDArray[Any]:
        """The examples of some parts, end to end, with places and ends of histories in a log of their users alone.

        Args:
            parts: ascending numbers.
        """
        out = np.zeros(int(self.sizes[parts].sum()), self._record)
        names = [name for name in _FIELDS if name in self._groups.names]
        read = list(dict.fromkeys([*names, self.dataset.split_column]))
        offsets, _ = self.dataset.history_bounds
        at = users_before = events_before = 0
        for run, (first, stop) in self._runs(parts):
            batches = (batch for g in self._group[run] for batch in self._groups.read(int(g), read))
            for batch in batches:
                chosen = self._chosen(batch)
                rows = out[at : (at := at + int(np.count_nonzero(chosen)))]
                for name in names:
                    column = (batch[name].cast(pa.int64()) if name == c.TIME else batch[name]).to_numpy()
                    rows[_FIELDS[name][0]] = column if len(rows) == len(column) else column[chosen]
                rows["history_end"] += offsets[rows["user"]] + (events_before - int(offsets[first]))
                np.add(rows["user"], users_before - first, out=rows["place"])
            users_before += stop - first
            events_before += int(offsets[stop] - offsets[first])
        return out

    def _runs(self, parts: Ints) -> list[tuple[Ints, tuple[int, int]]]:
        """Parts that follow each other, with their first user and the one after their last."""
        if len(parts) == len(self.sizes):
            return [(parts, (0, len(self.dataset.users)))]
        generation = self._groups.generation[self._group[parts]]  # in each, users begin anew
        runs = np.split(parts, np.flatnonzero((np.diff(parts) != 1) | (np.diff(generation) != 0)) + 1)
        return [(run, (int(self._first[run[0]]), int(self._stop[run[-1]]))) for run in runs]

    def _capacity(self, budget: int | None) -> int | None:
        if budget is None or self.bytes <= budget:
            return None
        fixed = self._always
        # one window is used, one is read; as much again is for what is decoded on the way and what allocators keep
        share, largest = (budget - fixed) // 4, int(self.weights.max())
        if share < largest:
            raise ConfigError(
                f"data.memory_budget is {budget:,} bytes, and the largest part of dataset {self.dataset.name!r} takes "
                f"{largest:,}; set it to at least {fixed + 4 * largest:,}"
            )
        return share

    def _look(self, group: int) -> tuple[int, int, int]:
        """Training positions of a row group, the first user of them, and the one after the last."""
        size, first, stop = 0, len(self.dataset.users), 0
        for batch in self._groups.read(group, [c.USER_ROW, c.WEIGHT, self.dataset.split_column]):
            user = batch[c.USER_ROW].to_numpy()[self._chosen(batch)]
            if len(user):
                size, first, stop = size + len(user), min(first, int(user[0])), int(user[-1]) + 1
        return size, first, stop

    def _chosen(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        chosen: NDArray[np.bool_] = (self.dataset.split_of(batch) == self._train) & (batch[c.WEIGHT].to_numpy() > 0)
        return chosen

    def _log(self, first: int, stop: int) -> HistoryLog:
        whole = (first, stop) == (0, len(self.dataset.users))
        return self.dataset.history if whole else self.dataset.history_of(first, stop)

    def _known(self, first: int, log: HistoryLog) -> Ragged:
        if log is self.dataset.__dict__.get("history"):
            return self.dataset.known
        known = self.dataset.known_of(first, log)
        return Ragged(known.offsets, known.values.astype(np.int32))


def _joined_logs(logs: list[HistoryLog]) -> HistoryLog:
    """The logs of different users as one, users renumbered in order."""
    before = np.cumsum([0, *(len(log.item) for log in logs)])
    times = [log.time for log in logs if log.time is not None]
    return HistoryLog(
        np.concatenate([*(log.offsets[:-1] + b for log, b in zip(logs, before, strict=False)), before[-1:]]),
        np.concatenate([log.stage_ends + b for log, b in zip(logs, before, strict=False)]),
        np.concatenate([log.item for log in logs]),
        np.concatenate([log.action for log in logs]),
        np.concatenate(times) if len(times) == len(logs) else None,
    )
