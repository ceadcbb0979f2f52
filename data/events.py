"""The log as one SQL query: canonical columns, row numbers, and the fault of each row, sorted by user.

DuckDB does what databases do well (scan, join, sort, spill); its answer is streamed to numpy, where the
split rules and history offsets are computed on whole users.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray

from data import contexts
from data.numbering import Numbering
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

    Creates the view ``log`` in ``con`` with columns user, item, time, action, weight, split, and those of the context.

    Attributes:
        numbering: rows of users, filled by ``sorted``, where users are the integer ids of the log. Else None, and the
            table ``user_ids`` numbers them: strings sort so much slower than integers that a join is the cheaper way.
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
        self.numbering = Numbering() if self.user_type == "int64" and not spec.users.files else None
        con.execute(f"CREATE OR REPLACE TEMP VIEW log AS {self._union(positioned=False)}")

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

    def _union(self, positioned: bool) -> str:
        parts = (self._select(name, s, positioned) for name, s in self.sources)
        return " UNION ALL ".join(parts)

    def _select(self, split: str, s: Source, positioned: bool) -> str:
        e = self.spec.events
        order = order_sql(e.order, s) if e.order else "0"
        where = "".join(f", {quote(col)}::VARCHAR AS _{name}" for name, col in self.raw.items()) + ", _file, _row"
        return f"""SELECT {id_sql(e.user, self.user_type)} AS user, {id_sql(e.item, self.item_type)} AS item,
            {time_sql(e, s) if e.time else order}::BIGINT AS time, {self._action()}::TINYINT AS action,
            {f"TRY_CAST({quote(e.weight)} AS FLOAT)" if e.weight else "1::FLOAT"} AS weight,
            {self._split(split)}::TINYINT AS split{contexts.select_sql(self.con, s, self.spec.context)}
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
            "bad_weight": "e.weight IS NULL OR NOT isfinite(e.weight) OR e.weight < 0" if e.weight else None,
            "unknown_action": "e.action < 0" if e.action else None,
            "unknown_split": "e.split < 0" if e.split else None,
            "unknown_user": "u.row IS NULL" if spec.users.files else None,
            "unknown_item": "i.row IS NULL" if spec.items.files else None,
            "after_expiry": "e.time >= i.expires" if e.time and spec.items.expires else None,
        }
        return {name: condition for name, condition in conditions.items() if condition}

    def _columns(self) -> dict[str, str]:
        """The columns of ``Events`` that vary, in the order in which they sort the log."""
        there = {"user", "item", *self.raw} | ({"split"} if self.sources[0][0] else set())
        columns = {
            "user": "e.user" if self.numbering else "coalesce(u.row, -1)",
            "split": "e.split",
            "time": "coalesce(e.time, 0)",
            "item": "coalesce(i.row, -1)",
            "action": "e.action",
            "context": "x.row",
            "weight": "coalesce(e.weight, 0)",
        }
        if self.spec.context.features:
            there.add("context")
        return {name: sql for name, sql in columns.items() if name in there}

    def _numbered(self, columns: Mapping[str, str], positioned: bool = False) -> str:
        """Columns of the log, and the code of each row's first fault (0: none).

        Needs the table ``item_ids(item, row, expires)``; ``user_ids(user, row)`` where ``numbering`` is None; and
        ``context_ids`` (see ``contexts``) where there is a context.
        """
        cases = " ".join(f"WHEN {condition} THEN {FAULT_CODES[name]}" for name, condition in self._faults().items())
        values = "".join(f"{sql} AS {quote(name)}, " for name, sql in columns.items())
        log = f"({self._union(positioned=True)})" if positioned else "log"
        joins = "" if self.numbering else " LEFT JOIN user_ids u ON e.user = u.user"
        if self.spec.context.features:
            joins += f" LEFT JOIN context_ids x ON {contexts.join_sql(self.spec.context, 'e', 'x')}"
        return f"""SELECT {values}(CASE {cases} ELSE 0 END)::TINYINT AS fault
            FROM {log} e LEFT JOIN item_ids i ON e.item = i.item{joins}"""

    def sorted(self, rows: int = 1 << 20) -> Iterator[tuple[Events, NDArray[np.int8]]]:
        """Batches of (rows, fault codes), by (user, split, time, item, action, context) and weight: a total order."""
        columns = self._columns()
        order = ", ".join(f"{i} DESC" if name == "weight" else f"{i} NULLS LAST" for i, name in enumerate(columns, 1))
        for batch in self.con.sql(f"{self._numbered(columns)} ORDER BY {order}").to_arrow_reader(rows):
            arrays = {name: np.full(len(batch), value) for name, value in _DEFAULTS.items() if name not in columns}
            if self.numbering:
                arrays["user"] = self.numbering.rows(batch["user"])
            for name in columns.keys() - arrays.keys():
                arrays[name] = batch[name].to_numpy(zero_copy_only=False)
            yield Events(**arrays), batch["fault"].to_numpy(zero_copy_only=False)

    def reject(self, fault: str, folder: Path) -> str:
        """Write all rows with this fault, as they are, to ``folder/FAULT.parquet``; say where the first one is."""
        columns = {name: f"e._{name}" for name in self.raw} | {"file": "e._file", "row": "e._row"}
        query = f"SELECT * EXCLUDE (fault) FROM ({self._numbered(columns, positioned=True)}) WHERE fault = "
        folder.mkdir(parents=True, exist_ok=True)
        path = literal(str(folder / f"{fault}.parquet"))
        self.con.execute(f"COPY ({query}{FAULT_CODES[fault]} ORDER BY file, row) TO {path} (FORMAT parquet)")
        first = self.con.sql(f"SELECT * FROM read_parquet({path}) LIMIT 1").to_arrow_table().to_pylist()[0]
        name = _BLAME[fault] if fault != "null_key" else c.USER if first[c.USER] is None else c.ITEM
        values = ", ".join(f"{self.raw[n]} {first[n]!r}" for n in dict.fromkeys((c.USER, c.ITEM, name)) if n in first)
        return f"first in {first['file']}, column {self.raw[name]!r}, row {first['row']} (counted from 0): {values}"

    def where_repeated(self, user: object, item: object) -> str:
        """Which rows hold a (user, item) pair that repeats itself."""
        rows = self.con.execute(
            f"SELECT _file, _row FROM ({self._union(positioned=True)}) WHERE user = ? AND item = ? ORDER BY ALL",
            [user, item],
        ).fetchall()
        places = ", ".join(f"{file} row {row}" for file, row in rows[:5])
        return f"first for user {user!r}, item {item!r}: {places} (counted from 0)"


# The value that a fault is about.
_BLAME = {"bad_time": c.TIME, "bad_weight": c.WEIGHT, "unknown_action": c.ACTION, "unknown_split": c.SPLIT,
          "unknown_user": c.USER, "unknown_item": c.ITEM, "after_expiry": c.TIME}  # fmt: skip


def _check_zone(con: duckdb.DuckDBPyConnection, zone: str) -> None:
    if not con.execute("SELECT 1 FROM pg_timezone_names() WHERE lower(name) = lower(?) LIMIT 1", [zone]).fetchall():
        raise ConfigError(f"events.time.timezone {zone!r}: no such time zone; write UTC, or one like Europe/Berlin")
