"""SQL for the values of a source in the types that all else works with: ids, plain orders and instants.

Nothing is cast in silence: what cannot be read becomes null, which the caller counts as a fault, and a column whose
type cannot mean what it is used for is an error.
"""

from __future__ import annotations

import duckdb

from data.blocks import EventsSpec
from data.sources import Source, literal, quote
from towers.errors import DataError

_UNIT_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
# An offset follows a time of day: the end of a bare date such as 2024-01-05 is none.
_OFFSET = r":[0-9]{2}([.,][0-9]+)? ?(Z|z|UTC|GMT|[+-][0-9]{2}(:?[0-9]{2})?)$"
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
_NUMBERS = ("FLOAT", "DOUBLE", "HUGEINT", "UHUGEINT")
_INT64_MAX = 2**63 - 1


def id_type(con: duckdb.DuckDBPyConnection, s: Source, column: str, declared: str | None = None) -> str | None:
    """``int64`` or ``string`` for an id column, or None where every value is null.

    Text ids of CSV files are integers only if every one of them, read as one, reads back the same:
    ``007`` or ``1.0`` never is.

    Raises:
        DataError: the column holds what cannot be an id, or what the declared type would change.
    """
    kind = s.columns[column]
    if kind not in _INTEGERS and kind != "VARCHAR":
        raise DataError(
            f"id column {column!r} is {kind}; expected integers or strings",
            where=f"{s.shown}, column {column!r}",
            cure="write ids as 64-bit integers or as strings",
        )
    if declared == "string":
        return "string"
    if kind == "UBIGINT" and _exists(con, s, f"{quote(column)} > {_INT64_MAX}"):
        where, value = s.locate(con, f"{quote(column)} > {_INT64_MAX}", column)
        raise DataError(
            f"id {value} does not fit into a signed 64-bit integer",
            where=where,
            cure=f"write such ids as strings, or set types: {{{column}: string}}",
        )
    if kind in _INTEGERS:
        return "int64"
    if not s.text and not declared:
        return "string"
    changed = f"TRY_CAST({quote(column)} AS BIGINT)::VARCHAR IS DISTINCT FROM {quote(column)}"
    changed = f"{quote(column)} IS NOT NULL AND {changed}"
    if not _exists(con, s, changed):
        return "int64" if _exists(con, s, f"{quote(column)} IS NOT NULL") else declared
    if declared:
        where, value = s.locate(con, changed, column)
        raise DataError(f"id {value!r} is no 64-bit integer", where=where, cure=f"set types: {{{column}: string}}")
    return "string"


def _exists(con: duckdb.DuckDBPyConnection, s: Source, condition: str) -> bool:
    return bool(con.execute(f"SELECT 1 FROM {s.sql} WHERE {condition} LIMIT 1").fetchall())


def id_sql(column: str, kind: str) -> str:
    """An id column in its agreed type."""
    return f"{quote(column)}::{'BIGINT' if kind == 'int64' else 'VARCHAR'}"


def order_sql(column: str, s: Source) -> str:
    """A plain order; null where a value is no integer.

    Raises:
        DataError: the column holds no numbers.
    """
    kind, name = s.columns[column], quote(column)
    if kind in _INTEGERS:
        return f"TRY_CAST({name} AS BIGINT)"
    if kind == "VARCHAR":
        return f"CASE WHEN regexp_full_match({name}, '[+-]?[0-9]+') THEN TRY_CAST({name} AS BIGINT) END"
    if kind in _NUMBERS or kind.startswith("DECIMAL"):
        return f"CASE WHEN TRY_CAST({name} AS BIGINT) = {name} THEN TRY_CAST({name} AS BIGINT) END"
    raise DataError(
        f"column {column!r} is {kind}; an order is an integer",
        where=f"{s.shown}, column {column!r}",
        cure="set events.time instead of events.order for a clock",
    )


def time_sql(e: EventsSpec, s: Source) -> str:
    """Microseconds UTC of the configured time column; null where a value cannot be read."""
    assert e.time is not None
    return timestamp_sql(e.time.column, s, e.time.unit, e.time.timezone, "events.time")


def timestamp_sql(column: str, s: Source, unit: str | None, timezone: str | None, setting: str) -> str:
    """Microseconds UTC of any timestamp column, in SQL; null where a value cannot be read.

    Args:
        column: its name.
        s: the files that have it.
        unit: of numbers since the epoch: ``s``, ``ms`` or ``us``.
        timezone: what a naive timestamp means.
        setting: the block that says both, for errors.

    Raises:
        DataError: a number without a unit, or a naive timestamp without a time zone.
    """
    kind, name = s.columns[column], quote(column)
    if kind in ("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS"):
        return f"epoch_us({name}::TIMESTAMPTZ)"
    if kind.startswith("TIMESTAMP") or kind == "DATE":
        if not timezone:
            raise DataError(
                f"column {column!r} is a naive {kind}; expected one that says which instant it means",
                where=f"{s.shown}, column {column!r}",
                cure=f"set {setting}.timezone (e.g. UTC or Europe/Berlin), or write it with a time zone",
            )
        return f"epoch_us(timezone({literal(timezone)}, {name}::TIMESTAMP))"
    number = _number_sql(name, kind, unit) if unit else "NULL"
    if kind == "VARCHAR":
        aware = f"epoch_us(TRY_CAST({name} AS TIMESTAMPTZ))"
        naive = f"epoch_us(timezone({literal(timezone)}, TRY_CAST({name} AS TIMESTAMP)))" if timezone else "NULL"
        return f"CASE WHEN regexp_matches({name}, '{_OFFSET}') THEN {aware} ELSE coalesce({number}, {naive}) END"
    if unit and (kind in (*_INTEGERS, *_NUMBERS) or kind.startswith("DECIMAL")):
        return number
    raise DataError(
        f"column {column!r} is {kind}; expected timestamps, ISO-8601 strings, or numbers with a unit",
        where=f"{s.shown}, column {column!r}",
        cure=f"set {setting}.unit to s, ms or us, or use events.order for a plain order",
    )


def _number_sql(name: str, kind: str, unit: str) -> str:
    """Microseconds of a number since the epoch, exact for integers; null for NaN, infinity and what would overflow."""
    number = name if kind in _INTEGERS else f"TRY_CAST({name} AS DOUBLE)"
    us = f"{name}::BIGINT * {_UNIT_US[unit]}" if kind in _INTEGERS else f"CAST({number} * {_UNIT_US[unit]} AS BIGINT)"
    most = _INT64_MAX // _UNIT_US[unit] - 1
    return f"CASE WHEN {number} BETWEEN {-most} AND {most} THEN {us} END"
