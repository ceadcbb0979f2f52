"""Spark prepares what DuckDB prepares, byte for byte: the same plan, the same reader, the same consumer of users."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.fingerprint import is_current
from data.prepare import prepare
from data.prepared import PreparedDataset
from tests.data.test_prepare import everything
from tests.data.worlds import SMALL, events, spec, write
from towers.errors import ConfigError, DataError

try:
    from pyspark.sql import SparkSession
except ImportError:
    SparkSession = None  # type: ignore[assignment,misc]
needs_spark = pytest.mark.skipif(
    SparkSession is None or shutil.which("java") is None, reason="needs Java and PySpark: pip install 'towers[spark]'"
)
# One core and little ceremony: what is tested is what Spark computes, not how fast it starts.
SETTINGS = {
    "master": "local[1]",
    "ui": {"enabled": False},
    "driver": {"extraJavaOptions": "-XX:TieredStopAtLevel=1 -Xss4m"},
    "sql": {"shuffle": {"partitions": 3}, "codegen": {"wholeStage": False}},
}


@pytest.fixture(scope="module")
def _session() -> Iterator[None]:
    """A session that preparations share, as a notebook of a cluster has one."""
    from data.spark_engine import started
    from data.spec import DatasetSpec

    settings = DatasetSpec.parse({"name": "x", "events": {"files": "x"}, "split": {"rule": "cold_items"},
                                  "spark": SETTINGS}).spark  # fmt: skip
    session = started(settings)
    yield
    session.stop()


def both(folder: Path, **config: Any) -> PreparedDataset:
    """Prepared on both engines, and found equal in every byte."""
    one = prepare(spec(folder, **config), folder / "duckdb")
    two = prepare(spec(folder, **config, engine="spark"), folder / "spark")
    assert everything(one) == everything(two)
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []
    return PreparedDataset(two)


def log(rng: np.random.Generator, n: int) -> dict[str, Any]:
    return {
        "user": rng.integers(0, 60, n) ** 2 - 100,
        "item": rng.integers(0, 30, n),
        "time": rng.integers(0, 40, n) * 3_600_000_000,
        "what": rng.choice(["shown", "view", "apply"], n),
        "weight": rng.choice([0.25, 0.5, 1.0], n),
    }


@needs_spark
@pytest.mark.usefixtures("_session")
def test_text_ids_contexts_faults_repeated_rows_and_many_buckets(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("data.writer.USERS_PER_BUCKET", 7)
    rng = np.random.default_rng(0)
    columns = log(rng, 900)
    columns["user"] = [None if u % 23 == 0 else f"ü{u}" for u in columns["user"]]
    columns["query"] = [None if q == 3 else f"q {q}" for q in rng.integers(0, 5, 900)]
    columns["level"] = pa.array(rng.integers(0, 3, 900), pa.uint8())
    table = pa.table(columns)
    write(tmp_path / "log" / "b.parquet", pa.concat_tables([table.slice(0, 300), table.slice(250, 100)]))
    write(tmp_path / "log" / "a[1].parquet", table.slice(300))
    until = pa.array([None if i % 3 else 35 * 3_600_000_000 for i in range(28)], pa.timestamp("us", "UTC"))
    write(tmp_path / "jobs.parquet", pa.table({"item": np.arange(28), "until": until}))
    data = both(
        tmp_path,
        events={"files": "log", "time": {"column": "time", "unit": "us"}, "action": "what", "weight": "weight"},
        actions={"shown": {"weight": 0, "history": False}, "view": {}, "apply": {"weight": 3}},
        context={"features": {"query": {"kind": "text"}, "level": {"kind": "categorical"}}},
        users={"features": {"user_id": {"kind": "id", "min_count": 2}}},
        items={"files": "jobs.parquet", "features": {"item_id": {"kind": "id"}}, "expires": "until"},
        split={"rule": "global_time", "valid": 0.1, "test": 0.2},
        faults={f: {"policy": "set_aside", "limit": 1} for f in ("null_key", "unknown_item", "after_expiry")},
    )
    assert set(data.info["rejected"]) == {"null_key", "unknown_item", "after_expiry", "duplicate"}
    assert len([f for f in data.info["files"] if f.startswith("examples/")]) > 5


@needs_spark
@pytest.mark.usefixtures("_session")
def test_a_csv_without_a_clock_and_random_splits(tmp_path: Path) -> None:
    """What is random depends on hashes of ids, which executors compute for their own users."""
    columns = log(np.random.default_rng(1), 400)
    write(tmp_path / "log.csv.gz", pa.table({k: columns[k] for k in ("user", "item")}))
    both(
        tmp_path,
        events={"files": "log.csv.gz"},
        split={"rule": "random_per_user", "valid": 0.2, "test": 0.2},
        faults={"duplicate": {"limit": 1}},
    )


@needs_spark
@pytest.mark.usefixtures("_session")
def test_given_splits_in_json_and_users_of_a_table(tmp_path: Path) -> None:
    columns = log(np.random.default_rng(2), 300)
    table = pa.table({k: columns[k] for k in ("user", "item", "time")})
    for i, name in enumerate(("train", "valid", "test")):
        write(tmp_path / f"{name}.jsonl", table.slice(100 * i, 100))
    users = np.unique(columns["user"])
    write(tmp_path / "users.csv", pa.table({"user": users, "age": np.arange(len(users))}))
    both(
        tmp_path,
        events={"files": {n: f"{n}.jsonl" for n in ("train", "valid", "test")}, "order": "time"},
        users={"files": "users.csv", "features": {"age": {"kind": "numeric"}}},
        split={"rule": "given"},
        faults={"duplicate": {"limit": 1}},
    )


@needs_spark
@pytest.mark.usefixtures("_session")
def test_contexts_of_negative_zeros(tmp_path: Path) -> None:
    """-0.0 equals 0.0 and has other bytes; which of them is met first is nobody's choice."""
    rng, n = np.random.default_rng(3), 300
    columns = {k: v for k, v in log(rng, n).items() if k in ("user", "item", "time")}
    columns["pay"] = rng.choice([-0.0, 0.1], n)
    columns["share"] = pa.array(rng.choice([-0.0, 0.0, 2.5], n), pa.float32())
    columns["place"] = pa.array([[float(x), -0.0] for x in rng.choice([-0.0, 1.0], n)])
    write(tmp_path / "log.parquet", pa.table(columns))
    kinds = {"pay": {"kind": "numeric"}, "share": {"kind": "numeric"}, "place": {"kind": "vector", "dim": 2}}
    data = both(
        tmp_path,
        events={"files": "log.parquet", "time": {"column": "time", "unit": "us"}},
        context={"features": kinds},
        split={"rule": "global_time", "valid": 0.1, "test": 0.2},
        faults={"duplicate": {"limit": 1}},
    )
    assert len(data.contexts) == 1 + 2 * 2 * 2, "nothing given, and every combination"


@needs_spark
@pytest.mark.usefixtures("_session")
def test_faults_stop_with_the_same_words(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", [*SMALL, *events((2, None, 9))])
    said = []
    for engine in ("duckdb", "spark"):
        with pytest.raises(DataError) as e:
            prepare(spec(tmp_path, engine=engine), tmp_path / "out")
        said.append(str(e.value))
    assert said[0] == said[1]
    assert "row 6 (counted from 0)" in said[0]
    write(tmp_path / "log.parquet", [*SMALL, *SMALL])
    said = []
    for engine in ("duckdb", "spark"):
        with pytest.raises(DataError, match="first for user 1, item 10") as e:
            prepare(spec(tmp_path, engine=engine), tmp_path / "out")
        said.append(str(e.value))
    assert said[0] == said[1]


@needs_spark
@pytest.mark.usefixtures("_session")
def test_a_file_that_an_executor_cannot_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "log.parquet", SMALL * 50)
    data = bytearray(path.read_bytes())
    data[4:40] = bytes(36)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"log\.parquet"):
        prepare(spec(tmp_path, engine="spark"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_engine_is_no_part_of_what_is_prepared(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", SMALL)
    out = prepare(spec(tmp_path), tmp_path / "out")
    assert is_current(spec(tmp_path, engine="spark", spark={"master": "local[1]"}), out)


def test_settings_of_spark_are_written_as_a_tree(tmp_path: Path) -> None:
    tree = {"master": None, "executor": {"memory": "8g", "cores": 4}, "dynamicAllocation.enabled": True}
    assert spec(tmp_path, spark=tree).spark == {
        "executor.memory": "8g", "executor.cores": "4", "dynamicAllocation.enabled": "true",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="engine is 'hadoop'; expected one of"):
        spec(tmp_path, engine="hadoop")


def test_without_pyspark_the_error_says_what_to_install(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.delitem(sys.modules, "data.spark_engine", raising=False)
    write(tmp_path / "log.parquet", SMALL)
    with pytest.raises(ConfigError, match=r"pip install 'towers\[spark\]'"):
        prepare(spec(tmp_path, engine="spark"), tmp_path / "out")
