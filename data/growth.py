"""Newer files of a log are added to a prepared dataset as a further generation of parts; older parts stay as they are.

::

    generation 0   examples/00000-00000 … history/00000-00000 …          kept: the same files, hard-linked
    newer files ──scan, number, sort──▶ examples/00000-00001 … history/00000-00001 …
    all of them ──▶ users, items, vocab, tasks, dataset.json             written anew; known ids keep their rows

Under ``global_time`` that is exact: if each new event is later than every older one, it lies behind them in its user's
history, and changes no older history's end. What it does change is which split an older event belongs to, as the
boundaries move. Hence the readers of a dataset of several generations tell splits by times (``data.prepared``), and the
training events of each user and item are counted again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data import splits
from data.duckdb_engine import DuckDBEngine
from data.engines import boundaries
from data.entities import Entities
from data.events import PLAUSIBLE_US, Log
from data.files import File
from data.instants import iso
from data.parts import RowGroups, times
from data.prepared import PreparedDataset
from data.spec import DatasetSpec
from data.tally import Tally
from data.writer import keep_file
from towers.errors import DataError
from towers.features import columns as c

Ints = NDArray[np.int64]
_OF_TABLES = ("nan_feature", "infinite_feature")  # faults of users and items, whose tables are read anew


@dataclass(frozen=True)
class Base:
    """A prepared dataset, and what is newer.

    Attributes:
        data: the dataset.
        log: the newer files of the log.
        bounds: microseconds at which valid and test begin in the log as a whole.
    """

    data: PreparedDataset
    log: Log
    bounds: tuple[int, int]

    @property
    def generation(self) -> int:
        """Of the parts that the newer files give."""
        return self.data.generations

    def keep_parts(self, out: Path) -> dict[str, dict[str, Any]]:
        """Take the parts, and what was set aside, into a new folder; what ``dataset.json`` says of them."""
        kept = {
            n: f for n, f in self.data.info["files"].items() if n.startswith(("examples/", "history/", "rejected/"))
        }
        for name in kept:
            keep_file(self.data.folder / name, out / name)
        return kept

    def older_events(self, users: int) -> Ints:
        """``[users]`` events that each has in the histories so far."""
        found = np.diff(self.data.history_bounds[0])
        return np.concatenate([found, np.zeros(users - len(found), np.int64)])

    def grown(self, side: str, newest: Entities) -> Entities:
        """The rows of the dataset, then those that are new, in the order of their ids.

        A known row says what the newest table says of it; one that the newest table lacks, what it said before.

        Args:
            side: ``user`` or ``item``.
            newest: what the newest table says, or the ids of the newer files.

        Raises:
            DataError: a column of the newest table is of another type.
        """
        before = self.data.ids(side)
        ids = newest.ids.cast(before.type)
        place = pc.index_in(before, value_set=ids)
        gone = place.is_null()
        fresh = pc.index_in(ids, value_set=before).is_null()
        index = pc.fill_null(place, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        lost = np.flatnonzero(gone.to_numpy(zero_copy_only=False))
        index[lost] = len(ids) + np.arange(len(lost))
        index = np.concatenate([index, np.flatnonzero(fresh.to_numpy(zero_copy_only=False))])
        table = newest.table
        if len(lost):
            old = self.data.raw(side, table.column_names).take(pa.array(lost))
            try:
                table = pa.concat_tables([table, old], promote_options="permissive")
            except pa.ArrowException as e:
                raise DataError(
                    f"a column is of another type than in the older table: {e}",
                    where=f"the table of {side}s",
                    cure="write the types of before, or prepare everything: force=true",
                ) from e

        def time(name: str, newer: pa.Array | None) -> pa.Array | None:
            if newer is None:
                return None
            old = self.data.side(side)[name].cast(pa.int64()).combine_chunks().take(pa.array(lost))
            return pa.concat_arrays([newer.cast(pa.int64()), old]).take(pa.array(index))

        group = None
        if newest.group is not None:
            was = self.data.side(side)[c.GROUP].to_numpy()
            group = pa.array(_groups(newest.group.to_numpy(), was, index))
        every = pa.concat_arrays([before, ids.filter(fresh)])
        return Entities(
            every,
            table.take(pa.array(index)),
            time(c.POSTED, newest.posted),
            time(c.EXPIRES, newest.expires),
            group,
            counts=newest.counts,
        )

    def counted(self, tally: Tally, out: Path, parts: Sequence[str], users: int, refit: bool) -> Tally:
        """The tally of all generations, as their events are split now.

        Args:
            tally: of the newer files.
            out: folder of all parts.
            parts: their names.
            users: rows of users.
            refit: whether validation is trained on.
        """
        info, names = self.data.info, self.data.splits
        out_of = {name: n for name, n in info["rejected"].items() if name not in _OF_TABLES}
        every = Tally(
            np.zeros_like(tally.item_events),
            np.zeros_like(tally.context_events),
            rows=info["counts"]["log_rows"] + tally.rows,
            faults=Counter(out_of) + tally.faults,
            first=min(info["time_us"][0], tally.first),
            last=max(info["time_us"][1], tally.last),
            user_events={0: np.zeros(users, np.int64)},
        )
        groups = RowGroups.of([out / name for name in parts])
        for batch in groups.slices(0, int(groups.starts[-1]), [c.USER_ROW, c.ITEM_ROW, c.TIME, c.WEIGHT]):
            split = splits.global_time(times(batch), *self.bounds)
            split = (splits.refitted(split) if refit else split)[positive := batch[c.WEIGHT].to_numpy() > 0]
            trained = np.flatnonzero(positive)[split == splits.TRAIN]
            if len(trained):
                user = batch[c.USER_ROW].to_numpy()[trained]
                every.user_events[0][user[0] : user[-1] + 1] += np.bincount(user - user[0])
                np.add.at(every.item_events, batch[c.ITEM_ROW].to_numpy()[trained], 1)
            for code, n in enumerate(np.bincount(split, minlength=len(names))):
                every.positives[names[code]] += int(n)
        return every


def base(
    con: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    target: Path,
    files: Sequence[File],
    log: Log,
    say: Callable[[str], None],
) -> Base | None:
    """The dataset to which newer files of the log can be added; None, and a word why, where it has to be made whole.

    Args:
        con: a connection.
        spec: the data config.
        target: folder of the dataset.
        files: all files of the log.
        log: the whole log.
        say: told why not.
    """
    if not (target / "dataset.json").is_file():
        return None
    found = _newer(spec, target, files, log)
    if not isinstance(found, str):
        data, newer = found
        bounds = boundaries(spec, DuckDBEngine(con, log))
        assert bounds is not None  # the rule is global_time
        some = log.only(newer)
        query = f"SELECT min(time) FROM log WHERE time BETWEEN {PLAUSIBLE_US[0]} AND {PLAUSIBLE_US[1]}"
        first, last = DuckDBEngine(con, some).rows(query)[0][0], data.info["time_us"][1]
        if first is None or first > last:
            return Base(data, some, bounds)
        found = f"{some.shown} has an event at {iso(first)}, and what is prepared goes up to {iso(last)}"
    say(f"{spec.name} is prepared as a whole: {found}")
    return None


def _newer(
    spec: DatasetSpec, target: Path, files: Sequence[File], log: Log
) -> tuple[PreparedDataset, list[File]] | str:
    """The dataset and the files that it does not have yet, or what is in the way."""
    if spec.split.rule != "global_time":
        return f"under split.rule={spec.split.rule} newer events change what older examples may see"
    if spec.engine != "duckdb":
        return f"data.engine={spec.engine} adds nothing to what is there; DuckDB does"
    if spec.context.features:
        return "the contexts of a log are numbered as a whole"
    try:
        data = PreparedDataset(target)
    except DataError as e:
        return str(e)
    raw = data.info.get("log")
    if raw is None:
        return "it was prepared by an earlier version, which did not record its files"
    if raw["config_sha256"] != config_hash(spec):
        return "its config says something else than before"
    if (log.user_type, log.item_type) != (data.schema.user_id, data.schema.item_id):
        return "with the newer files its ids are of another type"
    there = {f.shown: [f.size, f.changed_ns] for f in files}
    if changed := [name for name, was in raw["files"].items() if there.get(name) != was]:
        return f"{changed[0]} has changed, or is gone"
    newer = [f for f in files if f.shown not in raw["files"]]
    return (data, newer) if newer else "no file of the log is new"


def config_hash(spec: DatasetSpec) -> str:
    """Hash of a config without what may differ between generations: files of the log and of tables, and the engine."""
    config = spec.content()
    for block in ("events", "users", "items"):
        config[block] = {k: v for k, v in config[block].items() if k != "files"}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def described(spec: DatasetSpec, files: Sequence[File]) -> dict[str, Any]:
    """What ``dataset.json`` says of the raw log: the config's hash; of each file its size and time of change."""
    return {"config_sha256": config_hash(spec), "files": {f.shown: [f.size, f.changed_ns] for f in files}}


def _groups(newest: Ints, was: Ints, index: Ints) -> Ints:
    """``[n]`` groups of the rows ``index``, of which those from ``len(newest)`` on are in no newest table.

    Such a row joins the group in which the newest table has another one of its old group, if there is any.
    """
    there = index < len(newest)
    out = np.empty(len(index), np.int64)
    out[there] = newest[index[there]]
    known = np.flatnonzero(there[: len(was)])[::-1]  # the first row of a group wins
    now = dict(zip(was[known].tolist(), out[known].tolist(), strict=True))
    apart = int(newest.max(initial=-1)) + 1
    for row in np.flatnonzero(~there):
        out[row] = now.get(int(was[row]), apart + int(was[row]))
    return out
