"""Newer files of a log: added day by day they give what all of them give at once, and older parts stay as they are."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from data import growth, writer
from data.batches import Collator
from data.events import Log
from data.fingerprint import is_current, log_files
from data.prepare import prepare
from data.prepared import PreparedDataset
from data.reading import TrainingParts
from data.spec import DatasetSpec
from data.tasks import build_task
from data.writer import sha256
from pipeline import build
from tests.data.worlds import HOUR, spec, write
from towers.features import FIRST, Vocabulary

DAY = 24 * HOUR
START = 1_600_000_000_000_000
ROOT = Path(__file__).parents[2]
ACTIONS = {"open": {}, "apply": {"weight": 2, "history": False}, "shown": {"weight": 0, "history": False}}
EVENTS = {"files": "log", "time": {"column": "time", "unit": "us"}, "action": "action"}


def config(folder: Path, **changes: Any) -> DatasetSpec:
    """A log in the folder ``log``, one file a day."""
    told: dict[str, Any] = {
        "events": EVENTS, "actions": ACTIONS, "tasks": {"valid": {}, "test": {"unit": "event"}}, "incremental": True,
        "items": {"features": {"item_id": {"kind": "id"}}}, "users": {"features": {"user_id": {"kind": "id"}}},
        "split": {"rule": "global_time", "valid": "1d", "test": "1d"},
    }  # fmt: skip
    return spec(folder, **{**told, **changes})


def add_day(folder: Path, number: int, rows: list[dict[str, Any]]) -> None:
    write(folder / f"log/{number:03d}.parquet", rows)


def event(user: Any, item: Any, time: int, action: str = "open") -> dict[str, Any]:
    return {"user": user, "item": item, "time": START + time, "action": action}


def added(spec: DatasetSpec, folder: Path) -> PreparedDataset:
    """Prepared by adding to what is there."""
    said: list[str] = []
    prepare(spec, folder, say=said.append)
    assert said == []
    return PreparedDataset(folder)


def at_once(spec: DatasetSpec, folder: Path) -> PreparedDataset:
    return PreparedDataset(prepare(spec, folder, whole=True))


def told(data: PreparedDataset) -> dict[str, Any]:
    """All that a dataset says, by external ids."""
    users, items = (np.array(data.ids(side).to_pylist(), object) for side in ("user", "item"))
    h, e = data.history, data.examples(*data.splits)
    seen = Collator(h, "time", 100)(e)
    rows: Counter[Any] = Counter()
    for i in range(len(e)):
        history = tuple(items[r] for r in seen.history[i].tolist() if r >= 0)
        assert e.time is not None
        assert e.action is not None
        rows[(users[e.user[i]], items[e.item[i]], int(e.time[i]), int(e.action[i]), float(e.weight[i]),
              int(e.split[i]), history)] += 1  # fmt: skip
    assert h.time is not None
    of_users = {}
    for u, name in enumerate(users):
        mine = slice(h.offsets[u], h.offsets[u + 1])
        ends = (h.stage_ends[u] - h.offsets[u]).tolist()
        known = set(items[data.known.values[data.known.offsets[u] : data.known.offsets[u + 1]]])
        of_users[name] = items[h.item[mine]].tolist(), h.time[mine].tolist(), h.action[mine].tolist(), ends, known
    raw = {side: {r[side]: r for r in data.raw(side).to_pylist()} for side in ("user", "item")}
    names = ("split", "counts", "rejected", "time_us", "tasks", "schema_hash")
    return {
        "examples": rows,
        "users": of_users,
        "raw": raw,
        "events": {s: dict(zip(data.ids(s).to_pylist(), data.events(s).tolist(), strict=True)) for s in raw},
        "info": {name: data.info[name] for name in names},
        "tasks": {name: asked(data, name, users, items) for name in data.info["tasks"]},
        "train": sorted(trained(data, TrainingParts(data), users, items)),
    }


def asked(data: PreparedDataset, name: str, users: Any, items: Any) -> Any:
    """What a task asks whom, and what it leaves out."""
    task = build_task(data, name, history_length=5)
    queries = [b for batch in task.batches for b in zip(batch.user.tolist(), batch.history.tolist(), strict=True)]
    out: Counter[Any] = Counter()
    for q, (user, history) in enumerate(queries):
        lists = (x.values[x.offsets[q] : x.offsets[q + 1]] for x in (task.targets, task.exclude))
        targets, exclude = (tuple(sorted(items[rows])) for rows in lists)
        out[(users[user], tuple(items[r] for r in history if r >= 0), targets, exclude)] += 1
    return out


def trained(data: PreparedDataset, parts: TrainingParts, users: Any, items: Any) -> list[Any]:
    """What training sees of each example, part by part."""
    out = []
    for part in range(len(parts.sizes)):
        batch = parts.open(np.array([part]))(np.arange(parts.sizes[part]))
        for i in range(len(batch)):
            known = batch.known.values[batch.known.offsets[i] : batch.known.offsets[i + 1]].tolist()
            events = zip(batch.history[i].tolist(), batch.history_age[i].tolist(), strict=True)
            history = [(items[r], age) for r, age in events if r >= 0]
            out.append(
                (
                    users[batch.user[i]],
                    items[batch.item[i]],
                    float(batch.weight[i]),
                    history,
                    sorted(items[known].tolist()),
                )
            )
    return out


@settings(derandomize=True, deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 2**20),
    days=st.integers(1, 3),
    strings=st.booleans(),
    table=st.booleans(),
    refit=st.booleans(),
    split=st.sampled_from([("0.5d", "0.5d"), (0.2, 0.1), ("2020-09-14T12:00:00Z", "2020-09-14T18:00:00Z")]),
)
def test_day_by_day_is_all_at_once(
    seed: int, days: int, strings: bool, table: bool, refit: bool, split: tuple[Any, Any]
) -> None:
    """Users and items come and go, events repeat themselves, times and groups tie; parts are small."""
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setattr(writer, "_ROW_GROUP", 16)
        patch.setattr(writer, "USERS_PER_BUCKET", 5)
        users, items = rng.permutation(14), rng.permutation(20)
        changes: dict[str, Any] = {"split": {"rule": "global_time", "valid": split[0], "test": split[1]}}
        if table:
            changes["items"] = {"files": "jobs.parquet", "key": "item", "group": "family", "expires": "until",
                                "features": {"place": {"kind": "categorical"}}, "attributes": ["pay"]}  # fmt: skip
            changes["faults"] = {"unknown_item": {"policy": "set_aside", "limit": 1.0}}
        wanted = config(folder, **changes)
        wanted = wanted.refitted() if refit else wanted
        for day in range(days + 1):
            some = users[: 8 + 2 * day], items[: 12 + 2 * day]
            if table:
                write(folder / "jobs.parquet", jobs(some[1].tolist(), strings))
            n = int(rng.integers(20, 60)) if day else 120
            who, what = (rng.choice(ids, n).tolist() for ids in some)
            when, how = rng.integers(0, 40, n) * HOUR + 2 * day * DAY + 1, rng.choice(list(ACTIONS), n)
            rows = [
                event(key(u, strings), key(i, strings), t, a)
                for u, i, t, a in zip(who, what, when.tolist(), how.tolist(), strict=True)
            ]
            add_day(folder, day, rows + rows[:3])
            grown = added(wanted, folder / "grown")
        assert grown.generations == days + 1
        assert is_current(wanted, folder / "grown")
        assert told(grown) == told(at_once(wanted, folder / "whole"))


def jobs(numbers: list[int], strings: bool) -> pa.Table:
    """A table whose families tie some of its jobs."""
    return pa.table({
        "item": [key(i, strings) for i in numbers],
        "family": [i % 7 for i in numbers],
        "until": pa.nulls(len(numbers), pa.timestamp("us", "UTC")),
        "place": [str(i % 3) for i in numbers],
        "pay": [1.5 * i for i in numbers],
    })  # fmt: skip


def key(number: int, strings: bool) -> str | int:
    return f"id{number}" if strings else int(number)


def small(folder: Path, day: int, users: int = 6, items: int = 8) -> None:
    """A day on which every user opens every job, always in another order, the last one in its last microsecond."""
    rng = np.random.default_rng(day)
    rows = []
    for u in range(users):
        for place, i in enumerate(rng.permutation(items).tolist()):
            rows.append(event(u, i, (day + 1) * DAY - 1 - (place * users + u) * 1_000_000))
    add_day(folder, day, rows)


def test_older_parts_stay_as_they_are(tmp_path: Path) -> None:
    for day in range(4):
        small(tmp_path, day)
    wanted = config(tmp_path)
    first = at_once(wanted, tmp_path / "out")
    parts = [f for f in first.info["files"] if f.startswith(("examples/", "history/"))]
    before = {f: (sha256(first.folder / f), (first.folder / f).stat().st_mtime_ns) for f in parts}
    ids = first.ids("user").to_pylist()
    vocabulary = first.featurizer("item").vocabulary("item_id")
    assert vocabulary is not None
    small(tmp_path, 4, users=8, items=10)
    second = added(wanted, tmp_path / "out")
    assert before == {f: (sha256(second.folder / f), (second.folder / f).stat().st_mtime_ns) for f in parts}
    assert {f: second.info["files"][f] for f in parts} == {f: first.info["files"][f] for f in parts}
    assert sorted(second.info["files"]) == sorted({*first.info["files"], "examples/00000-00001.parquet",
                                                   "history/00000-00001.parquet"})  # fmt: skip
    for name, f in second.info["files"].items():
        assert sha256(second.folder / name) == f["sha256"], name
    assert second.ids("user").to_pylist() == [*ids, 6, 7]
    now = second.featurizer("item").vocabulary("item_id")
    assert now is not None
    assert now.values.to_pylist()[: len(vocabulary) - FIRST] == vocabulary.values.to_pylist()
    assert not list(tmp_path.glob(".out*")), "nothing is left behind"
    assert prepare(wanted, tmp_path / "out") == tmp_path / "out"
    assert is_current(wanted, tmp_path / "out")


def test_a_row_that_the_newest_table_lacks_says_what_it_said(tmp_path: Path) -> None:
    items = {"files": "jobs.parquet", "key": "item", "group": "family", "posted": "posted", "attributes": ["pay"],
             "features": {"place": {"kind": "categorical"}}}  # fmt: skip
    jobs = [{"item": i, "family": i // 2, "posted": START + i, "place": f"p{i}", "pay": i} for i in range(8)]
    for day in range(4):
        small(tmp_path, day)
    wanted = config(tmp_path, items=items)
    write(tmp_path / "jobs.parquet", jobs)
    at_once(wanted, tmp_path / "out")
    small(tmp_path, 4, items=9)
    newer = [{**j, "pay": 100 + int(j["item"])} for j in jobs if j["item"] not in (1, 4, 5)]
    write(tmp_path / "jobs.parquet", [*newer, {"item": 8, "family": 9, "posted": START, "place": "p8", "pay": 108}])
    data = added(wanted, tmp_path / "out")
    assert data.ids("item").to_pylist() == list(range(9))
    assert data.raw("item")["pay"].to_pylist() == [100, 1, 102, 103, 4, 5, 106, 107, 108]
    assert data.raw("item")["place"].to_pylist() == [f"p{i}" for i in range(9)]
    posted, _ = data.item_times()
    assert posted is not None
    assert posted.tolist() == [*range(START, START + 8), START]
    assert data.groups is not None
    group = data.groups.tolist()
    assert [group[i] == group[j] for i, j in ((0, 1), (2, 3), (4, 5), (6, 7))] == [True] * 4
    assert len(set(group)) == 5


def test_a_newer_vocabulary_goes_to_the_end() -> None:
    old = Vocabulary(pa.array(["b", "a"]), np.array([5, 3]))
    grown = old.grown(Vocabulary(pa.array(["c", "a", "d"]), np.array([9, 4, 1])))
    assert grown.values.to_pylist() == ["b", "a", "c", "d"]
    assert grown.counts.tolist() == [5, 4, 9, 1]
    assert old.grown(Vocabulary(pa.array(["c", "d"]), np.array([9, 1])), max_size=3).values.to_pylist() == [
        "b",
        "a",
        "c",
    ]
    assert old.grown(Vocabulary(pa.nulls(0), np.zeros(0, np.int64))) is old


Change = Mapping[str, Any]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"history_length": 7}, "its config says something else"),
        ({"split": {"rule": "cold_items", "valid": 0.3, "test": 0.3}}, "under split.rule=cold_items newer events"),
        ({"engine": "spark"}, "data.engine=spark adds nothing"),
        (
            {"context": {"features": {"action": {"kind": "categorical"}}}},
            "the contexts of a log are numbered as a whole",
        ),
    ],
)
def test_what_cannot_be_added_is_told(tmp_path: Path, changes: Change, why: str) -> None:
    for day in range(4):
        small(tmp_path, day)
    at_once(config(tmp_path), tmp_path / "out")
    small(tmp_path, 4)
    said: list[str] = []
    wanted = config(tmp_path, **changes)
    with duckdb.connect() as con:
        log = Log(con, wanted, wanted.split_names)
        assert growth.base(con, wanted, tmp_path / "out", log_files(wanted), log, said.append) is None
    (only,) = said
    assert only.startswith(f"small is prepared as a whole: {why}")


def test_files_that_change_or_come_late_are_told(tmp_path: Path) -> None:
    for day in range(4):
        small(tmp_path, day)
    wanted, out = config(tmp_path), tmp_path / "out"
    at_once(wanted, out)

    def said() -> str:
        told: list[str] = []
        assert PreparedDataset(prepare(wanted, out, say=told.append)).generations == 1
        (only,) = told
        return only

    assert "no file of the log is new" in said()
    small(tmp_path, 0, items=9)
    assert "log/000.parquet has changed, or is gone" in said()
    (tmp_path / "log/000.parquet").unlink()
    assert "log/000.parquet has changed, or is gone" in said()
    small(tmp_path, 0)
    assert "log/000.parquet has an event at 2020-" in said()
    add_day(tmp_path, 4, [event(0, 0, 4 * DAY - 1)])
    assert "what is prepared goes up to" in said(), "at the very time of the last one"
    add_day(tmp_path, 5, [event(0, 0, 4 * DAY)])
    assert added(wanted, out).generations == 2
    assert PreparedDataset(prepare(replace(wanted, incremental=False), out)).generations == 1


def fitted(data: PreparedDataset, folder: Path) -> tuple[dict[str, Any], Any]:
    """Weights and validation of two epochs."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", [
            "experiment=market", "data=gowalla", "logger=none", "threads=1", "batch_size=16", "model=hybrid",
            "model.item.id_dropout=0", "model.dim=8",
        ])  # fmt: skip
    pl.seed_everything(0, verbose=False)
    module_data = build.datamodule(config, data)
    module = build.retrieval(config, data, 2 * module_data.batches_per_epoch())
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_model_summary=False, enable_progress_bar=False,
        enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, module_data)
    found = trainer.validate(module, module_data, verbose=False)
    return dict(module.state_dict()), found


@pytest.mark.filterwarnings("ignore")  # Lightning's, of itself: the pipeline leaves them out, see pipeline.training
def test_a_run_on_two_generations_is_that_on_one(tmp_path: Path) -> None:
    """New ids come after the old ones, so that rows are the same; then weights and metrics are, bit by bit."""
    for day in range(4):
        small(tmp_path, day)
    wanted = config(tmp_path, users={})
    at_once(wanted, tmp_path / "grown")
    for day in range(4, 7):
        small(tmp_path, day, users=8, items=10)
    grown, whole = added(wanted, tmp_path / "grown"), at_once(wanted, tmp_path / "whole")
    for side in ("user", "item"):
        a, b = grown.side(side), whole.side(side)
        assert a.column_names == b.column_names
        assert a.select(a.column_names).equals(b.select(b.column_names)), side
    for name in ("user", "item", "time", "weight", "split", "history_end", "action"):
        a, b = (getattr(d.examples(*d.splits), name) for d in (grown, whole))
        assert np.array_equal(a, b), name
    (weights, metrics), (expected, measured) = (fitted(d, tmp_path) for d in (grown, whole))
    assert metrics == measured
    assert metrics[0]
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name


def test_many_generations_are_streamed_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any parts that are open together give what the whole gives of their examples."""
    monkeypatch.setattr(writer, "_ROW_GROUP", 16)
    monkeypatch.setattr(writer, "USERS_PER_BUCKET", 3)
    for day in range(4):
        small(tmp_path, day)
    wanted = config(tmp_path)
    at_once(wanted, tmp_path / "out")
    for day in range(4, 7):
        small(tmp_path, day, users=6 + day, items=10)
        data = added(wanted, tmp_path / "out")
    assert data.generations == 4
    parts = TrainingParts(data, None)
    every = parts.open(np.arange(len(parts.sizes)))
    whole = every(np.arange(len(parts)))
    rng = np.random.default_rng(0)
    for _ in range(10):
        chosen = np.sort(rng.permutation(len(parts.sizes))[: int(rng.integers(1, len(parts.sizes)))])
        window = parts.open(chosen)
        batch = window(np.arange(len(window.records)))
        for i in range(len(batch)):
            same = (whole.user == batch.user[i]) & (whole.item == batch.item[i]) & (whole.time == batch.time[i])
            (at,) = torch.nonzero(same).flatten().tolist()
            n = int((batch.history[i] >= 0).sum())
            assert batch.history[i, :n].tolist() == whole.history[at][whole.history[at] >= 0].tolist()
            known = [
                b.known.values[b.known.offsets[k] : b.known.offsets[k + 1]].tolist()
                for b, k in ((batch, i), (whole, at))
            ]
            assert known[0] == known[1]
    assert growth.config_hash(wanted) == data.info["log"]["config_sha256"]
