"""A history is a slice: against its definition, row by row, and end to end from the raw log to the batch."""

from collections import Counter
from math import log1p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import Collator
from data.histories import history_ends, stage
from data.tasks import build_task
from tests.data.worlds import HOUR, events, prepared, write

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=30)


@given(ROWS, st.sampled_from(["time", "order", "none"]))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_history_ends_against_the_definition(rows: Any, clock: str) -> None:
    """Rows of (user, split, time, eligible); splits 2 and 3 are both tests."""
    user, split, time, eligible = (np.array(c) for c in zip(*rows, strict=True)) if rows else [np.zeros(0, int)] * 4
    stages = stage(split.astype(np.int8))
    order = np.lexsort((time, stages, user))
    user, stages, time, eligible = user[order], stages[order], time[order], eligible[order].astype(bool)
    log = [i for i in range(len(user)) if eligible[i]]
    ends = history_ends(user.astype(np.int32), stages, time.astype(np.int64), eligible, clock)
    for i, end in enumerate(ends):
        mine = {j for j in log if user[j] == user[i]}
        if clock == "none":
            visible = {j for j in mine if stages[j] < stages[i] or stages[j] == stages[i] == 0}
        else:
            visible = {j for j in mine if (stages[j], time[j]) < (stages[i], time[i])}
        start = sum(user[j] < user[i] for j in log)
        assert set(log[start : start + end]) == visible


# --- end to end --------------------------------------------------------------------------------------------

PARTS = ["train", "train", "valid", "test", "late"]
ACTIONS = {"view": {}, "apply": {"weight": 3, "history": False}, "shown": {"weight": 0, "history": False}}
EVENT = st.tuples(
    st.integers(0, 3), st.integers(0, 5), st.integers(0, 6), st.sampled_from(["view", "view", "apply", "shown"]),
    st.sampled_from(PARTS),
)  # fmt: skip
EVERY_SPLIT = [(9, 0, t, "view", part) for t, part in enumerate(PARTS)]  # so that no split is ever empty
STAGE = {"train": 0, "valid": 1, "test": 2, "late": 2}


def world(folder: Path, log: Any, clock: str) -> Any:
    rows = [{**r, "time": r["time"] * HOUR} for r in events(*log, names="user item time what part")]
    write(folder / "log.parquet", rows)
    source: dict[str, Any] = {"files": "log.parquet", "action": "what", "split": "part"}
    if clock != "none":
        source[clock] = {"column": "time", "unit": "us"} if clock == "time" else "time"
    tasks = {
        "valid": {},
        "test": {"targets": ["test", "late"]},
        "moments": {"targets": ["test", "late"], "unit": "event"},
    }
    if clock == "none":
        tasks.pop("moments")
    return prepared(
        folder, events=source, actions=ACTIONS, split={"rule": "given"}, tasks=tasks, history_length=4,
        faults={"duplicate": {"limit": 1.0}},
    )  # fmt: skip


Moment = tuple[int, int]  # stage, time


def visible(log: Any, example: Any, clock: str) -> list[tuple[Moment, int]]:
    """(moment, item) of the views that an example may see, from the raw log by the definition, the newest first."""
    user, item, time, _, part = example
    views = {e for e in log if e[3] == "view" and e[0] == user}
    if clock == "none":
        views = {e for e in views if STAGE[e[4]] < STAGE[part] or (STAGE[e[4]] == STAGE[part] == 0 and e[1] != item)}
    else:
        views = {e for e in views if (STAGE[e[4]], e[2]) < (STAGE[part], time)}
    return sorted((((STAGE[e[4]], e[2]), e[1]) for e in views), reverse=True)


@pytest.mark.parametrize("clock", ["time", "order", "none"])
@given(log=st.lists(EVENT, min_size=5, max_size=40).map(lambda rows: list(dict.fromkeys([*rows, *EVERY_SPLIT]))))
@settings(derandomize=True, deadline=None, max_examples=15)
def test_the_history_in_a_batch_is_what_the_raw_log_says(tmp_path_factory: Any, log: Any, clock: str) -> None:
    if clock == "none":  # without a clock, time is no part of an event
        log = list(dict.fromkeys((u, i, 0, a, p) for u, i, _, a, p in log))
    data = world(tmp_path_factory.mktemp("log"), log, clock)
    users, items = data.ids("user").to_pylist(), data.ids("item").to_pylist()
    train = data.examples("train")
    batch = Collator(data.history, clock, 4, data.known)(train)
    assert len(train) == sum(e[4] == "train" for e in log)
    for row in range(len(train)):
        time = 0 if train.time is None else int(train.time[row]) // HOUR
        user, item = users[train.user[row]], items[train.item[row]]
        check(batch, row, visible(log, (user, item, time, "", "train"), clock), items, time, clock)
        known = {e[1] for e in log if e[0] == user and e[4] == "train" and e[3] != "shown"}
        offsets = batch.known.offsets
        assert [items[i] for i in batch.known.values[offsets[row] : offsets[row + 1]]] == sorted(known)
    for name in data.info["tasks"]:
        task = build_task(data, name, history_length=4, batch_size=3)
        first = 0
        for batch in task.batches:
            for row in range(len(batch)):
                user = users[int(batch.user[row])]
                part = "valid" if name == "valid" else "test"
                # a query of a whole split sees what came before the split, one at a moment what came before that
                moment = int(task.time[first + row]) // HOUR if clock == "time" else None
                when = moment if name == "moments" and moment is not None else -1
                if name == "moments" and clock == "order":
                    continue  # the order of a query is not handed on
                expected = visible(log, (user, None, when, "", part), clock)
                check(batch, row, expected, items, moment or 0, clock)
            assert (batch.item == -1).all()
            assert (batch.weight == 0).all()
            assert len(batch.known.values) == 0
            first += len(batch)
        assert first == len(task)


def check(batch: Any, row: int, expected: list[tuple[Moment, int]], items: list[int], time: int, clock: str) -> None:
    """One row of a batch; the order of events of one moment is free."""
    history = [items[i] if i >= 0 else None for i in batch.history[row].tolist()]
    there = sum(i is not None for i in history)
    assert history[there:] == [None] * (len(history) - there)  # no gaps
    assert there == min(4, len(expected))
    place = 0
    for moment in dict.fromkeys(m for m, _ in expected[:there]):
        tied = Counter(i for m, i in expected if m == moment)
        shown = Counter(history[place : min(there, place + tied.total())])
        assert shown <= tied
        place += shown.total()
    ages = batch.history_age[row].tolist()
    past = [t for (_, t), _ in expected[:there]] if clock == "time" else [time] * there
    assert ages == pytest.approx([log1p(max(0, time - t)) for t in past] + [0] * (len(history) - there))
    assert batch.history_action[row].tolist() == [0] * len(history)  # only views enter histories


def test_a_long_history_keeps_the_newest_and_a_user_without_one_gets_none(tmp_path: Path) -> None:
    log = [(1, i, i, "view", "train") for i in range(6)] + [
        (1, 0, 9, "view", "valid"),
        (2, 0, 3, "view", "test"),
        (2, 1, 4, "view", "late"),
    ]
    data = world(tmp_path, log, "time")
    (batch,) = build_task(data, "valid", history_length=4).batches
    assert batch.history.tolist() == [[5, 4, 3, 2]]
    assert batch.history_age.tolist() == [pytest.approx([log1p(9 - t) for t in (5, 4, 3, 2)])]
    (batch,) = build_task(data, "test", history_length=4).batches
    assert batch.history.tolist() == [[-1]]
    (batch,) = build_task(data, "moments", history_length=4).batches
    assert batch.history.tolist() == [[-1], [0]]  # at the second moment the first has happened


def test_without_a_clock_a_long_history_keeps_a_fixed_random_choice(tmp_path: Path) -> None:
    """Two hundred users saw the same twenty jobs; of each history four are kept, and no job is favoured."""
    log = [(u, i, 0, "view", "train") for u in range(200) for i in range(20)]
    ends = [(u, 20, 0, "view", part) for u in range(200) for part in ("valid", "test", "late")]
    data = world(tmp_path / "a", log + ends, "none")
    (batch,) = build_task(data, "valid", history_length=4).batches
    kept = np.bincount(batch.history.flatten().numpy(), minlength=20)
    assert kept.sum() == 4 * 200
    assert len(kept) == 20
    assert kept.min() > 20, "each is expected 40 times, give or take 6"
    assert kept.max() < 60
    # a choice of the pair alone: other rows, another order of the log, newcomers
    moved = world(tmp_path / "b", [(-5, 3, 0, "view", "train"), *reversed(log), *ends], "none")
    (again,) = build_task(moved, "valid", history_length=4).batches
    assert again.history.tolist() == batch.history.tolist()


def test_a_log_without_any_history_event_makes_empty_histories(tmp_path: Path) -> None:
    log = [(1, i, i, "apply", part) for i, part in enumerate(PARTS)]
    data = world(tmp_path, log, "time")
    batch = Collator(data.history, "time", 4, data.known)(data.examples("train"))
    assert batch.history.tolist() == [[-1], [-1]]
    assert data.known.values.tolist() == [0, 1]  # what was applied to is known all the same
    assert data.taken.offsets.tolist() == [0, 5]
    assert data.taken.values.tolist() == [0, 1, 2, 3, 4]  # … and in every split when it comes to serving
    assert batch.weight.tolist() == [3, 3]
