"""A table on disk gives its columns one at a time, in memory or mapped, and both are what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.entity_table import EntityTable


def written(path: Path, n: int) -> EntityTable:
    numbers = np.random.default_rng(0).integers(0, 99, (n, 3), np.int32)
    columns = {
        "words": pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), 3),
        "pay": pa.array(numbers[:, 0].astype(np.float32)),
        "name": pa.array([f"job {i}" for i in range(n)]),
    }
    pq.write_table(pa.table(columns), path / "items.parquet", row_group_size=100_000)
    return EntityTable(path / "items.parquet")


@pytest.mark.parametrize("n", [0, 1, 150_000])
def test_mapped_arrays_are_those_in_memory(tmp_path: Path, n: int) -> None:
    table = written(tmp_path, n)
    assert (len(table), table.column_names) == (n, ["words", "pay", "name"])
    for name, shape in {"words": (n, 3), "pay": (n,)}.items():
        here, there = table.array(name), table.mapped(name, tmp_path / name)
        assert here.shape == there.shape == shape
        assert here.dtype == there.dtype
        assert np.array_equal(here, there)
        assert there.flags.writeable  # torch wants to own what it reads; the file stays as it is
    assert isinstance(there, np.memmap) == bool(n)


def test_columns_come_in_the_order_asked_for(tmp_path: Path) -> None:
    table = written(tmp_path, 4)
    assert table.select(["name", "pay"]).column_names == ["name", "pay"]
    assert table["name"].to_pylist() == [f"job {i}" for i in range(4)]
    assert table.select([]).num_rows == 4  # bundles count rows of a table without columns too


def test_no_file_is_no_rows() -> None:
    table = EntityTable(None)
    assert (len(table), table.column_names, table.select([]).num_rows) == (0, [], 0)
