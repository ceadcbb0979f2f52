"""The log as one SQL query: canonical columns, row numbers, and the fault of each row, sorted by user.

DuckDB does what databases do well (scan, join, sort, spill); its answer is streamed to numpy, where the
split rules and history offsets are computed on whole users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray

from data.sources import Source, literal, open_source, quote
from data.spec import DatasetSpec, EventsSpec
from towers.errors import ConfigError, DataError

FAULT_CODES = {
    name: code
    for code, name in enumerate(
        ("null_key", "bad_time", "bad_weight", "unknown_action", "unknown_split", "unknown_user", "unknown_item",
         "after_expiry"), start=1)
}  # fmt: skip
_UNIT_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
_OFFSET = r"(Z|z|[+-][0-9]{2}(:?[0-9]{2})?)$"
_PLAUSIBLE_US = (-2_208_988_800_000_000, 4_102_444_800_000_000)  # 1900 … 2100


@dataclass
class Events:
    """Some rows of the sorted log, as columns of one length."""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]
    action: NDArray[np.int8]
    weight: NDArray[np.float32]
    split: NDArray[np.int8]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.user)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> Events:
        """The rows selected by a mask, by indices or by a slice."""
        return Events(**{name: column[rows] for name, column in self.__dict__.items()})

    @staticmethod
    def concat(parts: list[Events]) -> Events:
        """Rows of several, end to end."""
        if len(parts) == 1:
            return parts[0]
        return Events(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in parts[0].__dict__})


class Log:
    """The configured log: sources opened, types agreed, ready to be numbered and sorted.

    Creates the view ``log`` in ``con`` with columns user, item, time, action, weight, split.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, spec: DatasetSpec, splits: tuple[str, ...]) -> None:
        self.con, self.spec, self.splits = con, spec, splits
        e = spec.events
        self.sources = [(name, open_source(con, files, spec.source, e.types)) for name, files in e.files]
        for _, s in self.sources:
            wanted = [e.user, e.item, e.action, e.weight, e.order, e.split, e.time.column if e.time else None]
            s.require([c for c in wanted if c], "events")
        self.user_type = self._id_type(e.user)
        self.item_type = self._id_type(e.item)
        con.execute(f"CREATE OR REPLACE TEMP VIEW log AS {self._union(positioned=False)}")

    def _id_type(self, column: str) -> str:
        """``int64`` or ``string``, the same in every source."""
        kinds = {self._one_id_type(s, column) for _, s in self.sources}
        if len(kinds) > 1:
            raise DataError(
                f"id column {column!r} is an integer in some files and a string in others",
                where=", ".join(s.files[0] for _, s in self.sources),
                cure="write one type, or set events.types",
            )
        return kinds.pop()

    def _one_id_type(self, s: Source, column: str) -> str:
        return id_type(self.con, s, column, self.spec.events.types.get(column))

    def _union(self, positioned: bool) -> str:
        parts = (self._select(name, s, positioned) for name, s in self.sources)
        return " UNION ALL ".join(parts)

    def _select(self, split: str, s: Source, positioned: bool) -> str:
        e = self.spec.events
        order = f"TRY_CAST({quote(e.order)} AS BIGINT)" if e.order else "0"
        where = ", _file, _row" if positioned else ""
        return f"""SELECT {id_sql(e.user, self.user_type)} AS user, {id_sql(e.item, self.item_type)} AS item,
            {time_sql(e, s) if e.time else order}::BIGINT AS time, {self._action()}::TINYINT AS action,
            {f"TRY_CAST({quote(e.weight)} AS FLOAT)" if e.weight else "1::FLOAT"} AS weight,
            {self._split(split)}::TINYINT AS split{where}
            FROM {s.positioned() if positioned else s.sql}"""

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

    def _numbered(self, positioned: bool) -> str:
        """The log with row numbers and the code of each row's first fault (0: none).

        Needs the tables ``user_ids(user, row)`` and ``item_ids(item, row, expires)``.
        """
        conditions = {
            "null_key": "e.user IS NULL OR e.item IS NULL",
            "bad_time": f"e.time IS NULL OR e.time NOT BETWEEN {_PLAUSIBLE_US[0]} AND {_PLAUSIBLE_US[1]}"
            if self.spec.events.time
            else "e.time IS NULL",
            "bad_weight": "e.weight IS NULL OR NOT isfinite(e.weight) OR e.weight < 0",
            "unknown_action": "e.action < 0",
            "unknown_split": "e.split < 0",
            "unknown_user": "u.row IS NULL",
            "unknown_item": "i.row IS NULL",
            "after_expiry": "e.time >= i.expires",
        }
        cases = " ".join(f"WHEN {conditions[name]} THEN {code}" for name, code in FAULT_CODES.items())
        log = f"({self._union(positioned=True)})" if positioned else "log"
        more = ", e.user, e.item, e._file, e._row" if positioned else ""
        return f"""SELECT coalesce(u.row, -1) AS user_row, coalesce(i.row, -1) AS item_row, coalesce(e.time, 0) AS time,
            e.action, coalesce(e.weight, 0) AS weight, e.split, (CASE {cases} ELSE 0 END)::TINYINT AS fault{more}
            FROM {log} e LEFT JOIN user_ids u ON e.user = u.user LEFT JOIN item_ids i ON e.item = i.item"""

    def sorted(self, rows: int = 1 << 20) -> Iterator[tuple[Events, NDArray[np.int8]]]:
        """Batches of (rows, fault codes), by (user, split, time, item, action)."""
        query = f"{self._numbered(False)} ORDER BY user_row, split, time, item_row, action"
        for batch in self.con.sql(query).to_arrow_reader(rows):
            columns = [batch.column(i).to_numpy(zero_copy_only=False) for i in range(7)]
            yield Events(*columns[:6]), columns[6]

    def reject(self, fault: str, folder: Path) -> tuple[str, int, object, object]:
        """Write all rows with this fault to ``folder/FAULT.parquet``; return file, row, user, item of the first."""
        query = f"SELECT * EXCLUDE (fault) FROM ({self._numbered(True)}) WHERE fault = {FAULT_CODES[fault]}"
        folder.mkdir(parents=True, exist_ok=True)
        path = literal(str(folder / f"{fault}.parquet"))
        self.con.execute(f"COPY ({query} ORDER BY _file, _row) TO {path} (FORMAT parquet)")
        first = self.con.execute(f"SELECT _file, _row, user, item FROM read_parquet({path}) LIMIT 1").fetchall()[0]
        return first[0], first[1], first[2], first[3]


def id_type(con: duckdb.DuckDBPyConnection, s: Source, column: str, declared: str | None = None) -> str:
    """``int64`` or ``string`` for an id column; text ids are integers only if every one reads back the same."""
    if declared:
        if declared not in ("int64", "string"):
            raise ConfigError(f"types: {column}: {declared}; ids are int64 or string")
        return declared
    kind = s.columns[column]
    if kind in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"):
        return "int64"
    if kind != "VARCHAR":
        raise DataError(
            f"id column {column!r} is {kind}; expected integers or strings",
            where=s.files[0],
            cure="write ids as 64-bit integers or as strings",
        )
    if not s.text:
        return "string"
    same = con.execute(
        f"SELECT bool_and(regexp_full_match({quote(column)}, '-?(0|[1-9][0-9]{{0,17}})')) FROM {s.sql}"
    ).fetchall()[0]
    return "int64" if same[0] else "string"


def id_sql(column: str, kind: str) -> str:
    """An id column in its agreed type."""
    return f"{quote(column)}::{'BIGINT' if kind == 'int64' else 'VARCHAR'}"


def time_sql(e: EventsSpec, s: Source) -> str:
    """Microseconds UTC of the configured time column; null where a value cannot be read."""
    assert e.time is not None
    return timestamp_sql(e.time.column, s, e.time.unit, e.time.timezone, "events.time")


def timestamp_sql(column: str, s: Source, unit: str | None, timezone: str | None, setting: str) -> str:
    """Microseconds UTC of any timestamp column.

    Raises:
        DataError: a number without a unit, or a naive timestamp without a time zone.
    """
    kind, name = s.columns[column], quote(column)
    if kind == "TIMESTAMP WITH TIME ZONE":
        return f"epoch_us({name})"
    if kind.startswith("TIMESTAMP") or kind == "DATE":
        if not timezone:
            raise DataError(
                f"column {column!r} is a naive {kind}; expected one that says which instant it means",
                where=s.files[0],
                cure=f"set {setting}.timezone (e.g. UTC or Europe/Berlin), or write it with a time zone",
            )
        return f"epoch_us(timezone({literal(timezone)}, {name}::TIMESTAMP))"
    if unit:
        return f"CAST(TRY_CAST({name} AS DOUBLE) * {_UNIT_US[unit]} AS BIGINT)" if kind in (
            "FLOAT", "DOUBLE", "VARCHAR") else f"{name}::BIGINT * {_UNIT_US[unit]}"  # fmt: skip
    if kind == "VARCHAR":
        aware = f"epoch_us(TRY_CAST({name} AS TIMESTAMPTZ))"
        naive = f"epoch_us(timezone({literal(timezone)}, TRY_CAST({name} AS TIMESTAMP)))" if timezone else "NULL"
        return f"CASE WHEN regexp_matches({name}, '{_OFFSET}') THEN {aware} ELSE {naive} END"
    raise DataError(
        f"column {column!r} is {kind}; a number needs its unit",
        where=s.files[0],
        cure=f"set {setting}.unit to s, ms or us, or use events.order for a plain order",
    )
