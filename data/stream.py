"""The sorted log, one run of whole users at a time, into examples and history."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data import entities, splits
from data.events import FAULT_CODES, PLAUSIBLE_US, Events, Log
from data.histories import history_ends, stage
from data.numbering import Numbering
from data.spec import DatasetSpec, Limit
from data.writer import Parts
from towers.errors import DataError
from towers.features import columns as c

Progress = Callable[[str, float], None]  # what is being done, share done


class Stream:
    """The sorted log, one run of whole users at a time, into examples and history."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        spec: DatasetSpec,
        log: Log,
        users: entities.Entities | Numbering,
        items: entities.Entities,
        out: Path,
        contexts: entities.Entities | None = None,
    ) -> None:
        self.con, self.spec, self.log, self.out = con, spec, log, out
        self.users, self.items = users, items
        self.group = np.arange(len(items.ids)) if items.group is None else items.group.to_numpy()
        self.weights = np.array([a.weight for a in spec.actions], np.float32)
        self.eligible = np.array([a.history for a in spec.actions])
        self.examples, self.history = Parts(out, "examples"), Parts(out, "history")
        self.repeated = Parts(out, "rejected", name="duplicate")
        self._user_events: list[tuple[int, NDArray[np.int64]]] = []  # first user row, training events from there on
        self.item_events = np.zeros(len(items.ids), np.int64)
        self.context_events = np.zeros(0 if contexts is None else len(contexts.ids), np.int64)
        self.faults: Counter[str] = Counter()
        for side in (users, items):
            if isinstance(side, entities.Entities):
                self.faults.update(side.counts or {})
        self.by_split: Counter[str] = Counter()
        self.rows = 0
        self.first, self.last = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        self.bounds: tuple[int, int] | None = None
        if spec.split.rule == "global_time":
            self.bounds = self._boundaries()

    def _boundaries(self) -> tuple[int, int]:
        log = f"log WHERE time BETWEEN {PLAUSIBLE_US[0]} AND {PLAUSIBLE_US[1]}"
        first, last, n = self.con.execute(f"SELECT min(time), max(time), count(*) FROM {log}").fetchall()[0]
        if not n:  # no time that can be read: `check` says why
            return 0, 0

        def begin(share: float, end: int) -> int:
            before = self.con.execute(f"SELECT count(*) FROM {log} AND time < {end}").fetchall()[0][0]
            rank = before - math.ceil(share * n - 1e-9)  # of the first event that belongs to the share
            if rank < 0 or not before:
                return int(first)
            query = f"SELECT quantile_disc(time, {(rank + 0.5) / before:.17f}) FROM {log} AND time < {end}"
            return int(self.con.execute(query).fetchall()[0][0])

        return splits.boundaries(self.spec.split, first, last, begin)

    def _empty(self) -> DataError:
        files = "; ".join(s.shown for _, s in self.log.sources)
        return DataError("the log has no rows", where=files, cure="correct events.files")

    @cached_property
    def _family_hashes(self) -> NDArray[np.uint64]:
        return splits.id_hashes(self.con, self.items.ids if self.items.family is None else self.items.family)

    def _pair_hashes(self, e: Events) -> NDArray[np.uint64]:
        """A random number for each row, of its external ids alone."""
        first, last = (int(e.user[0]), int(e.user[-1])) if len(e) else (0, -1)
        users = splits.id_hashes(self.con, self.users.ids.slice(first, last - first + 1))
        return splits.pair_hash(users[e.user - first], self._family_hashes[e.item])

    def run(self, progress: Progress) -> None:
        """Read the log to its end."""
        for events in self._whole_users():
            self._consume(events)
            progress("writing examples and histories", 0.1 + 0.7 * min(1.0, self.rows / max(self.rows + 1, 1 << 22)))
        self.examples.close()
        self.history.close()
        self.repeated.close()

    def _whole_users(self) -> Iterator[Events]:
        """Faulty rows counted and dropped; the rest cut at user boundaries."""
        held: list[Events] = []
        for events, fault in self.log.sorted():
            self.rows += len(events)
            if fault.any():
                for name, code in FAULT_CODES.items():
                    self.faults[name] += int((fault == code).sum())
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
            self.faults["left_out_by_split"] += int((split < 0).sum())
            events, split = events.take(split >= 0), split[split >= 0]
        stages = stage(split)
        key = events.user.astype(np.int64) * 3 + stages
        if (np.diff(key) < 0).any() or (self.spec.events.clock != "none" and _unsorted(key, events.time)):
            order = np.lexsort((events.time, key))
            events, split, stages = events.take(order), split[order], stages[order]
        eligible = self.eligible[events.action]
        ends = history_ends(events.user, stages, events.time, eligible, self.spec.events.clock) + self.history.rows
        weight = self.weights[events.action] * events.weight
        self._write(events, split, stages, weight, ends, eligible)
        train = (split == splits.TRAIN) & (weight > 0)
        if train.any():
            first = int(events.user[0])
            self._user_events.append((first, np.bincount(events.user[train] - first)))
        self.item_events += np.bincount(events.item[train], minlength=len(self.item_events))
        if events.context is not None:
            self.context_events += np.bincount(events.context[train], minlength=len(self.context_events))
        for code, n in enumerate(np.bincount(split[weight > 0], minlength=len(self.log.splits))):
            self.by_split[self.log.splits[code]] += int(n)
        if len(events):
            self.first = min(self.first, int(events.time.min()))
            self.last = max(self.last, int(events.time.max()))

    @property
    def user_events(self) -> NDArray[np.int64]:
        """``[users]`` positive training events, by row."""
        out = np.zeros(len(self.users.ids), np.int64)
        for first, counts in self._user_events:
            out[first : first + len(counts)] = counts
        return out

    def _without_duplicates(self, e: Events) -> Events:
        same = np.zeros(len(e), bool)
        same[1:] = (e.item[1:] == e.item[:-1]) & (e.time[1:] == e.time[:-1])
        if same.any():
            same[1:] &= (e.user[1:] == e.user[:-1]) & (e.action[1:] == e.action[:-1]) & (e.split[1:] == e.split[:-1])
            if e.context is not None:  # one job found by two queries is two examples
                same[1:] &= e.context[1:] == e.context[:-1]
            self.faults["duplicate"] += int(same.sum())
            self._set_aside(e.take(same))
            return e.take(~same)
        return e

    def _set_aside(self, e: Events) -> None:
        """Write repeated rows to ``rejected/duplicate.parquet``."""
        users, items = self.users.ids.take(pa.array(e.user)), self.items.ids.take(pa.array(e.item))
        columns: dict[str, Any] = {c.USER: users, c.ITEM: items}
        if self.spec.events.clock != "none":
            columns[c.TIME] = self._times(e)
        names = pa.array([a.name for a in self.spec.actions])
        columns |= {c.ACTION: names.take(pa.array(e.action)), c.WEIGHT: e.weight}
        self.repeated.write(e.user, pa.table(columns))

    def _times(self, e: Events) -> Any:
        if self.spec.events.clock == "order":
            return e.time
        return pa.array(e.time).cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))

    def _split(self, e: Events) -> NDArray[np.int8]:
        rule, s = self.spec.split.rule, self.spec.split
        if rule == "given":
            split = e.split
        elif rule == "global_time":
            assert self.bounds is not None
            split = splits.global_time(e.time, *self.bounds)
        elif rule == "cold_items":
            split = splits.cold_items(self._family_hashes[e.item], float(s.valid), float(s.test), s.seed)
        else:
            user, group = e.user.astype(np.int64), self.group[e.item]
            positive = self.weights[e.action] * e.weight > 0
            if rule == "leave_last_out":
                split = splits.leave_last_out(user, group, positive, s.min_items)
            else:
                split = splits.random_per_user(
                    user, group, positive, self._pair_hashes(e), float(s.valid), float(s.test), s.min_items, s.seed
                )
        if self.spec.refit:
            split = np.where(split == splits.VALID, splits.TRAIN, split).astype(np.int8)
        return split

    def _write(
        self,
        e: Events,
        split: NDArray[np.int8],
        stages: NDArray[np.int8],
        weight: NDArray[np.float32],
        ends: NDArray[np.int64],
        eligible: NDArray[np.bool_],
    ) -> None:
        columns: dict[str, Any] = {c.USER_ROW: e.user, c.ITEM_ROW: e.item, c.ACTION: e.action}
        if self.spec.events.clock != "none":
            columns[c.TIME] = self._times(e)
        # examples first: their history ends count what the history log held before this call
        more = {c.WEIGHT: weight, c.SPLIT: split, c.HISTORY_END: ends}
        if e.context is not None:
            more[c.CONTEXT_ROW] = e.context
        self.examples.write(e.user, pa.table({**columns, **more}))
        log = pa.table({**columns, "stage": stages})
        rows: NDArray[Any] = eligible
        if self.spec.events.clock == "none":  # nothing is newest: what a long history keeps is a fixed random choice
            rows = np.lexsort((e.item, self._pair_hashes(e), stages, e.user))
            rows = rows[eligible[rows]]
            log = log.take(pa.array(rows))
        elif not eligible.all():
            log = log.filter(pa.array(eligible))
        self.history.write(e.user[rows], log)

    def _first_repeated(self) -> str:
        row = pq.read_table(self.out / next(iter(self.repeated.files))).slice(0, 1).to_pylist()[0]
        return self.log.where_repeated(row[c.USER], row[c.ITEM])

    def check(self) -> tuple[dict[str, Any], dict[str, int]]:
        """Counts, once every fault is within its limit.

        Raises:
            DataError: a fault that stops, too many rows set aside, or an empty split.
        """
        if not self.rows:
            raise self._empty()
        for name in _MEANING:
            if n := self.faults[name]:
                limit: Limit = self.spec.faults[name]
                where = self._first_repeated() if name == "duplicate" else self.log.reject(name, self.out / "rejected")
                if limit.policy == "stop" or n > limit.limit * self.rows:
                    raise DataError(
                        f"{n} of {self.rows} log rows: {_MEANING[name]}"
                        + (f", more than the limit of {limit.limit:.2%}" if limit.policy == "set_aside" else ""),
                        where=where,
                        cure=f"{_CURE[name]}, or set faults.{name}: {{policy: set_aside, limit: …}} in the data config",
                    )
        wanted = {"train"} | {t for _, task in self.spec.tasks for t in task.targets}
        if self.spec.refit:
            wanted -= {"valid"}
        if empty := sorted(w for w in wanted if not self.by_split[w]):
            raise DataError(
                f"no positive events in split {empty[0]!r}; counts are {dict(self.by_split)}",
                where=f"split.rule={self.spec.split.rule}",
                cure="correct the split settings, the actions' weights or the files",
            )
        rejected = {name: n for name, n in sorted(self.faults.items()) if n}
        return {
            "log_rows": self.rows,
            "examples": self.examples.rows,
            "history": self.history.rows,
            "positives": dict(self.by_split),
        }, rejected


_MEANING = {
    "null_key": "the user or the item is null",
    "bad_time": "the time is null, cannot be read, is naive, or lies outside 1900-2100",
    "bad_weight": "the weight is null, negative, NaN or infinite",
    "unknown_action": "an action that the config does not declare",
    "unknown_split": "a split that the config does not declare",
    "unknown_user": "a user that the user table lacks",
    "unknown_item": "an item that the catalogue lacks",
    "after_expiry": "an event after its item had expired",
    "duplicate": "the user, item, time and action of another row",
}
_CURE = {
    "null_key": "remove those rows",
    "bad_time": "write ISO-8601 instants with an offset, or set events.time.timezone or events.time.unit",
    "bad_weight": "write finite weights of at least 0",
    "unknown_action": "declare it under actions (weight 0 for what is no positive)",
    "unknown_split": "name the splits train, valid and those that tasks refer to",
    "unknown_user": "complete the user table",
    "unknown_item": "complete the item table",
    "after_expiry": "correct items.expires or the log's clock",
    "duplicate": "remove them",
}


def _unsorted(key: NDArray[np.int64], time: NDArray[np.int64]) -> bool:
    return bool(((np.diff(time) < 0) & (np.diff(key) == 0)).any())
