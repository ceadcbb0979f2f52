"""What Spark's executors run: files → canonical rows, and sorted rows → parts. Nothing here imports PySpark.

Executors read with DuckDB and consume with numpy, as preparation on one machine does: hence the same values and the
same files. They need the libraries of ``towers[train]`` (not torch), and see the folder that the dataset is written to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow as pa

from data import splits
from data.consumer import Consumer, Rules
from data.damage import READ_ERRORS, unreadable
from data.events import Events, as_events
from data.files import File, register, unregister
from data.splits import Hashes
from data.writer import Parts
from towers.errors import DataError

_BATCH = 1 << 16  # rows
FAILURE = "failure.json"
Batches = Iterator[pa.RecordBatch]


@dataclass(frozen=True)
class Scan:
    """Reads files.

    Attributes:
        work: folder that driver and executors share.
        pieces: queries, with the file that each reads.
    """

    work: Path
    pieces: Sequence[tuple[str, File]]

    def __call__(self, numbers: Batches) -> Batches:
        """Rows of the pieces with these numbers."""
        con = duckdb.connect(config={"threads": 1})
        con.execute("SET TimeZone='UTC'; SET preserve_insertion_order=true")
        try:
            for batch in numbers:
                for number in batch.column(0).to_pylist():
                    yield from self._read(con, *self.pieces[number])
        finally:
            unregister(con)
            con.close()

    def _read(self, con: duckdb.DuckDBPyConnection, query: str, file: File) -> Batches:
        try:
            register(con, [file])
            yield from con.sql(query).to_arrow_reader(_BATCH)
        except READ_ERRORS as e:
            # an exception reaches the driver as text; the first of several wins
            error = unreadable(e, [file])
            path = self.work / f".{uuid4()}"
            path.write_text(json.dumps([error.found, error.where, error.cure]))
            path.replace(self.work / FAILURE)
            raise error from e


def failure(work: Path) -> DataError | None:
    """What stopped an executor, if it was a file."""
    path = work / FAILURE
    if not path.is_file():
        return None
    found, where, cure = json.loads(path.read_text())
    return DataError(found, where=where, cure=cure)


@dataclass(frozen=True)
class Write:
    """Consumes whole users, into a folder of its own: a task may run twice, and the driver takes one of the two.

    Attributes:
        work: folder that driver and executors share; ``user_ids.parquet`` lies in it.
        rules: what is done to users.
    """

    work: Path
    rules: Rules

    def __call__(self, batches: Batches) -> Batches:
        """One row: the folder, and its parts with their numbers of rows as JSON."""
        folder = self.work / f"task-{uuid4()}"
        folder.mkdir()
        repeated = Parts(folder, "repeated", users_per_bucket=self.rules.users_per_bucket)

        def set_aside(e: Events) -> None:
            repeated.write(e.user, pa.table({n: column for n, column in e.__dict__.items() if column is not None}))

        consumer = Consumer(self.rules, folder, self._hashes, set_aside)
        for _ in consumer.run(as_events(batch) for batch in batches):
            pass
        repeated.close()
        consumer.tally.save(folder / "tally.npz")
        files = json.dumps(consumer.examples.files | consumer.history.files)
        yield pa.RecordBatch.from_pydict({"folder": pa.array([str(folder)]), "files": pa.array([files])})

    def _hashes(self, first: int, last: int) -> Hashes:
        with duckdb.connect(config={"threads": 1}) as con:
            query = f"FROM read_parquet('{self.work / 'user_ids.parquet'}') WHERE row BETWEEN {first} AND {last}"
            return splits.id_hashes(con, con.sql(f'SELECT "user" {query} ORDER BY row').to_arrow_table()["user"])
