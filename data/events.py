"""The log in SQL: canonical columns, row numbers, and the fault of each row.

Engines do what databases do well (scan, join, sort, spill); their answer is streamed to numpy, where the split rules
and the ends of histories are computed on whole users (``data.consumer``). What reads a value (``Log.select``) is
written for DuckDB, which reads every file; what numbers the rows (``Log.numbered``), in words that DuckDB and Spark
both understand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data import contexts
from data.files import File
from data.sources import Source, literal, open_source, quote
from data.spec import DatasetSpec
from data.values import id_sql, id_type, order_sql, time_sql
from towers.errors import ConfigError, DataError
from towers.features import columns as c

FAULT_CODES = {
    name: code
    for code, name in enumerate(
        ("null_key", "bad_time", "bad_weight", "unknown_action", "unknown_split", "unknown_user", "unknown_item",
         "after_expiry"), start=1)
}  # fmt: skip
# What a column holds where the log has none; such columns are spared the way through the sort.
_DEFAULTS = {c.TIME: np.int64(0), c.ACTION: np.int8(0), c.WEIGHT: np.float32(1), c.SPLIT: np.int8(0)}
_MOST = 3.4028235e38  # of a FLOAT
PLAUSIBLE_US = (-2_208_988_800_000_000, 4_102_444_800_000_000)  # 1900 … 2100


@dataclass
class Events:
    """Some rows of the sorted log, as columns of one length."""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]
    action: NDArray[np.int8]
    weight: NDArray[np.float32]
    split: NDArray[np.int8]
    context: NDArray[np.int32] | None = None  # where the data have a context

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.user)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> Events:
        """The rows selected by a mask, by indices or by a slice."""
        return Events(**{name: column[rows] for name, column in self.__dict__.items() if column is not None})

    @staticmethod
    def concat(parts: list[Events]) -> Events:
        """Rows of several, end to end."""
        if len(parts) == 1:
            return parts[0]
        there = [name for name, column in parts[0].__dict__.items() if column is not None]
        return Events(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in there})


class Log:
    """The configured log: sources opened, types agreed, ready to be numbered and sorted.

    Args:
        con: looks at the files; and evaluates what ``select`` returns, here or elsewhere.
        spec: the data config.
        splits: names of the splits, by code.

    Raises:
        DataError: a column is missing or of the wrong type, or the files disagree.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, spec: DatasetSpec, splits: tuple[str, ...]) -> None:
        self.con, self.spec, self.splits = con, spec, splits
        e = spec.events
        self.sources = [(name, open_source(con, files, spec.source)) for name, files in e.files]
        for _, s in self.sources:
            s.require(list(self.raw.values()), "events")
        if e.time and e.time.timezone:
            _check_zone(con, e.time.timezone)
        self.user_type = self._id_type(e.user)
        self.item_type = self._id_type(e.item)
        for _, s in self.sources:
            contexts.check(con, s, spec.context)

    def _id_type(self, column: str) -> str:
        """``int64`` or ``string``, the same in every source."""
        declared = self.spec.events.types.get(column)
        kinds = [(id_type(self.con, s, column, declared), s) for _, s in self.sources]
        known = {kind: s.shown for kind, s in kinds if kind}
        if len(known) > 1:
            raise DataError(
                f"id column {column!r} is an integer in {known['int64']} and a string in {known['string']}",
                where=f"column {column!r}",
                cure=f"write one type, or set events.types: {{{column}: string}}",
            )
        return next(iter(known), "string")

    def only(self, files: Sequence[File]) -> Log:
        """Some files of this log, with ids of its types."""
        out = copy(self)
        out.sources = [("", open_source(self.con, [f.shown for f in files]))]
        return out

    @property
    def shown(self) -> str:
        """The files, for errors."""
        return "; ".join(s.shown for _, s in self.sources)

    def union(self, positioned: bool = False) -> str:
        """The whole log; see ``select``."""
        return " UNION ALL ".join(self.select(name, s, positioned) for name, s in self.sources)

    def select(self, split: str, s: Source, positioned: bool = False) -> str:
        """Canonical columns of a source, or of some of its files, in the SQL of DuckDB.

        They are user, item, time, action, weight, split, and those of the context.

        Args:
            split: the split that these files are given to, or nothing.
            s: the files.
            positioned: with the raw values as text (``_user``, ``_item`` …), and ``_file`` and ``_row``.
        """
        e = self.spec.events
        order = order_sql(e.order, s) if e.order else "0"
        where = "".join(f", {quote(col)}::VARCHAR AS _{name}" for name, col in self.raw.items()) + ", _file, _row"
        return f"""SELECT {id_sql(e.user, self.user_type)} AS user, {id_sql(e.item, self.item_type)} AS item,
            {time_sql(e, s) if e.time else order}::BIGINT AS time, {self._action()}::TINYINT AS action,
            {f"TRY_CAST({quote(e.weight)} AS FLOAT)" if e.weight else "1::FLOAT"} AS weight,
            {self._split(split)}::TINYINT AS split{contexts.select_sql(s, self.spec.context)}
            {where if positioned else ""}
            FROM {s.positioned() if positioned else s.sql}"""

    @property
    def raw(self) -> dict[str, str]:
        """What a value is read from: ``user``, ``item``, ``time`` … → the log's column."""
        e = self.spec.events
        columns = {
            c.USER: e.user,
            c.ITEM: e.item,
            c.TIME: e.time.column if e.time else e.order,
            c.ACTION: e.action,
            c.WEIGHT: e.weight,
            c.SPLIT: e.split,
        }
        return {name: column for name, column in columns.items() if column}

    def _action(self) -> str:
        if not self.spec.events.action:
            return "0"
        column = quote(self.spec.events.action)
        cases = " ".join(f"WHEN {literal(a.name)} THEN {i}" for i, a in enumerate(self.spec.actions))
        return f"CASE {column}::VARCHAR {cases} ELSE -1 END"

    def _split(self, name: str) -> str:
        if name:
            return str(self.splits.index(name))
        if not self.spec.events.split:
            return "0"
        cases = " ".join(f"WHEN {literal(s)} THEN {i}" for i, s in enumerate(self.splits))
        return f"CASE {quote(self.spec.events.split)}::VARCHAR {cases} ELSE -1 END"

    def _faults(self) -> dict[str, str]:
        """The faults that this log can have, with their conditions; a row has the first one that holds."""
        spec, e = self.spec, self.spec.events
        plausible = f" OR e.time NOT BETWEEN {PLAUSIBLE_US[0]} AND {PLAUSIBLE_US[1]}" if e.time else ""
        conditions = {
            "null_key": "e.user IS NULL OR e.item IS NULL",
            "bad_time": f"e.time IS NULL{plausible}" if e.time or e.order else None,
            "bad_weight": f"e.weight IS NULL OR isnan(e.weight) OR e.weight NOT BETWEEN 0 AND {_MOST}"
            if e.weight
            else None,
            "unknown_action": "e.action < 0" if e.action else None,
            "unknown_split": "e.split < 0" if e.split else None,
            "unknown_user": "u.row IS NULL" if spec.users.files else None,
            "unknown_item": "i.row IS NULL" if spec.items.files else None,
            "after_expiry": "e.time >= i.expires" if e.time and spec.items.expires else None,
        }
        return {name: condition for name, condition in conditions.items() if condition}

    def columns(self, numbered: bool = True) -> dict[str, str]:
        """The columns of ``Events`` that vary, in the order in which they sort the log.

        That order is total: (user, split, time, item, action, context), nulls last, and the heaviest first.

        Args:
            numbered: users by their rows in ``user_ids``; else by their ids.
        """
        there = {"user", "item", *self.raw} | ({"split"} if self.sources[0][0] else set())
        columns = {
            "user": "coalesce(u.row, -1)" if numbered else "e.user",
            "split": "e.split",
            "time": "coalesce(e.time, 0)",
            "item": "coalesce(i.row, -1)",
            "action": "e.action",
            "context": "x.row",
            "weight": "coalesce(e.weight, CAST(0 AS FLOAT))",
        }
        if self.spec.context.features:
            there.add("context")
        return {name: sql for name, sql in columns.items() if name in there}

    def numbered(self, columns: Mapping[str, str], log: str = "log", users: bool = True) -> str:
        """Columns of the log, and the code of each row's first fault (0: none), in the SQL of every engine.

        Args:
            columns: name → expression of ``e`` (the log), ``u``, ``i`` and ``x`` (the tables of row numbers).
            log: the table that holds what ``select`` returns. There are also ``item_ids(item, row, expires)``, and
                ``context_ids`` (see ``contexts``) where there is a context.
            users: whether there is ``user_ids(user, row)``.
        """
        cases = " ".join(f"WHEN {condition} THEN {FAULT_CODES[name]}" for name, condition in self._faults().items())
        values = "".join(f"{sql} AS {quote(name)}, " for name, sql in columns.items())
        joins = " LEFT JOIN user_ids u ON e.user = u.user" if users else ""
        if self.spec.context.features:
            joins += f" LEFT JOIN context_ids x ON {contexts.join_sql(self.spec.context, 'e', 'x')}"
        return f"""SELECT {values}CAST(CASE {cases} ELSE 0 END AS TINYINT) AS fault
            FROM {log} e LEFT JOIN item_ids i ON e.item = i.item{joins}"""

    def rejects(self, fault: str, log: str, users: bool = True) -> str:
        """The rows with this fault, as they are, each with its file and row, in the SQL of every engine.

        Args:
            fault: its name, see ``blocks.FAULTS``.
            log: the log's table, with ``_file`` and ``_row``.
            users: as ``numbered`` has it.
        """
        columns = {name: f"e._{name}" for name in self.raw} | {"file": "e._file", "row": "e._row"}
        names = ", ".join(map(quote, columns))
        return f"SELECT {names} FROM ({self.numbered(columns, log, users)}) WHERE fault = {FAULT_CODES[fault]}"

    def blame(self, fault: str, first: Mapping[str, object]) -> str:
        """Where the first row with a fault is, and what it says.

        Args:
            fault: its name.
            first: that row, as ``rejects`` returns it.
        """
        name = _BLAME[fault] if fault != "null_key" else c.USER if first[c.USER] is None else c.ITEM
        values = ", ".join(f"{self.raw[n]} {first[n]!r}" for n in dict.fromkeys((c.USER, c.ITEM, name)) if n in first)
        return f"first in {first['file']}, column {self.raw[name]!r}, row {first['row']} (counted from 0): {values}"


def as_events(batch: pa.RecordBatch, user: NDArray[np.int32] | None = None) -> tuple[Events, NDArray[np.int8]]:
    """A batch of the numbered and sorted log, and the fault code of each row.

    Args:
        batch: columns of ``Log.columns`` and ``fault``.
        user: ``[n]`` rows of the users, where the batch does not have them.
    """
    names = [n for n in batch.schema.names if n != "fault"]
    arrays = {n: np.full(len(batch), value) for n, value in _DEFAULTS.items() if n not in names}
    arrays |= {n: batch[n].to_numpy(zero_copy_only=False) for n in names if n != "user" or user is None}
    return Events(**arrays | ({} if user is None else {"user": user})), batch["fault"].to_numpy(zero_copy_only=False)


# The value that a fault is about.
_BLAME = {"bad_time": c.TIME, "bad_weight": c.WEIGHT, "unknown_action": c.ACTION, "unknown_split": c.SPLIT,
          "unknown_user": c.USER, "unknown_item": c.ITEM, "after_expiry": c.TIME}  # fmt: skip


def _check_zone(con: duckdb.DuckDBPyConnection, zone: str) -> None:
    if not con.execute("SELECT 1 FROM pg_timezone_names() WHERE lower(name) = lower(?) LIMIT 1", [zone]).fetchall():
        raise ConfigError(f"events.time.timezone {zone!r}: no such time zone; write UTC, or one like Europe/Berlin")
