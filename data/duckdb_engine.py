"""Preparation on this machine: DuckDB scans, joins, sorts and spills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data import contexts, splits
from data.consumer import Consumer, Repeated, Rules
from data.engines import Consumed, Progress, described
from data.entities import Entities
from data.events import Events, Log, as_events
from data.numbering import Numbering
from data.splits import Hashes
from data.writer import Parts

_BATCH = 1 << 20  # rows


class DuckDBEngine:
    """One connection for everything.

    Attributes:
        numbering: rows of users, where users are the integer ids of the log. Else None, and the table ``user_ids``
            numbers them: strings sort so much slower than integers that a join is the cheaper way, and users of older
            generations have their rows already.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, log: Log, numbered_before: bool = False) -> None:
        self._con, self._log = con, log
        plain = log.user_type == "int64" and not log.spec.users.files and not numbered_before
        self.numbering = Numbering() if plain else None
        con.execute(f"CREATE OR REPLACE TEMP VIEW log AS {log.union()}")

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """See ``Engine``."""
        return list(self._con.execute(sql).fetchall())

    def ids(self, side: str) -> pa.Array:
        """See ``Engine``."""
        query = f"SELECT DISTINCT {side} AS id FROM log WHERE {side} IS NOT NULL ORDER BY id"
        return self._con.sql(query).to_arrow_table()["id"].combine_chunks()

    def contexts(self) -> Entities:
        """See ``Engine``."""
        return contexts.number(self._con, self._log.spec.context)

    def run(self, rules: Rules, users: Entities | Numbering, out: Path, repeated: Repeated, tell: Progress) -> Consumed:
        """See ``Engine``."""

        def hashes(first: int, last: int) -> Hashes:
            return splits.id_hashes(self._con, users.ids.slice(first, last - first + 1))

        consumer = Consumer(rules, out, hashes, repeated)
        for rows in consumer.run(self._sorted()):
            tell("writing examples and histories", 0.1 + 0.7 * min(1.0, rows / max(rows + 1, 1 << 22)))
        return Consumed(consumer.tally, consumer.examples.files | consumer.history.files)

    def _sorted(self) -> Iterator[tuple[Events, NDArray[np.int8]]]:
        """Batches of the numbered log, in the order of ``Log.columns``."""
        columns = self._log.columns(numbered=self.numbering is None)
        order = ", ".join(f"{i} DESC" if name == "weight" else f"{i} NULLS LAST" for i, name in enumerate(columns, 1))
        query = f"{self._log.numbered(columns, users=self.numbering is None)} ORDER BY {order}"
        for batch in self._con.sql(query).to_arrow_reader(_BATCH):
            yield as_events(batch, None if self.numbering is None else self.numbering.rows(batch["user"]))

    def reject(self, fault: str, folder: Path) -> str:
        """See ``Engine``."""
        query = self._log.rejects(fault, f"({self._log.union(positioned=True)})", users=self.numbering is None)
        return write_rejected(self._con, self._log, fault, query, folder)

    def where_repeated(self, user: object, item: object) -> str:
        """See ``Engine``."""
        log = f"({self._log.union(positioned=True)})"
        query = f"SELECT _file, _row FROM {log} WHERE user = ? AND item = ? ORDER BY ALL LIMIT 5"
        return described(self._con.execute(query, [user, item]).fetchall(), user, item)


def write_rejected(con: duckdb.DuckDBPyConnection, log: Log, fault: str, query: str, folder: Path) -> str:
    """Write what ``Log.rejects`` finds, by file and row, to ``folder/FAULT.parquet``; say where the first one is."""
    parts, where = Parts(folder.parent, folder.name, name=fault), ""
    for batch in con.sql(f"{query} ORDER BY file, row").to_arrow_reader(_BATCH):
        where = where or log.blame(fault, batch.slice(0, 1).to_pylist()[0])
        parts.write(np.zeros(len(batch), np.int32), pa.Table.from_batches([batch]))
    parts.close()
    return where
