"""A prepared dataset, opened for reading: columns as arrays, checked against ``dataset.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data import splits as split_rules
from data.blocks import TaskSpec
from data.entity_table import EntityTable
from data.examples import Examples
from data.histories import HistoryLog
from data.histories import stage as stage_of
from data.parts import RowGroups, times
from data.writer import FORMAT_VERSION
from towers.errors import ConfigError, DataError
from towers.features import FeatureInfo, Featurizer, Ragged, Schema
from towers.features import columns as c
from towers.features.featurizer import Encoded
from towers.features.vocabulary import StoredVocabulary

_FAR = np.iinfo(np.int64).max


class PreparedDataset:
    """What ``prepare.py`` wrote, in ``var/data/NAME``.

    Raises:
        DataError: the folder is absent, incomplete, or of another format version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._groups: dict[str, RowGroups] = {}
        try:
            self.info: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
        except (OSError, ValueError) as e:
            raise DataError(
                "no prepared dataset", where=str(folder), cure=f"run: python prepare.py data={folder.name}"
            ) from e
        if self.info["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"format version {self.info['format_version']}; this code reads {FORMAT_VERSION}",
                where=str(folder),
                cure="prepare the data again",
            )
        for name, f in self.info["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != f["bytes"]:
                raise DataError("a file is missing or cut short", where=str(path), cure="prepare the data again")
        self.name: str = self.info["name"]
        self.schema = Schema.from_json(self.info["schema"])
        self.splits: tuple[str, ...] = tuple(self.info["splits"])
        self.refit: bool = self.info["refit"]
        self.generations: int = self.info.get("generations", 1)
        # the boundaries of the split move with every generation, and what was written of it then is out of date
        self._bounds = self.info["split"]["boundaries_us"] if self.generations > 1 else None

    @property
    def files_sha256(self) -> str:
        """Hash of the files that a model learns from, wherever and whenever they were prepared."""
        files = {n: f["sha256"] for n, f in self.info["files"].items() if not n.startswith(("tasks/", "rejected/"))}
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    @cached_property
    def users(self) -> EntityTable:
        """``users.parquet``."""
        return EntityTable(self.folder / "users.parquet")

    @cached_property
    def items(self) -> EntityTable:
        """``items.parquet``."""
        return EntityTable(self.folder / "items.parquet")

    @cached_property
    def contexts(self) -> EntityTable:
        """``contexts.parquet``: the distinct contexts of the log; empty where the data have none."""
        path = self.folder / "contexts.parquet"
        return EntityTable(path if path.is_file() else None)

    def side(self, side: str) -> EntityTable:
        """The ``user``, the ``item`` or the ``context`` table."""
        return {"user": lambda: self.users, "item": lambda: self.items, "context": lambda: self.contexts}[side]()

    def ids(self, side: str) -> pa.Array:
        """External ids by row."""
        names = {"user": c.USER, "item": c.ITEM, "context": c.CONTEXT_ROW}
        return self.side(side)[names[side]].combine_chunks()

    def featurizer(self, side: str) -> Featurizer:
        """The fitted features of a side."""
        return Featurizer.load(self.folder / "vocab", side, self.schema.side(side))

    def infos(self, side: str) -> tuple[FeatureInfo, ...]:
        """What a model needs to know of a side's features, without their vocabularies in memory."""
        return Featurizer.load(self.folder / "vocab", side, self.schema.side(side), read=StoredVocabulary).infos

    def encoded(self, side: str, scratch: Path | None = None) -> Encoded:
        """Encoded feature arrays by name; ``[rows]`` or ``[rows, width]``.

        Args:
            side: ``user``, ``item`` or ``context``.
            scratch: an empty folder, in which the arrays are to lie, memory-mapped; None: they are in memory.
        """
        table = self.side(side)
        names = [n for n in table.column_names if n.startswith(c.FEATURE_PREFIX)]
        if scratch is None:
            arrays = [table.array(name) for name in names]
        else:
            arrays = [table.mapped(name, scratch / f"{i}.npy") for i, name in enumerate(names)]
        return {name.removeprefix(c.FEATURE_PREFIX): array for name, array in zip(names, arrays, strict=True)}

    def raw(self, side: str, names: Sequence[str] | None = None) -> pa.Table:
        """Raw columns of a side, under their own names.

        Args:
            side: ``user``, ``item`` or ``context``.
            names: of those wanted, as far as there are such; None: all.
        """
        table = self.side(side)
        kept = [n.removeprefix(c.ATTRIBUTE_PREFIX) for n in table.column_names if n.startswith(c.ATTRIBUTE_PREFIX)]
        kept = kept if names is None else [n for n in names if n in kept]
        return table.select([c.ATTRIBUTE_PREFIX + n for n in kept]).rename_columns(kept)

    def events(self, side: str) -> NDArray[np.int64]:
        """``[rows]`` positive training events."""
        return np.array(self.side(side)[c.EVENTS].to_numpy(), np.int64)

    def item_times(self) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
        """``[items]`` posted and expires in microseconds, open ends filled; None where the data have none."""

        def column(name: str, open_end: int) -> NDArray[np.int64] | None:
            if name not in self.items.column_names:
                return None
            return np.asarray(self.items[name].cast(pa.int64()).fill_null(open_end).to_numpy(), np.int64)

        return column(c.POSTED, -_FAR), column(c.EXPIRES, _FAR)

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """``[items]`` group of each item, or None where the data have no groups."""
        return np.array(self.items[c.GROUP].to_numpy(), np.int64) if c.GROUP in self.items.column_names else None

    def examples(self, *names: str) -> Examples:
        """Examples of these splits, all actions (a weight of 0 marks no positive)."""
        wanted = [self.splits.index(n) for n in names]
        files = [self.folder / f for f in sorted(self.info["files"]) if f.startswith("examples/")]
        if self._bounds is None:
            table = pa.concat_tables([pq.read_table(f, filters=[(c.SPLIT, "in", wanted)]) for f in files])
        else:
            table = pa.concat_tables(
                [(t := pq.read_table(f)).filter(pa.array(np.isin(self.split_of(t), wanted))) for f in files]
            )
            # of each user, the older generation's are the earlier ones
            table = table.take(pa.array(np.argsort(table[c.USER_ROW].to_numpy(), kind="stable")))

        def column(name: str) -> NDArray[Any]:
            return np.asarray(table[name].to_numpy())

        return Examples(
            column(c.USER_ROW),
            column(c.ITEM_ROW),
            times(table) if c.TIME in table.column_names else None,
            column(c.WEIGHT),
            self.split_of(table),
            self.history_bounds[0][column(c.USER_ROW)] + column(c.HISTORY_END),
            column(c.CONTEXT_ROW) if c.CONTEXT_ROW in table.column_names else None,
            column(c.ACTION),
        )

    def row_groups(self, folder: str) -> RowGroups:
        """The row groups of ``examples`` or ``history``, by generation and user."""
        if folder not in self._groups:
            self._groups[folder] = RowGroups.of(
                [self.folder / f for f in self.info["files"] if f.startswith(f"{folder}/")]
            )
        return self._groups[folder]

    @property
    def split_column(self) -> str:
        """The column of examples from which ``split_of`` tells splits."""
        return c.SPLIT if self._bounds is None else c.TIME

    def split_of(self, rows: pa.Table | pa.RecordBatch) -> NDArray[np.int8]:
        """``[n]`` codes of the splits of examples, or of events in the history log.

        Args:
            rows: with ``split_column``.
        """
        if self._bounds is None:
            return np.asarray(rows[c.SPLIT].to_numpy())
        split = split_rules.global_time(times(rows), *self._bounds)
        return split_rules.refitted(split) if self.refit else split

    @cached_property
    def history_bounds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``offsets`` ``[users + 1]`` and ``stage_ends`` ``[users, 2]`` of the history log, without holding it."""
        n = len(self.users)
        counts = np.zeros((3, n), np.int32)  # events of each user in stages 0, 1 and 2
        groups = self.row_groups("history")
        column = c.STAGE if self._bounds is None else c.TIME
        for table in groups.slices(0, int(groups.starts[-1]), [c.USER_ROW, column]):
            user = table[c.USER_ROW].to_numpy()
            stage = table[c.STAGE].to_numpy() if self._bounds is None else stage_of(self.split_of(table))
            first, last = int(user[0]), int(user[-1])
            for s in range(3):
                counts[s, first : last + 1] += np.bincount(user[stage == s] - first, minlength=last + 1 - first)
        offsets, ends = np.zeros(n + 1, np.int64), np.empty((n, 2), np.int64)
        np.cumsum(counts.sum(axis=0, dtype=np.int64), out=offsets[1:])
        np.add(offsets[:-1], counts[0], out=ends[:, 0])
        np.add(ends[:, 0], counts[1], out=ends[:, 1])
        return offsets, ends

    @cached_property
    def history(self) -> HistoryLog:
        """The history log, whole."""
        return self.history_of(0, len(self.users))

    def history_of(self, first: int, stop: int) -> HistoryLog:
        """The history log of users ``first`` to ``stop``, as if there were no others."""
        offsets, stage_ends = (bounds[first : stop + i] for i, bounds in zip((1, 0), self.history_bounds, strict=True))
        start, n = int(offsets[0]), int(offsets[-1] - offsets[0])
        groups = self.row_groups("history")
        item, action = np.empty(n, np.int32), np.empty(n, np.int8)
        time = np.empty(n, np.int64) if c.TIME in groups.names else None
        names = [name for name in (c.ITEM_ROW, c.ACTION, c.TIME) if name in groups.names]
        for rows, table in self._placed(groups, first, offsets - start, names):
            item[rows], action[rows] = table[c.ITEM_ROW].to_numpy(), table[c.ACTION].to_numpy()
            if time is not None:
                time[rows] = times(table)
        return HistoryLog(offsets - start, stage_ends - start, item, action, time)

    def _placed(
        self, groups: RowGroups, first: int, offsets: NDArray[np.int64], names: Sequence[str]
    ) -> Iterator[tuple[Any, pa.RecordBatch]]:
        """The events of some users in small batches, each with its place among them.

        Args:
            groups: of the history log.
            first: the row of the first user.
            offsets: ``[users + 1]`` events before those of each of them.
            names: columns.
        """
        if self.generations == 1:
            at, start = 0, int(self.history_bounds[0][first])
            for batch in groups.slices(start, start + int(offsets[-1]), names):
                yield slice(at, at := at + len(batch)), batch
            return
        free = offsets[:-1].copy()  # where the next event of each user goes
        for batch in groups.of_users(first, first + len(free), [c.USER_ROW, *names]):
            user = batch[c.USER_ROW].to_numpy() - first
            counts = np.bincount(user - user[0])
            before = np.cumsum(counts) - counts
            yield free[user] + np.arange(len(user)) - before[user - user[0]], batch
            free[user[0] : user[-1] + 1] += counts

    @cached_property
    def known(self) -> Ragged:
        """``[users]`` lists of distinct item rows that a user took in training: history events and positives."""
        return self.known_of(0, self.history)

    @cached_property
    def taken(self) -> Ragged:
        """The same of all splits: what a served user is not shown again."""
        return self._taken(0, self.history, self.splits)

    def known_of(self, first: int, log: HistoryLog) -> Ragged:
        """``known`` of some users only.

        Args:
            first: the row of the first one.
            log: their history log, see ``history_of``.
        """
        return self._taken(first, log, ("train",))

    def _taken(self, first: int, h: HistoryLog, splits: tuple[str, ...]) -> Ragged:
        n_users, n_items = len(h.stage_ends), max(1, len(self.items))
        last = h.offsets[1:] if len(splits) > 1 else h.stage_ends[:, 0]
        lengths = np.stack([last - h.offsets[:-1], h.offsets[1:] - last], axis=1).ravel()
        kept = np.repeat(np.tile([True, False], n_users), lengths)
        pairs = np.repeat(np.arange(n_users) * n_items, lengths[::2]) + h.item[kept]
        if any(a.weight > 0 and not a.history for a in self.schema.actions):
            user, item = self.positives(splits, (first, first + n_users))
            pairs = np.concatenate([pairs, (user - first) * n_items + item])
        pairs.sort()
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        return Ragged(np.searchsorted(pairs, np.arange(n_users + 1) * n_items), pairs % n_items)

    def positives(
        self,
        splits: Sequence[str],
        span: tuple[int, int] | None = None,
        users: NDArray[np.bool_] | None = None,
        items: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """User and item rows of the positive examples of some splits; only these are held.

        Args:
            splits: names.
            span: the first user and the one after the last, of whom alone examples are read; None: all.
            users: ``[users]`` those who are wanted; None: all.
            items: ``[items]`` likewise.
        """
        groups, wanted = self.row_groups("examples"), [self.splits.index(name) for name in splits]
        names = [c.USER_ROW, c.ITEM_ROW, c.WEIGHT, self.split_column]
        every = groups.slices(0, int(groups.starts[-1]), names)
        found = [np.zeros((2, 0), np.int32)]
        for table in every if span is None else groups.of_users(*span, names):
            user, item, weight = (table[name].to_numpy() for name in names[:3])
            rows = (weight > 0) & np.isin(self.split_of(table), wanted)
            for mask, row in ((users, user), (items, item)):
                if mask is not None:
                    rows &= mask[row]
            found.append(np.stack([user[rows], item[rows]]))
        user, item = np.concatenate(found, axis=1).astype(np.int64)
        return user, item

    def task(self, name: str) -> TaskSpec:
        """A task's declaration.

        Raises:
            ConfigError: there is no such task.
        """
        tasks = self.info["tasks"]
        if name not in tasks:
            raise ConfigError(f"dataset {self.name!r} has no task {name!r}; there are {sorted(tasks)}")
        return TaskSpec.parse(name, tasks[name])
