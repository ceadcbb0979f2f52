"""Runs: a folder of their own each, and the very data that they were trained on."""

import fcntl
import threading
import time
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import train as train_verb
from pipeline import console
from pipeline.datasets import dataset_of, ensure_prepared
from pipeline.runs import Run
from pipeline.training import evaluation_tasks
from tests.data.worlds import SMALL, events, write
from towers.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> DictConfig:
    write(tmp_path / "log.parquet", SMALL)
    data = {"name": "small", "source": str(tmp_path), "split": {"rule": "leave_last_out"},
            "events": {"files": "log.parquet", "time": {"column": "time", "unit": "us"}}}  # fmt: skip
    where = {"var": str(tmp_path / "var"), "threads": 1, "memory": "1GB"}
    return OmegaConf.create({"data": data, **where, "seed": 1, "evaluate": None, "refit": None})


def test_a_run_keeps_to_the_data_that_it_was_trained_on(config: DictConfig, tmp_path: Path) -> None:
    log = tmp_path / "log.parquet"
    old, run = log.read_bytes(), Run(tmp_path / "run")
    run.begin(config, ensure_prepared(config))
    learnt = dataset_of(run).files_sha256

    log.write_bytes(old)  # another time of change, the same content
    assert ensure_prepared(config).files_sha256 == learnt

    grown = pa.concat_tables([pq.read_table(log), pa.Table.from_pylist(events((1, 99, 4)))])
    pq.write_table(grown, log)
    assert dataset_of(run).files_sha256 == learnt, "what was prepared is still there"

    assert ensure_prepared(config).files_sha256 != learnt  # another run wants the new log
    with pytest.raises(ConfigError, match="have changed since it was trained"):
        dataset_of(run)

    log.write_bytes(old)
    assert dataset_of(run).files_sha256 == learnt


def test_one_process_prepares_and_the_others_wait(config: DictConfig, tmp_path: Path) -> None:
    lock, done = tmp_path / "var/data/.small.lock", threading.Event()
    lock.parent.mkdir(parents=True)

    def work() -> None:
        ensure_prepared(config)
        done.set()

    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.3)
        assert not done.is_set()
        assert not (tmp_path / "var/data/small").exists()
    thread.join(60)
    assert done.is_set()
    assert (tmp_path / "var/data/small/dataset.json").is_file()


def test_tasks_to_evaluate_must_exist(config: DictConfig) -> None:
    dataset = ensure_prepared(config)
    for asked, ranked in (
        (None, ["valid"]),
        ("all", ["valid", "test"]),
        ("test", ["test"]),
        (["test"], ["test"]),
        ([], []),
    ):
        config.evaluate = asked
        assert evaluation_tasks(config, dataset) == ranked
    config.evaluate = ["valid", "tset"]
    with pytest.raises(ConfigError, match="no task 'tset'; there are"):
        evaluation_tasks(config, dataset)


class FixedClock:
    @staticmethod
    def now() -> datetime:
        return datetime(2024, 2, 29, 12, 0, 1)


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_verb, "datetime", FixedClock)
    names = []
    for _ in range(3):
        folder = Path(train_verb.run_folder(None, str(tmp_path), "market", None))
        folder.mkdir(parents=True)
        names.append(folder.name)
    assert names == [f"2024-02-29_12-00-01{more}" for more in ("", "-2", "-3")]


@pytest.mark.parametrize("setting", ["resume", "refit"])
def test_a_run_that_is_not_there_is_said_in_words_and_leaves_no_folder(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "err", Console(file=StringIO(), width=500))
    given: dict[str, Any] = {"resume": None, "refit": None, setting: str(tmp_path / "nowhere")}
    with pytest.raises(SystemExit):
        train_verb.run_folder(given["resume"], "runs", "market", given["refit"])
    assert not (tmp_path / "nowhere").exists()
    assert f"no run at {tmp_path}/nowhere" in console.err.file.getvalue()  # type: ignore[attr-defined]
