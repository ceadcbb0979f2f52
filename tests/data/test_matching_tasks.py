"""Tasks that ask which users want an item, against a brute force over the raw log."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tasks import build_task
from tests.data.worlds import SMALL, events, prepared, spec, write
from towers.errors import ConfigError, DataError
from towers.evaluation.evaluate import evaluate_scores

PARTS = ["train", "valid", "test"]
EVENT = st.tuples(
    st.integers(0, 5), st.integers(0, 4), st.integers(0, 6), st.sampled_from(["view", "shown"]), st.sampled_from(PARTS)
)
EVERY_SPLIT = [(9, 0, t, "view", part) for t, part in enumerate(PARTS)]
LOGS = st.lists(EVENT, min_size=8, max_size=40).map(lambda rows: list(dict.fromkeys([*rows, *EVERY_SPLIT])))
FAMILY = {0: "a", 1: "a", 2: "b", 3: "c", 4: "d"}
MASK = [(0, 3), (9, 0), (2, 3)]
TASKS: dict[str, dict[str, Any]] = {
    "early": {"targets": ["valid"]},
    "test": {},
    "again": {"targets": ["test"], "exclude": []},
    "trained": {"targets": ["test"], "candidates": "trained", "exclude": ["valid"]},
    "held": {"targets": ["test", "valid"], "candidates": "held_out", "exclude": ["train"]},
    "file": {"targets": ["test"], "candidates": "some.csv", "exclude": "mask.csv"},
    "families": {"targets": ["test"], "exclude_groups": True},
}


def world(folder: Path, log: Any) -> Any:
    write(folder / "log.parquet", events(*log, names="user item time what part"))
    write(folder / "items.csv", [{"item": i, "family": f} for i, f in FAMILY.items()])
    write(folder / "users.csv", [{"user": u} for u in (0, 1, 2, 3, 4, 5, 9)])
    write(folder / "some.csv", [{"user": u} for u in (9, 4, 0, 4)])
    write(folder / "mask.csv", [{"user": u, "item": i} for u, i in MASK])
    return prepared(
        folder,
        events={"files": "log.parquet", "time": {"column": "time", "unit": "us"}, "action": "what", "split": "part"},
        actions={"view": {}, "shown": {"weight": 0, "history": False}},
        users={"files": "users.csv"},
        items={"files": "items.csv", "group": "family"},
        split={"rule": "given"},
        tasks={"valid": {}} | {name: {**task, "retrieve": "users"} for name, task in TASKS.items()},
        faults={"duplicate": {"limit": 1.0}},
    )


def lists(ragged: Any, ids: list[int]) -> list[list[int]]:
    return [sorted(ids[v] for v in ragged.values[a:b]) for a, b in pairwise(ragged.offsets)]


@pytest.mark.parametrize("name", TASKS)
@given(log=LOGS)
@settings(derandomize=True, deadline=None, max_examples=6)
def test_items_ask_for_the_users_who_took_them(tmp_path_factory: Any, name: str, log: Any) -> None:
    data = world(tmp_path_factory.mktemp("log"), log)
    asks = {"targets": [name], **TASKS[name]}
    views = [e for e in log if e[3] == "view"]
    users, items = data.ids("user").to_pylist(), data.ids("item").to_pylist()
    held = [e for e in views if e[4] in asks["targets"]]
    candidates = {
        "trained": sorted({e[0] for e in views if e[4] == "train"}),
        "held_out": sorted({e[0] for e in held}),
        "some.csv": [0, 4, 9],
    }.get(asks.get("candidates", "all"), users)
    if not {e[0] for e in held} & set(candidates):
        with pytest.raises(DataError, match="no target is among the candidates"):
            build_task(data, name, history_length=5)
        return
    task = build_task(data, name, history_length=5)
    wanted = {i: sorted({e[0] for e in held if e[1] == i}) for i in sorted({e[1] for e in held})}
    assert task.retrieve == "users"
    assert [items[i] for i in task.query] == list(wanted)
    assert lists(task.targets, users) == list(wanted.values())
    assert [users[u] for u in task.candidates] == candidates
    assert lists(task.exclude, users) == [sorted(takers(asks, views, i)) for i in wanted]
    assert task.time is task.posted is task.expires is None


def takers(asks: dict[str, Any], views: Any, item: int) -> set[int]:
    """Who is not to be found for an item, because it was taken by then."""
    if asks.get("exclude") == "mask.csv":
        return {u for u, i in MASK if i == item}
    earlier = asks.get("exclude", ["train"] if asks["targets"] == ["valid"] else ["train", "valid"])
    alike = {i for i, f in FAMILY.items() if f == FAMILY[item]} if asks.get("exclude_groups") else {item}
    return {e[0] for e in views if e[1] in alike and e[4] in earlier}


def test_users_are_as_they_were_before_the_first_target(tmp_path: Path) -> None:
    hour = 3_600_000_000
    log = events(
        (1, 10, 1, "train"), (1, 11, 2, "train"), (1, 12, 9, "valid"),  # the moment is that of 8, the first target
        (2, 10, 3, "train"), (2, 13, 8, "valid"), (2, 11, 9, "valid"),
        (3, 12, 4, "train"),
        names="user item time part",
    )  # fmt: skip
    write(tmp_path / "log.parquet", [{**e, "time": e["time"] * hour} for e in log])
    data = prepared(
        tmp_path,
        events={"files": "log.parquet", "time": {"column": "time", "unit": "us"}, "split": "part"},
        split={"rule": "given"},
        tasks={"valid": {"retrieve": "users"}},
    )
    task = build_task(data, "valid", history_length=3)
    (batch,) = task.batches
    ids = data.ids("item").to_pylist()
    assert [[ids[i] for i in row if i >= 0] for row in batch.history.tolist()] == [[11, 10], [10], [12]]
    ages = np.expm1(batch.history_age.numpy())
    assert ages[0, :2].tolist() == pytest.approx([6, 7], rel=1e-5)
    assert ages[1:, 0].tolist() == pytest.approx([5, 4], rel=1e-5)
    assert batch.item.tolist() == [-1, -1, -1]


class Affinity:
    """Scores of users for items, as a table."""

    device = torch.device("cpu")

    def __init__(self, scores: list[list[float]]) -> None:
        self.scores = torch.tensor(scores)

    def __len__(self) -> int:
        return len(self.scores)

    def write(self, queries: Any, out: Any) -> None:
        out.copy_(self.scores[queries])


def test_metrics_of_a_matching_worked_by_hand(tmp_path: Path) -> None:
    """Item 10 wants user 3, who stands second once user 1 is masked; item 11 wants 1 and 4, first and third."""
    log = [(1, 10, "train"), (2, 11, "train"), (3, 12, "train"), (4, 12, "train"),
           (3, 10, "valid"), (1, 11, "valid"), (4, 11, "valid")]  # fmt: skip
    write(tmp_path / "log.parquet", events(*log, names="user item part"))
    data = prepared(
        tmp_path,
        events={"files": "log.parquet", "split": "part"},
        split={"rule": "given"},
        tasks={"valid": {"retrieve": "users"}},
    )
    task = build_task(data, "valid", history_length=3)
    # users 1, 2, 3, 4; user 1 is masked for item 10, user 2 for item 11
    scores = [[9.0, 3.0, 2.0, 1.0], [4.0, 9.0, 3.0, 2.0]]
    found = evaluate_scores(task, Affinity(scores), ks=(1, 2), metrics=("recall", "hr", "mrr", "coverage"))
    assert found.values == {
        "recall@1": (0 + 1 / 2) / 2, "recall@2": (1 + 1 / 2) / 2, "hr@1": 0.5, "hr@2": 1.0,
        "mrr@1": 0.5, "mrr@2": (1 / 2 + 1) / 2, "coverage@1": 2 / 4, "coverage@2": 3 / 4,
    }  # fmt: skip
    found.save(tmp_path / "eval", data.ids("item").take(task.query), data.ids("user"))
    rows = pq.read_table(tmp_path / "eval/predictions.parquet").to_pylist()
    assert [(r["item"], r["rank"], r["user"]) for r in rows if r["rank"] <= 3] == [
        (10, 1, 2), (10, 2, 3), (10, 3, 4), (11, 1, 1), (11, 2, 3), (11, 3, 4),
    ]  # fmt: skip
    assert pq.read_table(tmp_path / "eval/per_query.parquet").column_names[:2] == ["item", "targets"]


@pytest.mark.parametrize("wrong", [{"unit": "event"}, {"candidates": "live"}])
def test_an_item_asks_once_and_at_no_moment(tmp_path: Path, wrong: Any) -> None:
    write(tmp_path / "log.parquet", SMALL)
    with pytest.raises(ConfigError, match=r"tasks\.valid: retrieve users asks once for each item"):
        spec(tmp_path, tasks={"valid": {"retrieve": "users", **wrong}}, items={"files": "i", "posted": "p"})
