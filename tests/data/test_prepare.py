"""Preparing as a whole: what lands on disk, when it is out of date, that it is all or nothing, and always the same."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.fingerprint import is_current
from data.folders import atomic_folder
from data.prepare import prepare
from data.prepared import PreparedDataset
from data.writer import Parts, sha256
from tests.data.worlds import SMALL, prepared, spec, write
from towers.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]


def everything(folder: Path) -> dict[str, str]:
    """Hash by name of every file; ``dataset.json`` without what is meant to differ."""
    out = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == "dataset.json":
            info = json.loads(path.read_text())
            out[name] = json.dumps({k: v for k, v in info.items() if k not in ("fingerprint", "log")}, sort_keys=True)
        else:
            out[name] = sha256(path)
    return out


def test_the_folder_describes_itself(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", SMALL)
    data = prepared(tmp_path, items={"features": {"item_id": {"kind": "id"}}})
    info = data.info
    assert info["format_version"] == 3
    assert info["counts"] == {
        "users": 2, "items": 4, "log_rows": 6, "examples": 6, "history": 6,
        "positives": {"train": 2, "valid": 2, "test": 2},
    }  # fmt: skip
    assert info["time_us"] == [1, 3]
    assert info["split"]["rule"] == "leave_last_out"
    on_disk = {p.relative_to(data.folder).as_posix() for p in data.folder.rglob("*") if p.is_file()}
    assert set(info["files"]) == on_disk - {"dataset.json"}
    for name, entry in info["files"].items():
        assert entry["sha256"] == sha256(data.folder / name)
    assert info["files"]["examples/00000-00000.parquet"]["rows"] == 6
    assert {"users.parquet", "items.parquet", "vocab/item.json", "vocab/item.item_id.parquet"} <= on_disk


def test_a_damaged_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no prepared dataset[^$]*prepare.py data=nothing"):
        PreparedDataset(tmp_path / "nothing")
    write(tmp_path / "log.parquet", SMALL)
    data = prepared(tmp_path)
    part = data.folder / "examples" / "00000-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"missing or cut short\n.*00000-00000"):
        PreparedDataset(data.folder)
    mark = data.folder / "dataset.json"
    mark.write_text(json.dumps({**data.info, "format_version": 99}))
    with pytest.raises(DataError, match="format version 99; this code reads 3"):
        PreparedDataset(data.folder)


# --- re-use ------------------------------------------------------------------------------------------------


def test_it_is_current_until_a_file_or_the_config_changes(tmp_path: Path) -> None:
    log = write(tmp_path / "log" / "day=1" / "a.parquet", SMALL)
    write(tmp_path / "mask.csv", [{"user": 1, "item": 10}])
    config: dict[str, Any] = {
        "events": {"files": "log/*/*.parquet", "time": {"column": "time", "unit": "us"}},
        "tasks": {"valid": {"exclude": "mask.csv"}},
    }
    out = prepare(spec(tmp_path, **config), tmp_path / "out")
    assert is_current(spec(tmp_path, **config), out)
    assert not is_current(spec(tmp_path, **config, history_length=7), out)
    assert not is_current(spec(tmp_path, **config), tmp_path / "nothing")

    write(tmp_path / "mask.csv", [{"user": 2, "item": 10}])
    assert not is_current(spec(tmp_path, **config), out)
    prepare(spec(tmp_path, **config), out)
    write(tmp_path / "log" / "day=2" / "a.parquet", SMALL)  # a new file that the glob finds
    assert not is_current(spec(tmp_path, **config), out)
    (tmp_path / "log" / "day=2" / "a.parquet").unlink()
    assert is_current(spec(tmp_path, **config), out)
    os.utime(log, ns=(0, 10**18))
    assert not is_current(spec(tmp_path, **config), out)
    log.unlink()
    assert not is_current(spec(tmp_path, **config), out)


def test_a_file_that_changes_while_it_is_read_makes_the_result_outdated(tmp_path: Path) -> None:
    log = write(tmp_path / "log.parquet", SMALL)
    out = prepare(spec(tmp_path), tmp_path / "out", progress=lambda what, share: os.utime(log, ns=(0, 10**18)))
    assert not is_current(spec(tmp_path), out)


# --- all or nothing ----------------------------------------------------------------------------------------


def test_a_failure_leaves_the_old_folder_as_it_was(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("old")

    def fail() -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "x").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "out" / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "y").write_text("new")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["y"]


def test_a_killed_prepare_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", SMALL)
    code = """
import sys, time
from pathlib import Path
from data.prepare import prepare
from tests.data.worlds import spec
stage = sys.argv[2]
def progress(what, share):
    if what == stage:
        print("there", flush=True)
        time.sleep(60)
prepare(spec(Path(sys.argv[1])), Path(sys.argv[1]) / "out", progress=progress)
"""
    for stage in ("reading users and items", "encoding features", "done"):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), stage], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "there\n"
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.*.tmp"))
    prepared(tmp_path)
    assert not list(tmp_path.glob(".out.*"))


# --- always the same ---------------------------------------------------------------------------------------


def big(rng: np.random.Generator, n: int) -> pa.Table:
    return pa.table(
        {
            "user": rng.integers(0, 2000, n),
            "item": [f"job-{i}" for i in rng.integers(0, 500, n)],
            "time": rng.integers(0, 10**9, n) * 1_000_000,
            "w": rng.choice([0.5, 1.0], n),
            "what": rng.choice(["view", "apply"], n),
        }
    )


def test_the_same_bytes_whatever_the_threads_and_the_order_of_rows_and_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = big(rng, 40_000)
    table = pa.concat_tables([table, table.slice(0, 400)])  # some duplicates, which differ in weight
    table = table.set_column(3, "w", pa.array(rng.choice([0.5, 1.0], len(table))))
    found = []
    for i, threads in enumerate((1, 4, 2)):
        folder = tmp_path / str(i)
        shuffled = table if i == 0 else table.take(rng.permutation(len(table)))
        cuts = [0, len(table)] if i == 0 else [0, 7, 30_000, len(table)]
        for k, (a, b) in enumerate(pairwise(cuts)):
            write(folder / "log" / f"{9 - k}.parquet", shuffled.slice(a, b - a))
        config = spec(
            folder,
            events={"files": "log", "time": {"column": "time", "unit": "us"}, "action": "what", "weight": "w"},
            actions={"view": {}, "apply": {"weight": 2}},
            users={"features": {"user_id": {"kind": "id"}}},
            items={"features": {"item_id": {"kind": "id", "min_count": 3}}},
            split={"rule": "global_time"},
        )
        found.append(everything(prepare(config, folder / "out", threads=threads)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("rule", ["global_time", "leave_last_out", "random_per_user", "cold_items"])
def test_users_numbered_on_the_way_have_the_rows_that_their_table_would_give_them(tmp_path: Path, rule: str) -> None:
    """Users of the log whose ids are integers are numbered while it is read; a table of the same users changes nothing.

    Among them are negative ids, users all of whose rows are at fault, rows without a user, and repeated rows.
    """
    rng = np.random.default_rng(0)
    n = 6_000
    user = rng.integers(-150, 150, n) * 10**15
    item, time = rng.integers(0, 80, n), rng.integers(0, 10**9, n) * 1_000_000
    item[user == 0] = 999  # no such item
    log = pa.table({"user": pa.array(user, mask=np.arange(n) % 500 == 0), "item": item, "time": time})
    write(tmp_path / "log.parquet", pa.concat_tables([log, log.slice(1, 20)]))
    write(tmp_path / "items.parquet", pa.table({"item": np.arange(80)}))
    write(tmp_path / "users.parquet", pa.table({"user": rng.permutation(np.unique(user))}))
    config: dict[str, Any] = {
        "items": {"files": "items.parquet", "features": {"item_id": {"kind": "id"}}},
        "split": {"rule": rule},
        "faults": {f: {"policy": "set_aside", "limit": 1.0} for f in ("null_key", "unknown_item", "duplicate")},
    }
    features = {"features": {"user_id": {"kind": "id"}}}
    alone = prepare(spec(tmp_path, **config, users=features), tmp_path / "alone")
    table = prepare(spec(tmp_path, **config, users={**features, "files": "users.parquet"}), tmp_path / "table")
    data = PreparedDataset(alone)
    assert data.ids("user").to_pylist() == np.unique(user).tolist()
    assert set(data.info["rejected"]) >= {"null_key", "unknown_item", "duplicate"}
    assert everything(alone) == everything(table)


def test_text_ids_are_numbered_in_their_order_as_integers_are(tmp_path: Path) -> None:
    """The same users under names of the same order: the same examples and histories."""
    log = big(np.random.default_rng(0), 5_000)
    names = pa.array([f"u{u:05d}" for u in log["user"].to_pylist()])
    folders = []
    for name, users in (("integers", log["user"]), ("names", names)):
        write(tmp_path / f"{name}.parquet", log.set_column(0, "user", users))
        events = {"files": f"{name}.parquet", "time": {"column": "time", "unit": "us"}}
        config = spec(tmp_path, events=events, split={"rule": "leave_last_out"})
        folders.append(prepare(config, tmp_path / name))
    integers, texts = (
        {n: h for n, h in everything(f).items() if n.startswith(("examples/", "history/"))} for f in folders
    )
    assert integers == texts
    assert len(integers) == 2


def test_a_log_larger_than_memory_spills_and_leaves_nothing(tmp_path: Path) -> None:
    table = big(np.random.default_rng(0), 300_000)
    write(tmp_path / "log.parquet", table)
    config = {"events": {"files": "log.parquet", "time": {"column": "time", "unit": "us"}}}
    little = prepare(spec(tmp_path, **config), tmp_path / "little", memory="60MB", threads=1)
    much = prepare(spec(tmp_path, **config), tmp_path / "much")
    assert everything(little) == everything(much)
    assert {p.name for p in tmp_path.iterdir()} == {"log.parquet", "little", "much"}


def test_too_little_memory_names_the_setting(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", big(np.random.default_rng(0), 300_000))
    with pytest.raises(ConfigError, match="5MB of memory do not suffice to prepare small; set memory to more"):
        prepare(spec(tmp_path), tmp_path / "out", memory="5MB")


def test_users_are_cut_into_parts_by_bucket(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("data.writer.USERS_PER_BUCKET", 2)
    parts = Parts(tmp_path, "x")
    user = np.array([0, 0, 1, 4, 5], np.int32)
    parts.write(user[:2], pa.table({"u": user[:2]}))
    parts.write(user[2:], pa.table({"u": user[2:]}))
    parts.close()
    assert parts.files == {"x/00000-00000.parquet": 3, "x/00002-00000.parquet": 2}
    assert pq.read_table(tmp_path / "x" / "00000-00000.parquet")["u"].to_pylist() == [0, 0, 1]


def test_several_buckets_read_as_one(tmp_path: Path, monkeypatch: Any) -> None:
    write(tmp_path / "log.parquet", SMALL)
    whole = prepared(tmp_path)
    monkeypatch.setattr("data.writer.USERS_PER_BUCKET", 1)
    (tmp_path / "out").rename(tmp_path / "whole")
    parts = prepared(tmp_path)
    whole = PreparedDataset(tmp_path / "whole")
    assert len([f for f in parts.info["files"] if f.startswith("history/")]) == 2
    for name in ("user", "item", "time", "weight", "split", "history_end"):
        a, b = (getattr(d.examples("train", "valid", "test"), name) for d in (whole, parts))
        assert a.tolist() == b.tolist()
    assert (whole.history.offsets == parts.history.offsets).all()
    assert (whole.history.stage_ends == parts.history.stage_ends).all()


# --- a data set from outside the repository ----------------------------------------------------------------


@pytest.mark.slow
def test_one_yaml_from_outside_brings_a_new_data_set(tmp_path: Path) -> None:
    """Odd column names, CSV tables, ISO times; no Python."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "raw"
    start = 1_700_000_000
    log = pa.table(
        {
            "uid": [f"u{i:03d}" for i in rng.integers(0, 40, 800)],
            "jid": rng.integers(0, 60, 800),
            "ts": pa.array(start + rng.integers(0, 10**6, 800), pa.timestamp("s", "UTC")),
            "what": rng.choice(["seen", "clicked", "applied"], 800),
        }
    )
    write(raw / "log.parquet", log)
    write(
        raw / "people.csv", [{"uid": f"u{i:03d}", "skills": "java|c++" if i % 3 else "", "age": i} for i in range(40)]
    )
    write(
        raw / "jobs.csv", [{"jid": i, "title": f"Nurse, ward {i}", "pay": i * 1.5, "town": "Köln"} for i in range(60)]
    )
    configs = tmp_path / "configs"
    (configs / "data").mkdir(parents=True)
    (configs / "data" / "mine.yaml").write_text(f"""
name: mine
source: {raw}
events: {{files: log.parquet, user: uid, item: jid, time: ts, action: what}}
actions:
  seen: {{weight: 0, history: false}}
  clicked: {{}}
  applied: {{weight: 3}}
users:
  files: people.csv
  key: uid
  separator: "|"
  features:
    person: {{kind: id}}
    skills: {{kind: categorical_list, max_length: 4}}
    age: {{kind: numeric, buckets: 4}}
items:
  files: jobs.csv
  key: jid
  features:
    job: {{kind: id}}
    title: {{kind: text, max_length: 8}}
    pay: {{kind: numeric}}
    town: {{kind: categorical}}
  attributes: [title, town]
split: {{rule: leave_last_out}}
""")
    command = [sys.executable, "prepare.py", "--config-dir", str(configs), "data=mine", f"var={tmp_path}/var"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("var/data/mine")
    data = PreparedDataset(tmp_path / "var" / "data" / "mine")
    assert (data.schema.user_id, data.schema.item_id, data.schema.clock) == ("string", "int64", "time")
    assert data.info["counts"]["log_rows"] == 800
    assert [f.kind.value for f in data.featurizer("user").infos] == ["id", "categorical_list", "numeric"]
    assert data.raw("item")["title"][7].as_py() == "Nurse, ward 7"
    assert set(data.examples("train").weight.tolist()) == {0.0, 1.0, 3.0}
    # a mistake is an error without a traceback
    wrong = subprocess.run([*command, "data.events.user=nobody"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "no column 'nobody'; there are ['jid', 'ts', 'uid', 'what']" in wrong.stderr
    assert "Traceback" not in wrong.stderr
