"""Whole users of the sorted log → examples and history; the same code for every engine.

An engine hands over runs of whole users, sorted (``Log.columns``). What becomes of a user depends on her own rows and
on ``Rules`` alone, so that users may be handled anywhere and in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data import splits
from data.events import FAULT_CODES, Events
from data.histories import history_ends, stage
from data.spec import DatasetSpec
from data.splits import Hashes
from data.tally import Tally
from data.writer import Parts
from towers.features import columns as c

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rules:
    """What is done to whole users.

    Attributes:
        spec: the data config.
        splits: names of the splits, by code.
        group: ``[items]`` the family of each item.
        family_hashes: ``[items]`` hashes of the families, where the split or the order of histories is random.
        contexts: rows of ``contexts.parquet``.
        bounds: of ``global_time``: microseconds at which valid and test begin.
        users_per_bucket: users that share a part.
        generation: of the parts that are written; 0: they are the first.
        older: ``[users]`` events that each has in the histories of older generations; None: there are none.
    """

    spec: DatasetSpec
    splits: tuple[str, ...]
    group: Ints
    family_hashes: Hashes | None
    contexts: int
    bounds: tuple[int, int] | None
    users_per_bucket: int
    generation: int = 0
    older: Ints | None = None


def is_random(spec: DatasetSpec) -> bool:
    """Whether anything depends on hashes of ids."""
    return spec.split.rule in ("random_per_user", "cold_items") or spec.events.clock == "none"


class Consumer:
    """Writes the parts of whole users.

    Args:
        rules: what is done to them.
        out: folder of the parts.
        hashes: of (first, last) user row: the hashes of those users' ids; asked for where ``is_random``.
        repeated: takes rows that repeat others, in order.
    """

    def __init__(
        self,
        rules: Rules,
        out: Path,
        hashes: Callable[[int, int], Hashes],
        repeated: Callable[[Events], None],
    ) -> None:
        self.rules, self.spec = rules, rules.spec
        self._hashes, self._repeated = hashes, repeated
        self.weights = np.array([a.weight for a in self.spec.actions], np.float32)
        self.eligible = np.array([a.history for a in self.spec.actions])
        self.examples, self.history = (
            Parts(out, folder, rules.generation, users_per_bucket=rules.users_per_bucket)
            for folder in ("examples", "history")
        )
        self.tally = Tally(np.zeros(len(rules.group), np.int64), np.zeros(rules.contexts, np.int64))

    def run(self, batches: Iterable[tuple[Events, NDArray[np.int8]]]) -> Iterator[int]:
        """Consume the sorted log, or whole users of it.

        Args:
            batches: rows, and the fault code of each, cut anywhere.

        Yields:
            Rows read so far, now and then.
        """
        for events in self._whole_users(batches):
            self._consume(events)
            yield self.tally.rows
        self.examples.close()
        self.history.close()

    def _whole_users(self, batches: Iterable[tuple[Events, NDArray[np.int8]]]) -> Iterator[Events]:
        """Faulty rows counted and dropped; the rest cut at user boundaries."""
        held: list[Events] = []
        for events, fault in batches:
            self.tally.rows += len(events)
            if fault.any():
                for name, code in FAULT_CODES.items():
                    self.tally.faults[name] += int((fault == code).sum())
                events = events.take(fault == 0)
            if not len(events):
                continue
            last = int(np.searchsorted(events.user, events.user[-1]))  # first row of the last user
            if last == 0:
                held.append(events)
                continue
            yield Events.concat([*held, events.take(slice(0, last))])
            held = [events.take(slice(last, None))]
        if held:
            yield Events.concat(held)

    def _consume(self, events: Events) -> None:
        events = self._without_duplicates(events)
        split = self._split(events)
        if (split < 0).any():
            self.tally.faults["left_out_by_split"] += int((split < 0).sum())
            events, split = events.take(split >= 0), split[split >= 0]
        stages = stage(split)
        key = events.user.astype(np.int64) * 3 + stages
        if (np.diff(key) < 0).any() or (self.spec.events.clock != "none" and _unsorted(key, events.time)):
            order = np.lexsort((events.time, key))
            events, split, stages = events.take(order), split[order], stages[order]
        eligible = self.eligible[events.action]
        ends = history_ends(events.user, stages, events.time, eligible, self.spec.events.clock)
        if self.rules.older is not None:  # all of them are earlier
            ends += self.rules.older[events.user]
        weight = self.weights[events.action] * events.weight
        self._write(events, split, stages, weight, ends, eligible)
        self._count(events, split, weight)

    def _count(self, e: Events, split: NDArray[np.int8], weight: NDArray[np.float32]) -> None:
        tally, train = self.tally, (split == splits.TRAIN) & (weight > 0)
        if train.any():
            first = int(e.user[0])
            tally.user_events[first] = np.bincount(e.user[train] - first)
        tally.item_events += np.bincount(e.item[train], minlength=len(tally.item_events))
        if e.context is not None:
            tally.context_events += np.bincount(e.context[train], minlength=len(tally.context_events))
        for code, n in enumerate(np.bincount(split[weight > 0], minlength=len(self.rules.splits))):
            tally.positives[self.rules.splits[code]] += int(n)
        if len(e):
            tally.first, tally.last = min(tally.first, int(e.time.min())), max(tally.last, int(e.time.max()))

    def _without_duplicates(self, e: Events) -> Events:
        same = np.zeros(len(e), bool)
        same[1:] = (e.item[1:] == e.item[:-1]) & (e.time[1:] == e.time[:-1])
        if same.any():
            same[1:] &= (e.user[1:] == e.user[:-1]) & (e.action[1:] == e.action[:-1]) & (e.split[1:] == e.split[:-1])
            if e.context is not None:  # one job found by two queries is two examples
                same[1:] &= e.context[1:] == e.context[:-1]
        if same.any():
            self.tally.faults["duplicate"] += int(same.sum())
            self._repeated(e.take(same))
            return e.take(~same)
        return e

    def _pair_hashes(self, e: Events) -> Hashes:
        """A random number for each row, of its external ids alone."""
        assert self.rules.family_hashes is not None
        if not len(e):
            return np.zeros(0, np.uint64)
        first = int(e.user[0])
        users = self._hashes(first, int(e.user[-1]))
        return splits.pair_hash(users[e.user - first], self.rules.family_hashes[e.item])

    def _split(self, e: Events) -> NDArray[np.int8]:
        rule, s = self.spec.split.rule, self.spec.split
        if rule == "given":
            split = e.split
        elif rule == "global_time":
            assert self.rules.bounds is not None
            split = splits.global_time(e.time, *self.rules.bounds)
        elif rule == "cold_items":
            assert self.rules.family_hashes is not None
            split = splits.cold_items(self.rules.family_hashes[e.item], float(s.valid), float(s.test), s.seed)
        else:
            user, group = e.user.astype(np.int64), self.rules.group[e.item]
            positive = self.weights[e.action] * e.weight > 0
            if rule == "leave_last_out":
                split = splits.leave_last_out(user, group, positive, s.min_items)
            else:
                split = splits.random_per_user(
                    user, group, positive, self._pair_hashes(e), float(s.valid), float(s.test), s.min_items, s.seed
                )
        if self.spec.refit:
            split = splits.refitted(split)
        return split

    def _write(
        self,
        e: Events,
        split: NDArray[np.int8],
        stages: NDArray[np.int8],
        weight: NDArray[np.float32],
        ends: Ints,
        eligible: NDArray[np.bool_],
    ) -> None:
        columns: dict[str, Any] = {c.USER_ROW: e.user, c.ITEM_ROW: e.item, c.ACTION: e.action}
        if self.spec.events.clock != "none":
            columns[c.TIME] = _time_column(e, self.spec.events.clock)
        more = {c.WEIGHT: weight, c.SPLIT: split, c.HISTORY_END: ends}
        if e.context is not None:
            more[c.CONTEXT_ROW] = e.context
        self.examples.write(e.user, pa.table({**columns, **more}))
        log = pa.table({**columns, c.STAGE: stages})
        rows: NDArray[Any] = eligible
        if self.spec.events.clock == "none":  # nothing is newest: what a long history keeps is a fixed random choice
            rows = np.lexsort((e.item, self._pair_hashes(e), stages, e.user))
            rows = rows[eligible[rows]]
            log = log.take(pa.array(rows))
        elif not eligible.all():
            log = log.filter(pa.array(eligible))
        self.history.write(e.user[rows], log)


class Repeated:
    """Rows that repeat others, in ``rejected/duplicate.parquet``.

    Args:
        spec: the data config.
        out: folder of the dataset.
        users, items: of user or item rows: their ids.
        folder: below ``out``, where they go.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        out: Path,
        users: Callable[[NDArray[np.int32]], pa.Array],
        items: Callable[[NDArray[np.int32]], pa.Array],
        folder: str = "rejected",
    ) -> None:
        self._spec, self._users, self._items = spec, users, items
        self.parts = Parts(out, folder, name="duplicate")
        self.first: tuple[object, object] | None = None  # ids of the first pair

    def __call__(self, e: Events) -> None:
        """Set rows aside, at least one."""
        columns: dict[str, Any] = {c.USER: self._users(e.user), c.ITEM: self._items(e.item)}
        if self._spec.events.clock != "none":
            columns[c.TIME] = _time_column(e, self._spec.events.clock)
        names = pa.array([a.name for a in self._spec.actions])
        columns |= {c.ACTION: names.take(pa.array(e.action)), c.WEIGHT: e.weight}
        if self.first is None:
            self.first = columns[c.USER][0].as_py(), columns[c.ITEM][0].as_py()
        self.parts.write(e.user, pa.table(columns))


def _time_column(e: Events, clock: str) -> Any:
    """The column of times: instants, or the plain order."""
    if clock == "order":
        return e.time
    return pa.array(e.time).cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))


def _unsorted(key: Ints, time: Ints) -> bool:
    return bool(((np.diff(time) < 0) & (np.diff(key) == 0)).any())
