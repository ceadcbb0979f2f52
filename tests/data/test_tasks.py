"""Tasks: queries, targets, candidates and exclusions against a brute force over the raw log."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tasks import build_task
from tests.data.worlds import SMALL, events, prepared, write
from towers.errors import ConfigError, DataError

DAY = 86_400_000_000
PARTS = ["train", "valid", "test", "late"]
EVERY_SPLIT = [(9, 0, t, "view", part) for t, part in enumerate(PARTS)]
EVENT = st.tuples(
    st.integers(0, 3), st.integers(0, 7), st.integers(0, 5), st.sampled_from(["view", "shown"]), st.sampled_from(PARTS)
)
LOGS = st.lists(EVENT, min_size=8, max_size=40).map(lambda rows: list(dict.fromkeys([*rows, *EVERY_SPLIT])))
POSTED, EXPIRES = {1: 2, 2: 3, 3: None}, {1: 4, 4: 2}  # by item, in days; the rest are always open
GROUP = {0: "a", 5: "a", 1: "b", 6: "b", 7: "b"}
MASK = [(0, 3), (0, 4), (9, 1), (2, 2)]
TASKS: dict[str, dict[str, Any]] = {
    "valid": {},
    "test": {},
    "both": {"targets": ["test", "late"], "exclude": ["train"]},
    "free": {"targets": ["test"], "exclude": []},
    "moments": {"targets": ["test", "late"], "unit": "event", "exclude": ["valid"]},
    "live": {"targets": ["test"], "unit": "event", "candidates": "live"},
    "trained": {"targets": ["test"], "candidates": "trained"},
    "held": {"targets": ["test"], "candidates": "held_out"},
    "file": {"targets": ["test"], "candidates": "some.csv", "exclude": "mask.csv"},
    "families": {"targets": ["test"], "exclude_groups": True},
}


def world(folder: Path, log: Any) -> Any:
    write(
        folder / "log.parquet", [{**r, "time": r["time"] * DAY} for r in events(*log, names="user item time what part")]
    )
    items = pa.table(
        {
            "item": range(8),
            "posted": pa.array(
                [None if (d := POSTED.get(i)) is None else d * DAY for i in range(8)], pa.timestamp("us", "UTC")
            ),
            "expires": pa.array(
                [None if (d := EXPIRES.get(i)) is None else d * DAY for i in range(8)], pa.timestamp("us", "UTC")
            ),
            "family": [GROUP.get(i) for i in range(8)],
        }
    )
    write(folder / "items.parquet", items)
    write(folder / "some.csv", [{"item": i} for i in (6, 0, 3, 0)])
    write(folder / "mask.csv", [{"user": u, "item": i} for u, i in MASK])
    users = write(folder / "users.csv", [{"user": u, "x": 1} for u in (0, 1, 2, 3, 9)])
    return prepared(
        folder,
        events={"files": "log.parquet", "time": {"column": "time", "unit": "us"}, "action": "what", "split": "part"},
        actions={"view": {}, "shown": {"weight": 0, "history": False}},
        users={"files": users.name},
        items={"files": "items.parquet", "posted": "posted", "expires": "expires", "group": "family"},
        split={"rule": "given"},
        tasks=TASKS,
        faults={"duplicate": {"limit": 1.0}, "after_expiry": {"limit": 1.0}},
    )


def lists(ragged: Any, ids: list[int]) -> list[list[int]]:
    offsets, values = ragged
    return [[ids[v] for v in values[a:b]] for a, b in pairwise(offsets)]


@pytest.mark.parametrize("name", TASKS)
@given(log=LOGS)
@settings(derandomize=True, deadline=None, max_examples=6)
def test_a_task_is_what_its_declaration_says(tmp_path_factory: Any, name: str, log: Any) -> None:
    data = world(tmp_path_factory.mktemp("log"), log)
    spec = {"targets": [name], **TASKS[name]}
    log = [e for e in log if e[2] < EXPIRES.get(e[1], 99)]  # the rest was set aside
    views = [e for e in log if e[3] == "view"]
    users, items = data.ids("user").to_pylist(), data.ids("item").to_pylist()
    candidates = {
        "trained": sorted({e[1] for e in views if e[4] == "train"}),
        "held_out": sorted({e[1] for e in views if e[4] in spec["targets"]}),
        "some.csv": [0, 3, 6],
    }.get(spec.get("candidates", "all"), items)
    wanted: dict[tuple[int, int], set[int]] = {}
    for user, item, time, _, part in views:
        if part in spec["targets"]:
            wanted.setdefault((user, time if spec.get("unit") == "event" else 0), set()).add(item)
    if not set(candidates) & set().union(*wanted.values()):
        with pytest.raises(DataError, match="no target is among the candidates"):
            build_task(data, name, history_length=5)
        return
    task = build_task(data, name, history_length=5)
    assert [users[u] for u in task.query] == [u for u, _ in sorted(wanted)]
    assert lists(task.targets, items) == [sorted(wanted[q]) for q in sorted(wanted)]
    assert [items[i] for i in task.candidates] == candidates
    assert lists(task.exclude, items) == [sorted(excluded(spec, views, user)) for user, _ in sorted(wanted)]
    assert task.time is not None
    if spec.get("unit") == "event":
        assert (task.time // DAY).tolist() == [t for _, t in sorted(wanted)]
    else:  # a query of a whole split stands at its first target
        firsts = [min(e[2] for e in views if e[0] == u and e[4] in spec["targets"]) for u, _ in sorted(wanted)]
        assert (task.time // DAY).tolist() == firsts
    if name == "live":
        far = np.iinfo(np.int64).max
        assert task.posted is not None
        assert task.expires is not None
        assert task.posted.tolist() == [-far if (d := POSTED.get(i)) is None else d * DAY for i in items]
        assert task.expires.tolist() == [far if (d := EXPIRES.get(i)) is None else d * DAY for i in items]
    else:
        assert task.posted is task.expires is None


def excluded(spec: dict[str, Any], views: Any, user: int) -> set[int]:
    """What a user must not be shown."""
    if spec.get("exclude") == "mask.csv":
        return {i for u, i in MASK if u == user}
    earlier = spec.get("exclude", ["train"] if spec["targets"] == ["valid"] else ["train", "valid"])
    seen = {e[1] for e in views if e[0] == user and e[4] in earlier}
    if spec.get("exclude_groups"):
        seen |= {i for i, g in GROUP.items() if g in {GROUP.get(s) for s in seen}}
    return seen


def test_an_unknown_task_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", SMALL)
    with pytest.raises(ConfigError, match=r"no task 'tset'; there are \['test', 'valid'\]"):
        build_task(prepared(tmp_path), "tset", history_length=5)


@pytest.mark.parametrize(
    ("name", "rows", "found"),
    [
        ("some", [{"item": 10}, {"item": 99}], "1 items that the dataset lacks, the first '99'"),
        ("some", [{"item": "x"}], "item ids are string here and int64 in the log"),
        ("some", [{"job": 10}], "no column 'item'; there are"),
        ("mask", [{"user": 1, "item": 10}, {"user": 7, "item": 10}], "1 users that the dataset lacks, the first '7'"),
        ("mask", [{"user": 1, "item": None}], "1 items that the dataset lacks, the first None"),
    ],
)
def test_files_of_a_task_must_fit_the_dataset(tmp_path: Path, name: str, rows: Any, found: str) -> None:
    write(tmp_path / "log.parquet", SMALL)
    write(tmp_path / f"{name}.csv", rows)
    setting = {"some": {"candidates": "some.csv"}, "mask": {"exclude": "mask.csv"}}[name]
    with pytest.raises(DataError) as e:
        prepared(tmp_path, tasks={"valid": {}, "test": setting})
    assert found in str(e.value)
    assert f"{tmp_path}/{name}.csv" in e.value.where


def test_files_of_a_task_may_use_the_names_of_the_log(tmp_path: Path) -> None:
    rows = [{"uid": r["user"], "jid": r["item"], "t": r["time"]} for r in SMALL]
    write(tmp_path / "log.parquet", rows)
    write(tmp_path / "mask.jsonl", [{"uid": 2, "jid": 11}])
    log = {"files": "log.parquet", "user": "uid", "item": "jid", "order": "t"}
    data = prepared(tmp_path, events=log, split={"rule": "leave_last_out"}, tasks={"valid": {"exclude": "mask.jsonl"}})
    task = build_task(data, "valid", history_length=5)
    assert lists(task.exclude, data.ids("item").to_pylist()) == [[], [11]]
