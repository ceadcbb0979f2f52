"""Preparation on Spark, for logs that fit no machine: the same plan, the same files.

::

    files ──executors: DuckDB reads the values──▶ canonical rows ──join row numbers, sort by user──▶ whole users
                                                                     ──executors: numpy──▶ parts, counts

Spark moves rows: it distributes, joins, shuffles and sorts. It interprets no value and splits no user, so that what it
writes is what DuckDB writes, byte for byte. Users, items and tasks are read by the driver, as on one machine.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data import contexts
from data.consumer import Repeated, Rules
from data.duckdb_engine import write_rejected
from data.engines import Consumed, Progress, described
from data.entities import Entities
from data.events import Events, Log
from data.files import File
from data.numbering import Numbering
from data.sources import literal, quote
from data.spark_tasks import Scan, Write, failure
from data.tally import Tally
from data.writer import sha256
from towers.errors import ConfigError

try:
    from pyspark import StorageLevel
    from pyspark.errors import PySparkException
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql import functions as f
except ImportError as e:
    raise ConfigError("data.engine=spark needs PySpark: pip install 'towers[spark]'; and Java, see docs/data.md") from e

# What differs from Spark's own defaults; `data.spark` overrides it.
_DEFAULTS = {
    "spark.driver.maxResultSize": "0",  # ids of the log come to the driver
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(1 << 16),
}
# What the plan relies on: words of SQL, names in double quotes, and no shift of times.
_NEEDED = {
    "spark.sql.ansi.enabled": "true",
    "spark.sql.ansi.doubleQuotedIdentifiers": "true",
    "spark.sql.session.timeZone": "UTC",
}
# DuckDB's types as Spark has them.
_TYPES = {
    "BOOLEAN": "boolean", "TINYINT": "tinyint", "SMALLINT": "smallint", "INTEGER": "int", "BIGINT": "bigint",
    "FLOAT": "float", "DOUBLE": "double", "VARCHAR": "string", "DATE": "date", "TIMESTAMP": "timestamp_ntz",
    "TIMESTAMP WITH TIME ZONE": "timestamp",
}  # fmt: skip
# Those that Spark lacks travel as wider ones, and are cast back.
_WIDER = {"UTINYINT": "SMALLINT", "USMALLINT": "INTEGER", "UINTEGER": "BIGINT", "UBIGINT": "DECIMAL(20,0)",
          "HUGEINT": "DECIMAL(38,0)"}  # fmt: skip


@contextmanager
def spark_engine(con: duckdb.DuckDBPyConnection, log: Log, work: Path) -> Iterator[SparkEngine]:
    """An engine on the active session, or on one that is started and stopped.

    Args:
        con: the driver's DuckDB.
        log: the log.
        work: folder that driver and executors share, as they share the one of the dataset.

    Raises:
        ConfigError: Spark cannot be started.
        DataError: an executor met a file that cannot be read.
    """
    # mapInArrow asks for pandas, of whose version it warns, and does not use it
    warnings.filterwarnings("ignore", "PySpark does not yet", FutureWarning)
    running = SparkSession.getActiveSession()
    session = running or started(log.spec.spark)
    own = session.newSession()  # settings and views of its own
    for name, value in _NEEDED.items():
        own.conf.set(name, value)
    session.sparkContext.addPyFile(str(_packed(work)))
    engine = SparkEngine(own, con, log, work.absolute())
    try:
        yield engine
    except PySparkException as e:
        if stopped := failure(work):
            raise stopped from e
        raise
    finally:
        engine.close()
        if running is None:
            session.stop()


def started(settings: Mapping[str, str]) -> SparkSession:
    """A session with these settings (see ``DatasetSpec.spark``), or the one that runs.

    Raises:
        ConfigError: Spark cannot be started.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("towers prepare")
    for name, value in {**_DEFAULTS, **{f"spark.{name}": value for name, value in settings.items()}}.items():
        builder = builder.config(name, value)
    try:
        session = builder.getOrCreate()
    except (PySparkException, OSError) as e:
        raise ConfigError(f"Spark cannot be started: {e}; it needs Java, and what data.spark says must be right") from e
    session.sparkContext.setLogLevel("ERROR")
    return session


def _packed(work: Path) -> Path:
    """Our code, for the executors."""
    path = work / "towers.zip"
    rooms = {"towers": Path(inspect.getfile(ConfigError)).parent, "data": Path(__file__).parent}
    with zipfile.ZipFile(path, "w") as z:
        for name, folder in rooms.items():
            for file in sorted(folder.rglob("*.py")):
                z.write(file, f"{name}/{file.relative_to(folder).as_posix()}")
    return path.rename(work / f"towers-{sha256(path)[:12]}.zip")  # a session keeps the files of all preparations


class SparkEngine:
    """The log as views of a session; see ``data.engines.Engine``.

    Attributes:
        numbering: None: users are numbered by a table, since sorted rows arrive in many places at once.
    """

    numbering: Numbering | None = None

    def __init__(self, session: SparkSession, con: duckdb.DuckDBPyConnection, log: Log, work: Path) -> None:
        self._session, self._con, self._log, self._work = session, con, log, work
        self._types = {str(name): str(kind) for name, kind, *_ in con.execute(f"DESCRIBE {log.union()}").fetchall()}
        self._rows = self._scan(positioned=False).persist(StorageLevel.MEMORY_AND_DISK)
        self._rows.createOrReplaceTempView("log")

    def close(self) -> None:
        """Forget the rows."""
        self._rows.unpersist()

    def _scan(self, positioned: bool) -> DataFrame:
        """The log's canonical rows; a file is read by one task."""
        pieces = list(self._pieces(positioned))
        types = dict(self._types)
        if positioned:
            types |= {f"_{name}": "VARCHAR" for name in [*self._log.raw, "file"]} | {"_row": "BIGINT"}
        schema = ", ".join(f"`{name}` {spark_type(name, kind)}" for name, kind in types.items())
        values = ", ".join(f"{quote(name)}::{carrier(kind)} AS {quote(name)}" for name, kind in types.items())
        queries = [(f"SELECT {values} FROM ({query})", file) for query, file in pieces]
        numbers = self._session.range(0, len(queries), 1, numPartitions=len(queries))
        return numbers.mapInArrow(Scan(self._work, queries), schema)

    def _pieces(self, positioned: bool) -> Iterator[tuple[str, File]]:
        for split, s in self._log.sources:
            for file in s.files:
                yield self._log.select(split, replace(s, files=(file,)), positioned), file

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """See ``Engine``."""
        return [tuple(row) for row in self._session.sql(sql).collect()]

    def ids(self, side: str) -> pa.Array:
        """See ``Engine``."""
        query = f'SELECT DISTINCT "{side}" AS id FROM log WHERE "{side}" IS NOT NULL ORDER BY id'
        return self._session.sql(query).toArrow()["id"].combine_chunks()

    def contexts(self) -> Entities:
        """See ``Engine``."""
        names = contexts.names_sql(self._log.spec.context)
        found = self._session.sql(f"SELECT DISTINCT {', '.join(names)} FROM log").toArrow()
        back = ", ".join(f"{name}::{self._types[name.strip(chr(34))]} AS {name}" for name in names)
        self._con.register("_contexts", found)
        self._con.execute(f"CREATE OR REPLACE TEMP TABLE log_contexts AS SELECT {back} FROM _contexts")
        self._con.unregister("_contexts")
        return contexts.number(self._con, self._log.spec.context, "log_contexts")

    def run(self, rules: Rules, users: Entities | Numbering, out: Path, repeated: Repeated, tell: Progress) -> Consumed:
        """See ``Engine``."""
        self._share("user_ids", {})
        self._share("item_ids", {})
        if rules.contexts:
            self._share("context_ids", {n: k for n, k in self._types.items() if n.startswith(contexts.PREFIX)})
        columns = self._log.columns()
        order = [f.col(n).desc() if n == "weight" else f.col(n).asc_nulls_last() for n in columns]
        bucket = f.floor(f.col("user") / rules.users_per_bucket)
        buckets = max(1, -(-len(users.ids) // rules.users_per_bucket))
        numbered = self._session.sql(self._log.numbered(columns))
        whole_users = numbered.repartition(buckets, bucket).sortWithinPartitions(*order)
        tell("writing examples and histories", 0.2)
        done = whole_users.mapInArrow(Write(self._work, rules), "folder string, files string").toArrow().to_pylist()
        tally = Tally(np.zeros(len(rules.group), np.int64), np.zeros(rules.contexts, np.int64))
        files: dict[str, int] = {}
        for task in done:
            tally.add(Tally.load(Path(task["folder"]) / "tally.npz"))
            for name, rows in json.loads(task["files"]).items():
                (out / name).parent.mkdir(exist_ok=True)
                (Path(task["folder"]) / name).rename(out / name)
                files[name] = rows
        self._set_aside([Path(task["folder"]) for task in done], repeated)
        return Consumed(tally, files)

    def _share(self, name: str, kinds: Mapping[str, str]) -> None:
        """A table of row numbers, for the executors; ``kinds`` are the types of columns that may need a carrier."""
        path = self._work / f"{name}.parquet"
        casts = ", ".join(f"{quote(n)}::{carrier(kind)} AS {quote(n)}" for n, kind in kinds.items())
        self._con.execute(
            f"COPY (SELECT * {f'REPLACE ({casts})' if casts else ''} FROM {name}) TO {literal(str(path))}"
        )
        self._session.read.parquet(path.as_uri()).createOrReplaceTempView(name)

    def _set_aside(self, tasks: Sequence[Path], repeated: Repeated) -> None:
        """Repeated rows of all tasks, by user."""
        for path in sorted((p for task in tasks for p in task.glob("repeated/*")), key=lambda p: p.name):
            for batch in pq.ParquetFile(path).iter_batches():
                repeated(Events(**{n: batch[n].to_numpy(zero_copy_only=False) for n in batch.schema.names}))

    def reject(self, fault: str, folder: Path) -> str:
        """See ``Engine``."""
        self._scan(positioned=True).createOrReplaceTempView("positioned_log")
        path = self._work / f"rejected-{fault}"
        self._session.sql(self._log.rejects(fault, "positioned_log")).write.parquet(path.as_uri())
        query = f"SELECT * FROM read_parquet({literal(f'{path}/*.parquet')})"
        return write_rejected(self._con, self._log, fault, query, folder)

    def where_repeated(self, user: object, item: object) -> str:
        """See ``Engine``."""
        found = self._scan(positioned=True).filter((f.col("user") == f.lit(user)) & (f.col("item") == f.lit(item)))
        places = found.select("_file", "_row").orderBy("_file", "_row").limit(5).collect()
        return described([tuple(row) for row in places], user, item)


def carrier(kind: str) -> str:
    """The DuckDB type as which values of a DuckDB type travel through Spark."""
    if element := re.fullmatch(r"(.+)\[\d*\]", kind):
        return f"{carrier(element[1])}[]"
    return _WIDER.get(kind, kind)


def spark_type(name: str, kind: str) -> str:
    """Spark's name for a DuckDB type.

    Raises:
        ConfigError: Spark has none.
    """
    if element := re.fullmatch(r"(.+)\[\d*\]", kind):
        return f"array<{spark_type(name, element[1])}>"
    wide = carrier(kind)
    if wide.startswith("DECIMAL"):
        return wide.lower()
    if wide not in _TYPES:
        raise ConfigError(
            f"column {name!r} is {kind}, which Spark does not know; write text, or set data.engine=duckdb"
        )
    return _TYPES[wide]
