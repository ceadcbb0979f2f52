"""Training examples of a prepared dataset, read part by part; a part is a row group.

A part is read with what its users did: their stretch of the history log and the items that they are known to have
taken. Hence what is in memory are some parts, the tables of users and items, and two numbers for each user; and a
window of all parts is simply the whole dataset.

Shapes: ``P`` parts, ``n`` positions of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.batches import Collator
from data.examples import Examples
from data.histories import HistoryLog
from data.impressions import Impressions
from data.parts import times
from data.prepared import PreparedDataset
from towers.errors import ConfigError
from towers.features import Batch, Ragged
from towers.features import columns as c

Ints = NDArray[np.int64]

# Column → the field of a record that it fills, and its type; the widest first.
_FIELDS: dict[str, tuple[str, Any]] = {
    c.TIME: ("time", np.int64),
    c.HISTORY_END: ("history_end", np.int32),  # int64 where there are more events in histories than that tells
    c.USER_ROW: ("user", np.int32),
    c.ITEM_ROW: ("item", np.int32),
    c.WEIGHT: ("weight", np.float32),
    c.CONTEXT_ROW: ("context", np.int32),
    c.ACTION: ("action", np.int8),
}
_RECORD = 32  # bytes: half a line of the cache, and what numpy gathers without a call for each
_ORDER = 8  # bytes of a position in the shuffled order
_EVENT = 21  # bytes of an event in a history: its columns, its item among the known ones
_USER = 32  # bytes: where a user's histories and known items begin and end
_EACH_USER, _EACH_ITEM = 40, 64  # bytes of the whole log: where histories lie; ids, counts and weights of negatives


@dataclass(frozen=True)
class Stretches:
    """Users that are at hand: stretches of neighbours, whose histories lie in one log, end to end.

    Attributes:
        first, stop: ``[S]`` the first user of each stretch and the one after its last, ascending.
        users, events: ``[S]`` users and events of histories before each.
    """

    first: Ints
    stop: Ints
    users: Ints
    events: Ints

    @classmethod
    def of(cls, first: Ints, stop: Ints, offsets: Ints) -> Self:
        """What covers some spans of users, which may overlap.

        Args:
            first: the first user of each span.
            stop: the one after its last.
            offsets: ``[users + 1]`` where histories begin in the log of everyone.
        """
        order = np.argsort(first, kind="stable")
        first, stop = first[order], np.maximum.accumulate(stop[order])
        begins = np.flatnonzero(np.r_[True, first[1:] > stop[:-1]])
        first, stop = first[begins], stop[np.r_[begins[1:] - 1, len(stop) - 1]]
        users, events = (np.cumsum(x) - x for x in (stop - first, offsets[stop] - offsets[first]))
        return cls(first, stop, users, events)

    def which(self, user: NDArray[Any] | int) -> Any:
        """The stretch of each user."""
        return np.searchsorted(self.first, user, side="right") - 1

    def place(self, user: NDArray[np.int32]) -> NDArray[Any]:
        """``[m]`` rows of some users in the log at hand."""
        return (
            user if len(self.first) == 1 and self.first[0] == 0 else user + (self.users - self.first)[self.which(user)]
        )


@dataclass(frozen=True)
class Window:
    """Some parts in memory.

    Attributes:
        records: ``[n]`` their examples, end to end; a row each, since a shuffled batch takes rows from anywhere, and
            one row is one visit to memory, where seven columns are seven.
        users: those at hand.
        train: code of the split that they are of.
        collate: makes a batch of some of them.
    """

    records: NDArray[Any]
    users: Stretches
    train: int
    collate: Callable[[Examples], Batch]

    def __call__(self, rows: Ints) -> Batch:
        """The batch of some of its ``n`` positions."""
        e = self.take(rows)
        return self.collate(replace(e, place=self.users.place(e.user)))

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
        offsets, _ = dataset.history_bounds
        self._record = _record(self._groups.names, int(offsets[-1]), shown=impressions > 0)
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
            every = _bytes(len(self), self._record, offsets)
        return every + self._always

    @property
    def _always(self) -> int:
        """What the users and items of the whole log take, however small the windows are."""
        return _always(self.dataset)

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
        records, users = self.records(parts), self.users(parts)
        if self.dataset.generations > 1 and len(parts) == len(self.sizes):  # as if there were one: by user, by time
            records = records[np.argsort(records["user"], kind="stable")]
        spans = list(zip(users.first.tolist(), users.stop.tolist(), strict=True))
        logs = [self._log(*span) for span in spans]
        known = [self._known(first, log) for (first, _), log in zip(spans, logs, strict=True)]
        log, taken = (logs[0], known[0]) if len(logs) == 1 else (_joined_logs(logs), Ragged.joined(known))
        schema = self.dataset.schema
        collate = Collator(log, schema.clock, schema.history_length, taken, self.impressions)
        window = Window(records, users, self._train, collate)
        if self.impressions is not None:
            records["shown_end"] = self.impressions.attach(window.take(np.arange(len(records)))).shown_end
        return window

    def users(self, parts: Ints) -> Stretches:
        """The users of some parts; everyone, where these are all parts.

        Args:
            parts: ascending numbers.
        """
        offsets, _ = self.dataset.history_bounds
        if len(parts) == len(self.sizes):
            return Stretches.of(np.array([0]), np.array([len(offsets) - 1]), offsets)
        return Stretches.of(self._first[parts], self._stop[parts], offsets)

    def records(self, parts: Ints) -> NDArray[Any]:
        """The examples of some parts, end to end, with ends of histories in the log of their users.

        Args:
            parts: ascending numbers.
        """
        users, cuts = self.users(parts), np.cumsum([0, *self.sizes[parts]])
        # from a multiple of their size on, so that none lies in two lines of the cache
        room = np.empty(int(cuts[-1]) + 1, self._record)
        begin = -room.ctypes.data % _RECORD
        out = room.view(np.uint8)[begin : begin + int(cuts[-1]) * self._record.itemsize].view(self._record)
        for part, (start, stop) in zip(parts, pairwise(cuts), strict=True):
            self._fill(out[start:stop], part, users)
        return out

    def _fill(self, rows: NDArray[Any], part: int, users: Stretches) -> None:
        """Write the training examples of a part."""
        offsets, _ = self.dataset.history_bounds
        stretch = users.which(self._first[part])
        before = int(users.events[stretch] - offsets[users.first[stretch]])
        names = [name for name in _FIELDS if name in self._groups.names]
        columns = list(dict.fromkeys([*names, self.dataset.split_column]))
        at, some = 0, np.zeros(0, self._record)
        for batch in self._groups.read(int(self._group[part]), columns):
            if len(some) < len(batch):
                some = np.zeros(len(batch), self._record)  # used again and again, hence in the cache
            for name in names:
                field, _ = _FIELDS[name]
                some[field][: len(batch)] = times(batch) if name == c.TIME else batch[name].to_numpy()
            some["history_end"][: len(batch)] += offsets[batch[c.USER_ROW].to_numpy()] + before
            chosen = np.flatnonzero(self._chosen(batch))
            some.take(chosen, out=rows[at : (at := at + len(chosen))], mode="clip")

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


def bytes_in_memory(dataset: PreparedDataset, memory_budget: int | None = None, impressions: int = 0) -> int:
    """What ``TrainingParts`` will hold at most, from what is written of the dataset: no example is read.

    Args:
        dataset: the prepared dataset.
        memory_budget: bytes; None: as many as there are.
        impressions: if there are some, an example knows what was shown before it.
    """
    offsets, _ = dataset.history_bounds
    record = _record(dataset.row_groups("examples").names, int(offsets[-1]), shown=impressions > 0)
    every = _bytes(dataset.info["counts"]["positives"]["train"], record, offsets) + _always(dataset)
    return every if memory_budget is None else min(every, memory_budget)


def _bytes(examples: int, record: np.dtype[Any], offsets: Ints) -> int:
    """Of some examples, their order, and the histories of all users."""
    return examples * (record.itemsize + _ORDER) + int(offsets[-1]) * _EVENT + len(offsets) * _USER


def _always(dataset: PreparedDataset) -> int:
    return len(dataset.users) * _EACH_USER + len(dataset.items) * _EACH_ITEM


def _record(columns: Sequence[str], events: int, shown: bool) -> np.dtype[Any]:
    """The type of a training example in memory.

    Args:
        columns: of the examples' files.
        events: in all histories.
        shown: examples know what was shown before them.
    """
    fields = dict(_FIELDS[name] for name in _FIELDS if name in columns)
    if events > np.iinfo(np.int32).max:
        fields = {"history_end": np.int64, **{name: of for name, of in fields.items() if name != "history_end"}}
    dense = np.dtype([*fields.items(), *([("shown_end", np.int64)] if shown else [])], align=True)
    offsets = [of[1] for of in (dense.fields or {}).values()]
    return np.dtype({"names": list(dense.names or ()), "formats": [dense[name] for name in dense.names or ()],
                     "offsets": offsets, "itemsize": max(_RECORD, dense.itemsize)})  # fmt: skip


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
