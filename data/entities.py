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

from data.blocks import ContextSpec, EntitySpec, Limit, ListSpec, TimeSpec
from data.sources import Source, literal, open_source, quote
from data.values import id_sql, id_type, timestamp_sql
from towers.errors import DataError
from towers.features import Feature, Kind
from towers.features import columns as c

_NUMERIC = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
            "FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN", "HUGEINT")  # fmt: skip
_LISTS = {Kind.CATEGORICAL_LIST, Kind.VECTOR}


@dataclass
class Entities:
    """One side's raw table.

    Attributes:
        ids: ``[n]`` external ids, sorted.
        table: raw feature columns and attributes, in row order.
        posted, expires: ``[n]`` int64 microseconds (null where open), or None.
        group: ``[n]`` int64 codes of repost families, or None.
        family: ``[n]`` the family's value as text, or the item's own id where it has none; None without groups.
        counts: values set aside, by fault.
    """

    ids: pa.Array
    table: pa.Table
    posted: pa.Array | None = None
    expires: pa.Array | None = None
    group: pa.Array | None = None
    family: pa.Array | None = None
    counts: Mapping[str, int] | None = None


def only_ids(side: str, ids: pa.Array) -> Entities:
    """Users or items of whom nothing else is known."""
    return Entities(ids, pa.table({c.USER if side == "user" else c.ITEM: ids}), counts={})


def read(
    con: duckdb.DuckDBPyConnection,
    spec: EntitySpec,
    base: str,
    side: str,
    kind: str,
    faults: Mapping[str, Limit],
    time: TimeSpec | None = None,
) -> Entities:
    """A side's table, checked.

    Args:
        con: a connection.
        spec: the ``users`` or ``items`` block.
        base: the dataset's ``source``.
        side: ``user`` or ``item``.
        kind: type of this side's ids in the log.
        faults: what to do with NaN and infinite features.
        time: the log's clock: what naive or numeric posted and expires mean.

    Raises:
        DataError: null or duplicate keys, missing or retyped columns, too many bad numbers.
    """
    s = open_source(con, spec.files, base)
    _check_key(con, s, spec, side, kind)
    lists = dict(spec.lists)
    columns = _columns(spec, lists)
    s.require(columns, f"{side}s.features or {side}s.attributes")
    select = {"_id": id_sql(spec.key, kind)} | {name: value_sql(s, name, spec, f"{side}s") for name in columns}
    parsed = [name for name in columns if select[name] != quote(name)]
    for field, column in (("posted", spec.posted), ("expires", spec.expires)):
        if column:
            s.require([column], f"{side}s.{field}")
            unit, zone = (time.unit, time.timezone) if time else (None, None)
            select[f"_{field}"] = timestamp_sql(column, s, unit, zone, "events.time")
            check_parsed(con, s, column, select[f"_{field}"], "a timestamp with an offset")
    for name in parsed:
        check_parsed(con, s, name, select[name], "numbers")
    for f in spec.features:
        if f.kind is Kind.VECTOR and f.columns[0] not in lists:
            _check_vectors(con, s, f, select[f.columns[0]])
    if spec.group:
        s.require([spec.group], f"{side}s.group")
        select["_group"] = quote(spec.group)
    values = ", ".join(f"{sql} AS {quote(name)}" for name, sql in select.items())
    table = con.sql(f"SELECT {values} FROM {s.sql} ORDER BY 1").to_arrow_table()
    ids = table["_id"].combine_chunks()
    for name, long in lists.items():
        table = table.append_column(name, _gather_list(con, ids, long, base, kind, f"{side}s.lists.{name}"))
    table, counts = _check_numbers(con, s, table, spec, faults)

    def special(name: str) -> pa.Array | None:
        return table[name].combine_chunks() if name in select else None

    own = c.USER if side == "user" else c.ITEM
    out = table.drop_columns([n for n in ("_id", "_posted", "_expires", "_group") if n in select])
    if own not in out.column_names:
        out = out.append_column(own, ids)
    group = special("_group")
    family = None if group is None else pc.coalesce(group.cast(pa.string()), ids.cast(pa.string()))
    return Entities(ids, out, special("_posted"), special("_expires"), _group_codes(group), family, counts)


def _group_codes(group: pa.Array | None) -> pa.Array | None:
    """Int64 codes; an item without a group is a group of its own."""
    if group is None:
        return None
    codes = pc.fill_null(group.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return pa.array(np.where(codes < 0, len(codes) + np.arange(len(codes)), codes))


def _columns(spec: EntitySpec, lists: Mapping[str, object]) -> list[str]:
    wanted = [col for f in spec.features for col in f.columns] + list(spec.attributes)
    return [col for col in dict.fromkeys(wanted) if col not in lists]


def value_sql(s: Source, name: str, spec: EntitySpec | ContextSpec, block: str) -> str:
    """A raw column; text of an untyped format becomes what its features need, null where it cannot.

    Args:
        s: where it is.
        name: the column.
        spec: the block of the data config whose features read it.
        block: that block's name, for errors.

    Raises:
        DataError: the column's type is not the one that its features need.
    """
    kinds = {f.kind for f in spec.features if name in f.columns}
    kind, q = s.columns[name], quote(name)
    is_list = kind.endswith("]")
    if Kind.NUMERIC in kinds and s.text:
        return f"TRY_CAST({q} AS DOUBLE)"
    if kinds & _LISTS and kind == "VARCHAR" and spec.separator:
        parts = f"[trim(x) FOR x IN string_split({q}, {literal(spec.separator)}) IF trim(x) <> '']"
        if Kind.VECTOR not in kinds:
            return f"CASE WHEN trim({q}) <> '' THEN {parts} END"
        numbers = f"TRY_CAST({parts} AS DOUBLE[])"
        return f"CASE WHEN trim({q}) <> '' AND list_count({numbers}) = len({numbers}) THEN {numbers} END"
    wrong = {
        "lists": bool(kinds & _LISTS) and not is_list,
        "numbers": Kind.NUMERIC in kinds and (is_list or not kind.startswith(_NUMERIC)),
        "strings": bool({Kind.TEXT, Kind.SENTENCE} & kinds) and kind != "VARCHAR",
        "single values": Kind.CATEGORICAL in kinds and (is_list or kind.startswith(("STRUCT", "MAP", "JSON"))),
    }
    if found := [what for what, bad in wrong.items() if bad]:
        use = ", ".join(f.name for f in spec.features if name in f.columns)
        raise DataError(
            f"column {name!r} is {kind}; feature {use} needs {found[0]}",
            where=f"{s.shown}, column {name!r}",
            cure=f"set {block}.separator to what stands between the values"
            if found[0] == "lists" and kind == "VARCHAR"
            else f"correct the kind in {block}.features, or write {found[0]}",
        )
    return q


def check_parsed(con: duckdb.DuckDBPyConnection, s: Source, column: str, sql: str, wanted: str) -> None:
    """Stop where a value that is there could not be read: it would pass for a missing one.

    Args:
        con: DuckDB's.
        s: the files.
        column: its name.
        sql: the value that was read of it; null where none could be.
        wanted: what was expected, in words.

    Raises:
        DataError: with the first such value and where it is.
    """
    there = f"{quote(column)} IS NOT NULL" + (f" AND trim({quote(column)}) <> ''" if s.text else "")
    bad = f"{there} AND ({sql}) IS NULL"
    n = con.execute(f"SELECT count(*) FROM {s.sql} WHERE {bad}").fetchall()[0][0]
    if n:
        where, value = s.locate(con, bad, column)
        raise DataError(
            f"{n} values that cannot be read, the first {value!r}; expected {wanted}",
            where=where,
            cure="correct them, or leave them empty for a missing value",
        )


def _check_vectors(con: duckdb.DuckDBPyConnection, s: Source, f: Feature, sql: str) -> None:
    """Stop at a vector of another length, or one with null, NaN or infinite entries."""
    finite = f"coalesce(list_bool_and([x IS NOT NULL AND isfinite(x::DOUBLE) FOR x IN {sql}]), TRUE)"
    bad = f"{sql} IS NOT NULL AND NOT (len({sql}) = {f.dim} AND {finite})"
    n = con.execute(f"SELECT count(*) FROM {s.sql} WHERE {bad}").fetchall()[0][0]
    if n:
        where, value = s.locate(con, bad, f.columns[0])
        raise DataError(
            f"{n} vectors that are not {f.dim} finite numbers, the first {value}",
            where=where,
            cure=f"correct them or dim of feature {f.name!r}, or write null for a missing vector",
        )


def _check_key(con: duckdb.DuckDBPyConnection, s: Source, spec: EntitySpec, side: str, kind: str) -> None:
    """A key of the log's type on every row, and no key twice."""
    s.require([spec.key], f"{side}s.key")
    k = quote(spec.key)
    nulls, twice, rows = con.execute(
        f"SELECT count(*) - count({k}), count({k}) - count(DISTINCT {k}), count(*) FROM {s.sql}"
    ).fetchall()[0]
    if not rows:
        raise DataError(f"the {side} table is empty", where=s.shown, cure=f"correct {side}s.files")
    if nulls or twice:
        condition = f"{k} IS NULL" if nulls else f"{k} IN (SELECT {k} FROM {s.sql} GROUP BY 1 HAVING count(*) > 1)"
        where, value = s.locate(con, condition, spec.key)
        what = f"{nulls} null keys" if nulls else f"{twice} duplicate keys, the first {value!r}"
        raise DataError(what, where=where, cure=f"keep one row for each {side}")
    declared = spec.types.get(spec.key)
    # text takes the type that the log has, where that changes nothing
    own = id_type(con, s, spec.key, declared or ("string" if s.text and kind == "string" else None))
    if own != kind:
        raise DataError(
            f"{side} ids are {own} here and {kind} in the log",
            where=f"{s.shown}, column {spec.key!r}",
            cure=f"write one type, or set types: {{…: string}} of events and {side}s",
        )


def _gather_list(
    con: duckdb.DuckDBPyConnection, ids: pa.Array, long: ListSpec, base: str, kind: str, setting: str
) -> pa.ListArray:
    """Values of a long table as one list for each id, in the long table's order; null keys and values are none."""
    s = open_source(con, long.files, base)
    s.require([long.key, long.value], setting)
    own = id_type(con, s, long.key, "string" if s.text and kind == "string" else None) or kind
    if own != kind:
        raise DataError(
            f"keys are {own} here; ids are {kind}", where=f"{s.shown}, column {long.key!r}", cure="write one type"
        )
    con.register("_ids", pa.table({"id": ids, "row": np.arange(len(ids))}))
    pairs = con.sql(
        f"""SELECT i.row, v.value FROM (
            SELECT {id_sql(long.key, kind)} AS id, {quote(long.value)} AS value, row_number() OVER () AS n FROM {s.sql}
        ) v JOIN _ids i ON v.id = i.id WHERE v.value IS NOT NULL ORDER BY i.row, v.n"""
    ).to_arrow_table()
    con.unregister("_ids")
    lengths = np.bincount(pairs["row"].to_numpy(), minlength=len(ids))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pairs["value"].combine_chunks())


def _check_numbers(
    con: duckdb.DuckDBPyConnection,
    s: Source,
    table: pa.Table,
    spec: EntitySpec,
    faults: Mapping[str, Limit],
) -> tuple[pa.Table, dict[str, int]]:
    """Set NaN and infinite numbers aside (as missing), or stop, as the policy says."""
    counts = {"nan_feature": 0, "infinite_feature": 0}
    numeric = dict.fromkeys(f.columns[0] for f in spec.features if f.kind is Kind.NUMERIC)
    for name in (n for n in numeric if pa.types.is_floating(table[n].type)):
        column = table[name].combine_chunks()
        for fault, bad in (("nan_feature", pc.is_nan(column)), ("infinite_feature", pc.is_inf(column))):
            bad = pc.fill_null(bad, False)
            n = int(pc.sum(bad).as_py() or 0)
            limit = faults[fault]
            if n and (limit.policy == "stop" or n > limit.limit * len(column)):
                key = str(table["_id"][int(np.flatnonzero(bad.to_numpy(zero_copy_only=False))[0])])
                where, value = s.locate(con, f"{quote(spec.key)}::VARCHAR = {literal(key)}", name)
                raise DataError(
                    f"{n} of {len(column)} values are {value}"
                    + (f", more than the limit of {limit.limit:.2%}" if limit.policy == "set_aside" else ""),
                    where=where,
                    cure=f"write null for unknown numbers, or set faults.{fault}: {{policy: set_aside, limit: 1.0}}",
                )
            counts[fault] += n
            column = pc.if_else(bad, pa.scalar(None, column.type), column)
        table = table.set_column(table.column_names.index(name), name, column)
    return table, counts
