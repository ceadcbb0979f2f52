"""What belongs to neither user nor item: the text of a query, the place from which it was asked.

A context is the combination of all context columns of a log row. The distinct ones are numbered and encoded once,
into ``contexts.parquet``; examples and batches carry row numbers, as they do for users and items. Row 0 is the
context in which nothing is given, so that a model with a query tower also answers users who have typed nothing.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa

from data.blocks import ContextSpec
from data.entities import Entities, check_parsed, value_sql
from data.sources import Source, quote
from towers.features import Kind

PREFIX = "context."  # of the log's context columns, which may be called "user" or "time" in the files


def check(con: duckdb.DuckDBPyConnection, s: Source, spec: ContextSpec) -> None:
    """Stop unless the context columns are in the log, and can be read.

    Raises:
        DataError: a column is missing, of the wrong type, or holds values that cannot be read.
    """
    s.require(list(spec.columns), "context.features")
    for name in spec.columns:
        sql = value_sql(s, name, spec, "context")
        if sql != quote(name):
            check_parsed(con, s, name, sql, "numbers")


def select_sql(s: Source, spec: ContextSpec) -> str:
    """The context columns of some files of the log, to be appended to a list of expressions."""
    return "".join(f", {_one_zero(s, n, spec)} AS {quote(PREFIX + n)}" for n in spec.columns)


def _one_zero(s: Source, name: str, spec: ContextSpec) -> str:
    """A context column in which -0.0 is 0.0: they are one context, which engines would write in either way."""
    sql, kind = value_sql(s, name, spec, "context"), s.columns[name]
    if sql != quote(name):  # read from text: see ``value_sql``
        kinds = {f.kind for f in spec.features if name in f.columns}
        kind = "DOUBLE" if Kind.NUMERIC in kinds else "DOUBLE[]" if Kind.VECTOR in kinds else "VARCHAR[]"
    if not kind.startswith(("FLOAT", "DOUBLE")):
        return sql
    if kind.endswith("]"):
        return f"[CASE WHEN x = 0 THEN 0 ELSE x END FOR x IN {sql}]::{kind}"
    return f"CASE WHEN {sql} = 0 THEN 0 ELSE {sql} END::{kind}"


def names_sql(spec: ContextSpec) -> list[str]:
    """The context columns of the log, as SQL has them."""
    return [quote(PREFIX + name) for name in spec.columns]


def number(con: duckdb.DuckDBPyConnection, spec: ContextSpec, log: str = "log") -> Entities:
    """The distinct contexts of a log, in the order of their values; also as the table ``context_ids``.

    Args:
        con: a connection.
        spec: the ``context`` block.
        log: a table that holds every context at least once.
    """
    names = names_sql(spec)
    every, nothing = ", ".join(names), " AND ".join(f"{n} IS NULL" for n in names)
    kinds = ", ".join(f"NULL AS {n}" for n in names)
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE context_ids AS
        SELECT {every}, (row_number() OVER (ORDER BY {every}))::INTEGER AS row
        FROM (SELECT DISTINCT {every} FROM {log} WHERE NOT ({nothing}))
        UNION ALL BY NAME SELECT {kinds}, 0::INTEGER AS row"""
    )
    table = con.sql("SELECT * FROM context_ids ORDER BY row").to_arrow_table()
    raw = table.drop_columns(["row"]).rename_columns(list(spec.columns))
    return Entities(table["row"].combine_chunks().cast(pa.int32()), raw, counts={})


def join_sql(spec: ContextSpec, log: str, contexts: str) -> str:
    """The condition under which a row of the log has a context, in SQL.

    Args:
        spec: the ``context`` block.
        log: name of the table of the log.
        contexts: name of the table of contexts.
    """
    return " AND ".join(f"{log}.{n} IS NOT DISTINCT FROM {contexts}.{n}" for n in names_sql(spec))
