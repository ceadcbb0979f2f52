"""Small logs, written to disk in any format, and prepared."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from data.prepare import prepare
from data.prepared import PreparedDataset
from data.spec import DatasetSpec
from towers.errors import DataError

Rows = Sequence[Mapping[str, Any]]
HOUR = 3_600_000_000


def write(path: Path, rows: Rows | pa.Table) -> Path:
    """Rows as Parquet, CSV or JSON Lines, by the name's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows))
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(table, path)
        return path
    if name.endswith(".csv"):
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, sink)
        data = sink.getvalue().to_pybytes()
    else:
        data = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def spec(folder: Path, **config: Any) -> DatasetSpec:
    """A data config over ``folder``; only what a test is about has to be said."""
    config.setdefault("events", {"files": "log.parquet", "time": {"column": "time", "unit": "us"}})
    if config["events"].get("time") and "split" not in config:
        config["split"] = {"rule": "leave_last_out", "min_items": 2}
    return DatasetSpec.parse({"name": "small", "source": str(folder), **config})


def prepared(folder: Path, **config: Any) -> PreparedDataset:
    """The same, prepared."""
    return PreparedDataset(prepare(spec(folder, **config), folder / "out"))


def events(*rows: tuple[Any, ...], names: str = "user item time") -> list[dict[str, Any]]:
    """Rows from tuples."""
    return [dict(zip(names.split(), row, strict=True)) for row in rows]


# Two users whose last two jobs can be held out: the smallest log that leave_last_out accepts.
SMALL = events((1, 10, 1), (1, 11, 2), (1, 12, 3), (2, 10, 1), (2, 12, 2), (2, 13, 3))


def stopped(folder: Path, **config: Any) -> str:
    """The message with which ``prepare`` stops; it names a cure and leaves nothing behind."""
    with pytest.raises(DataError) as e:
        prepare(spec(folder, **config), folder / "out")
    assert e.value.where
    assert e.value.cure
    assert not (folder / "out").exists()
    assert not list(folder.glob(".*"))
    return str(e.value)


def log_of(**columns: str) -> dict[str, Any]:
    return {"files": "log.parquet", "time": {"column": "time", "unit": "us"}, **columns}
