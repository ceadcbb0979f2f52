"""User and item tables: read, checked, ordered by id, with list columns gathered from long tables.

Row order is part of the format: users and items are numbered in the order of their ids, so that the
same data always give the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.events import id_sql, id_type, timestamp_sql
from data.sources import Source, open_source, quote
from data.spec import EntitySpec, Limit
from towers.errors import DataError
from towers.features import Kind
from towers.features import columns as c

_NUMERIC = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
            "FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN", "HUGEINT")  # fmt: skip


@dataclass
class Entities:
    """One side's raw table.

    Attributes:
        ids: ``[n]`` external ids, sorted.
        table: raw feature columns and attributes, in row order.
        posted, expires: ``[n]`` int64 microseconds (null where open), or None.
        group: ``[n]`` int64 codes of repost families, or None.
        counts: values set aside, by fault.
    """

    ids: pa.Array
    table: pa.Table
    posted: pa.Array | None = None
    expires: pa.Array | None = None
    group: pa.Array | None = None
    counts: Mapping[str, int] | None = None


def from_log(con: duckdb.DuckDBPyConnection, side: str) -> Entities:
    """The distinct ids of the log, where a side has no table of its own."""
    ids = con.sql(f"SELECT DISTINCT {side} AS id FROM log WHERE {side} IS NOT NULL ORDER BY id").to_arrow_table()["id"]
    ids = ids.combine_chunks()
    return Entities(ids, pa.table({c.USER if side == "user" else c.ITEM: ids}), counts={})


def read(
    con: duckdb.DuckDBPyConnection,
    spec: EntitySpec,
    base: str,
    side: str,
    kind: str,
    faults: Mapping[str, Limit],
    timezone: str | None = None,
) -> Entities:
    """A side's table, checked.

    Args:
        con: a connection.
        spec: the ``users`` or ``items`` block.
        base: the dataset's ``source``.
        side: ``user`` or ``item``.
        kind: type of this side's ids in the log.
        faults: what to do with NaN and infinite features.
        timezone: what naive posted and expires mean.

    Raises:
        DataError: null or duplicate keys, missing or retyped columns, too many bad numbers.
    """
    s = open_source(con, spec.files, base, spec.types)
    here = f"{side}s.key"
    s.require([spec.key], here)
    own = id_type(con, s, spec.key, spec.types.get(spec.key))
    if own != kind:
        raise DataError(
            f"{side} ids are {own} here and {kind} in the log",
            where=f"{s.files[0]}, column {spec.key!r}",
            cure=f"write one type, or set types of {side}s and events for CSV",
        )
    _check_keys(con, s, spec.key, side)
    lists = dict(spec.lists)
    columns = _columns(spec, lists)
    s.require(columns, f"{side}s.features or {side}s.attributes")
    select = [f"{id_sql(spec.key, kind)} AS {quote('_id')}"]
    select += [f"{_value_sql(s, name, spec, side)} AS {quote(name)}" for name in columns]
    for field in ("posted", "expires"):
        if column := getattr(spec, field):
            s.require([column], f"{side}s.{field}")
            select.append(f"{timestamp_sql(column, s, None, timezone, 'events.time')} AS {quote('_' + field)}")
    if spec.group:
        s.require([spec.group], f"{side}s.group")
        s.require([spec.group], f"{side}s.group")
        select.append(f"{quote(spec.group)} AS {quote('_group')}")
    table = con.sql(f"SELECT {', '.join(select)} FROM {s.sql} ORDER BY 1").to_arrow_table()
    ids = table["_id"].combine_chunks()
    for name, long in lists.items():
        ls = open_source(con, long.files, base, {})
        ls.require([long.key, long.value], f"{side}s.lists.{name}")
        table = table.append_column(name, _gather_list(con, ids, ls, long.key, long.value, kind))
    table, counts = _check_numbers(table, spec, faults, s.files[0])

    def special(name: str) -> pa.Array | None:
        return table[name].combine_chunks() if name in table.column_names else None

    out = table.drop_columns([n for n in ("_posted", "_expires", "_group") if n in table.column_names])
    name = c.USER if side == "user" else c.ITEM
    out = out.drop_columns(["_id"])
    out = out.append_column(name, ids) if name not in out.column_names else out
    return Entities(ids, out, special("_posted"), special("_expires"), _group_codes(special("_group")), counts)


def _group_codes(group: pa.Array | None) -> pa.Array | None:
    """Int64 codes; an item without a group is a group of its own."""
    if group is None:
        return None
    codes = pc.fill_null(group.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return pa.array(np.where(codes < 0, len(codes) + np.arange(len(codes)), codes))


def _columns(spec: EntitySpec, lists: Mapping[str, object]) -> list[str]:
    wanted = [col for f in spec.features for col in f.columns] + list(spec.attributes)
    return [col for col in dict.fromkeys(wanted) if col not in lists]


def _value_sql(s: Source, name: str, spec: EntitySpec, side: str) -> str:
    """A raw column; text of an untyped format becomes what its feature needs."""
    kinds = {f.kind for f in spec.features if name in f.columns}
    q = quote(name)
    if s.text and Kind.NUMERIC in kinds:
        return f"{q}::DOUBLE"
    if s.columns[name] == "VARCHAR" and kinds & {Kind.CATEGORICAL_LIST, Kind.VECTOR} and spec.separator:
        inner = "DOUBLE[]" if Kind.VECTOR in kinds else "VARCHAR[]"
        sep = spec.separator.replace("'", "''")
        return f"CASE WHEN {q} IS NULL OR {q} = '' THEN NULL ELSE string_split({q}, '{sep}')::{inner} END"
    if Kind.NUMERIC in kinds and not s.columns[name].startswith(_NUMERIC):
        raise DataError(
            f"column {name!r} is {s.columns[name]}; feature kind numeric needs numbers",
            where=s.files[0],
            cure=f"correct the kind in {side}s.features, or write numbers",
        )
    return q


def _check_keys(con: duckdb.DuckDBPyConnection, s: Source, key: str, side: str) -> None:
    k = quote(key)
    found = con.execute(
        f"SELECT count(*) - count({k}), count({k}) - count(DISTINCT {k}), count(*) FROM {s.sql}"
    ).fetchall()[0]
    nulls, twice, rows = found
    if not rows:
        raise DataError(f"the {side} table is empty", where=s.files[0], cure=f"correct {side}s.files")
    if nulls or twice:
        condition = f"{k} IS NULL" if nulls else f"{k} IN (SELECT {k} FROM {s.sql} GROUP BY 1 HAVING count(*) > 1)"
        row = con.execute(f"SELECT _file, _row, {k} FROM {s.positioned()} WHERE {condition} LIMIT 1").fetchall()[0]
        what = f"{nulls} null keys" if nulls else f"{twice} duplicate keys, the first {row[2]!r}"
        raise DataError(what, where=f"{row[0]}, column {key!r}, row {row[1]}", cure=f"keep one row for each {side}")


def _gather_list(
    con: duckdb.DuckDBPyConnection, ids: pa.Array, s: Source, key: str, value: str, kind: str
) -> pa.ListArray:
    """Values of a long table as one list for each id, in the long table's order."""
    con.register("_ids", pa.table({"id": ids, "row": np.arange(len(ids))}))
    pairs = con.sql(
        f"""SELECT i.row, v.value FROM (
            SELECT {id_sql(key, kind)} AS id, {quote(value)} AS value, row_number() OVER () AS n FROM {s.sql}
        ) v JOIN _ids i ON v.id = i.id WHERE v.value IS NOT NULL ORDER BY i.row, v.n"""
    ).to_arrow_table()
    con.unregister("_ids")
    lengths = np.bincount(pairs["row"].to_numpy(), minlength=len(ids))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pairs["value"].combine_chunks())


def _check_numbers(
    table: pa.Table, spec: EntitySpec, faults: Mapping[str, Limit], file: str
) -> tuple[pa.Table, dict[str, int]]:
    """Set NaN and infinite numbers aside (as missing), or stop, as the policy says."""
    counts = {"nan_feature": 0, "infinite_feature": 0}
    for f in spec.features:
        if f.kind is not Kind.NUMERIC or not pa.types.is_floating(table[f.columns[0]].type):
            continue
        name = f.columns[0]
        column = table[name].combine_chunks()
        for fault, bad in (("nan_feature", pc.is_nan(column)), ("infinite_feature", pc.is_inf(column))):
            bad = pc.fill_null(bad, False)
            n = int(pc.sum(bad).as_py() or 0)
            limit = faults[fault]
            if n and (limit.policy == "stop" or n > limit.limit * len(column)):
                row = int(np.flatnonzero(bad.to_numpy(zero_copy_only=False))[0])
                raise DataError(
                    f"{n} {'NaN' if fault == 'nan_feature' else 'infinite'} values",
                    where=f"{file}, column {name!r}, {table['_id'][row].as_py()!r}",
                    cure=f"write null for unknown numbers, or set faults.{fault}: {{policy: set_aside, limit: 1.0}}",
                )
            counts[fault] += n
            column = pc.if_else(bad, pa.scalar(None, column.type), column)
        table = table.set_column(table.column_names.index(name), name, column)
    return table, counts
