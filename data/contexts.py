"""What belongs to neither user nor item: the text of a query, the place from which it was asked.

A context is the combination of all context columns of a log row. The distinct ones are numbered and encoded once,
into ``contexts.parquet``; examples and batches carry row numbers, as they do for users and items. Row 0 is the
context in which nothing is given, so that a model with a query tower also answers users who have typed nothing.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa

from data.entities import Entities, check_parsed, value_sql
from data.sources import Source, quote
from data.spec import ContextSpec

_PREFIX = "context."  # of the log's context columns, which may be called "user" or "time" in the files


def select_sql(con: duckdb.DuckDBPyConnection, s: Source, spec: ContextSpec) -> str:
    """The context columns of one file of the log, to be appended to a list of expressions.

    Raises:
        DataError: a column is missing, of the wrong type, or holds values that cannot be read.
    """
    s.require(list(spec.columns), "context.features")
    out = ""
    for name in spec.columns:
        sql = value_sql(s, name, spec, "context")
        if sql != quote(name):
            check_parsed(con, s, name, sql, "numbers")
        out += f", {sql} AS {quote(_PREFIX + name)}"
    return out


def number(con: duckdb.DuckDBPyConnection, spec: ContextSpec) -> Entities:
    """The distinct contexts of the view ``log``, in the order of their values; also as the table ``context_ids``."""
    names = [quote(_PREFIX + name) for name in spec.columns]
    every, nothing = ", ".join(names), " AND ".join(f"{n} IS NULL" for n in names)
    kinds = ", ".join(f"NULL AS {n}" for n in names)
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE context_ids AS
        SELECT {every}, (row_number() OVER (ORDER BY {every}))::INTEGER AS row
        FROM (SELECT DISTINCT {every} FROM log WHERE NOT ({nothing}))
        UNION ALL BY NAME SELECT {kinds}, 0::INTEGER AS row"""
    )
    table = con.sql("SELECT * FROM context_ids ORDER BY row").to_arrow_table()
    raw = table.drop_columns(["row"]).rename_columns(list(spec.columns))
    return Entities(table["row"].combine_chunks().cast(pa.int32()), raw, counts={})


def join_sql(spec: ContextSpec, log: str, contexts: str) -> str:
    """The condition under which a row of the log has a context."""
    names = [quote(_PREFIX + name) for name in spec.columns]
    return " AND ".join(f"{log}.{n} IS NOT DISTINCT FROM {contexts}.{n}" for n in names)
