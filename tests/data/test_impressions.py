"""What was shown and not taken: whose, until when, and what never counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.impressions import Impressions, impression_codes
from data.prepared import PreparedDataset
from data.reading import TrainingParts
from tests.data.worlds import events, log_of, prepared, write
from towers.errors import ConfigError
from towers.features import Action

ACTIONS = {"shown": {"weight": 0, "history": False}, "open": {}, "save": {"weight": 0}}
# User 1 opens 10 and 20 in training; 40 is nobody's positive in training, 30 is user 2's.
LOG = events(
    (1, 30, 5, "shown"), (1, 10, 5, "shown"), (1, 10, 6, "open"),
    (1, 40, 7, "shown"), (1, 50, 7, "save"),
    (1, 20, 9, "open"), (1, 50, 9, "shown"), (1, 30, 11, "shown"),
    (2, 30, 1, "open"), (2, 50, 2, "open"), (2, 10, 2, "shown"), (2, 20, 99, "shown"),
    (1, 30, 90, "open"), (2, 10, 91, "open"), (1, 50, 95, "open"), (2, 20, 96, "open"),
    names="user item time action",
)  # fmt: skip
SPLIT = {"rule": "global_time", "valid": "1970-01-01T00:00:00.000090+00:00", "test": "1970-01-01T00:00:00.000095+00:00"}


def world(folder: Path, **changes: Any) -> PreparedDataset:
    write(folder / "log.parquet", LOG)
    return prepared(folder, **{"events": log_of(action="action"), "actions": ACTIONS, "split": SPLIT, **changes})


def shown(data: PreparedDataset, length: int) -> dict[tuple[int, int], list[int]]:
    """(user, item) of each training example → external ids of what stands beside it."""
    parts = TrainingParts(data, impressions=length)
    batch = parts.open(np.arange(len(parts.sizes)))(np.arange(len(parts)))
    users, items = data.ids("user").to_pylist(), data.ids("item").to_pylist()
    rows = zip(batch.user.tolist(), batch.item.tolist(), batch.impressions.tolist(), strict=True)
    assert batch.impressions.shape == (len(parts), length)
    return {(users[u], items[i]): [items[j] for j in row if j >= 0] for u, i, row in rows}


def test_by_hand(tmp_path: Path) -> None:
    """10 was shown to user 1 and opened, 40 is never opened in training, 50 was shown and saved: a history event.

    What lies in the validation days is not looked at, and user 2's impressions are hers alone.
    """
    beside = shown(world(tmp_path), 3)
    assert beside == {(1, 10): [30], (1, 20): [30], (2, 30): [], (2, 50): [10]}


def test_only_the_newest_are_kept_newest_first(tmp_path: Path) -> None:
    more = events(*((1, item, 8, "shown") for item in (61, 62)), (3, 61, 3, "open"), (3, 62, 3, "open"),
                  names="user item time action")  # fmt: skip
    write(tmp_path / "log.parquet", LOG + more)
    data = prepared(tmp_path, events=log_of(action="action"), actions=ACTIONS, split=SPLIT)
    assert shown(data, 2)[1, 20] == [62, 61]
    assert shown(data, 9)[1, 20] == [62, 61, 30]


def test_without_a_clock_all_of_a_users_impressions_count(tmp_path: Path) -> None:
    rows = [{**r, "split": "train" if r["time"] < 90 else "test"} for r in LOG]
    write(tmp_path / "log.parquet", rows)
    data = prepared(
        tmp_path, events={"files": "log.parquet", "action": "action", "split": "split"}, actions=ACTIONS,
        split={"rule": "given"}, tasks={"test": {}}, select="test",
    )  # fmt: skip
    assert shown(data, 5)[1, 10] == shown(data, 5)[1, 20] == [30]


def test_like_the_definition_on_a_random_log(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = list(dict.fromkeys(zip(rng.integers(0, 6, 300), rng.integers(0, 25, 300), rng.integers(0, 60, 300),
                                  rng.choice(["shown", "open"], 300), strict=True)))  # fmt: skip
    log = [dict(zip(("user", "item", "time", "action"), (int(u), int(i), int(t), str(a)), strict=True))
           for u, i, t, a in rows]  # fmt: skip
    write(tmp_path / "log.parquet", log)
    split = {
        "rule": "global_time",
        "valid": "1970-01-01T00:00:00.000040+00:00",
        "test": "1970-01-01T00:00:00.000050+00:00",
    }
    data = prepared(tmp_path, events=log_of(action="action"), actions=ACTIONS, split=split)
    parts = TrainingParts(data, impressions=99)
    assert parts.impressions is not None
    users, items = data.ids("user").to_pylist(), data.ids("item").to_pylist()
    early = [r for r in log if r["time"] < 40]
    taken = {(r["user"], r["item"]) for r in early if r["action"] == "open"}
    trained = {i for _, i in taken}
    e = parts.open(np.arange(len(parts.sizes))).take(np.arange(len(parts)))
    for k, row in enumerate(parts.impressions.rows(e).tolist()):
        user = users[e.user[k]]
        expected = sorted(
            r["item"] for r in early
            if r["user"] == user and r["action"] == "shown" and r["time"] <= e.time[k]
            and (user, r["item"]) not in taken and r["item"] in trained
        )  # fmt: skip
        assert sorted(items[j] for j in row if j >= 0) == expected


def test_what_is_an_impression() -> None:
    actions = (Action("open"), Action("shown", 0.0, False), Action("save", 0.0, True), Action("like", 1.0, False))
    assert impression_codes(actions) == [1]


def test_a_log_without_impressions_is_refused(tmp_path: Path) -> None:
    data = world(tmp_path)
    plain = data.examples("train")
    data.schema = type(data.schema)(users=(), items=(), actions=(Action("open"),))
    with pytest.raises(ConfigError, match="set impressions=0"):
        Impressions.of(data, plain, 5)
