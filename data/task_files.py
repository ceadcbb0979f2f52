"""The files that a task names, candidates and exclusions, as row numbers."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from data.blocks import CANDIDATES, TaskSpec
from data.events import Log
from data.sources import open_source
from data.spec import DatasetSpec
from data.values import id_sql, id_type
from towers.errors import DataError
from towers.features import columns as c


def write_task(
    con: duckdb.DuckDBPyConnection, out: Path, name: str, task: TaskSpec, spec: DatasetSpec, log: Log
) -> None:
    """Write ``tasks/NAME.candidates.parquet`` and ``tasks/NAME.exclude.parquet``, where the task names files.

    Args:
        con: with the tables ``user_ids`` and ``item_ids``.
        out: folder of the dataset.
        name: of the task.
        task: its declaration.
        spec: the data config.
        log: whose ids and column names the files share.

    Raises:
        DataError: a file lacks a column, or names ids that the dataset lacks.
    """
    (out / "tasks").mkdir(exist_ok=True)
    for what, path, sides in (
        ("candidates", task.candidates, (c.USER if task.retrieve == "users" else c.ITEM,)),
        ("exclude", task.exclude, (c.USER, c.ITEM)),
    ):
        if isinstance(path, str) and path not in CANDIDATES:
            rows = _rows_of(con, path, sides, spec, log, f"tasks.{name}.{what}")
            pq.write_table(rows, out / "tasks" / f"{name}.{what}.parquet")


def _rows_of(
    con: duckdb.DuckDBPyConnection, path: str, sides: tuple[str, ...], spec: DatasetSpec, log: Log, setting: str
) -> pa.Table:
    """The distinct rows of a file of ids, as sorted row numbers; columns are named as in the log, or user and item."""
    s = open_source(con, [path], spec.source)
    kinds = {c.USER: log.user_type, c.ITEM: log.item_type}
    named = {c.USER: spec.events.user, c.ITEM: spec.events.item}
    columns = {side: named[side] if named[side] in s.columns else side for side in sides}
    s.require(list(columns.values()), f"{setting} (expected columns {[named[side] for side in sides]})")
    for side, column in columns.items():
        text = "string" if s.text and kinds[side] == "string" else None
        if (own := id_type(con, s, column, text) or kinds[side]) != kinds[side]:
            raise DataError(
                f"{side} ids are {own} here and {kinds[side]} in the log",
                where=f"{s.shown}, column {column!r}",
                cure=f"write one type in the file of {setting}",
            )
        known = f"{id_sql(column, kinds[side])} IN (SELECT {side}_ids.{side} FROM {side}_ids)"
        unknown = f"({known}) IS NOT TRUE"
        n = con.execute(f"SELECT count(*) FROM {s.sql} WHERE {unknown}").fetchall()[0][0]
        if n:
            where, value = s.locate(con, unknown, column)
            raise DataError(
                f"{n} {side}s that the dataset lacks, the first {value!r}", where=where, cure=f"correct {setting}"
            )
    ids = ", ".join(f"{id_sql(column, kinds[side])} AS {side}" for side, column in columns.items())
    joins = " ".join(f"JOIN {side}_ids ON {side}_ids.{side} = t.{side}" for side in sides)
    rows = ", ".join(f"{side}_ids.row::BIGINT AS {side}_row" for side in sides)
    return con.sql(f"SELECT DISTINCT {rows} FROM (SELECT {ids} FROM {s.sql}) t {joins} ORDER BY ALL").to_arrow_table()
