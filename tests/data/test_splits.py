"""Split rules: hand-worked examples, and what must hold for any log."""

import hashlib
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from data import splits
from data.blocks import SplitSpec
from data.instants import instant
from data.splits import LEFT_OUT, TEST, TRAIN, VALID
from tests.data.worlds import SMALL, events, prepared, write
from towers.errors import ConfigError, TowersError


def columns(*rows: tuple[int, ...]) -> list[np.ndarray]:
    return [np.array(c, np.int64) for c in zip(*rows, strict=True)]


# --- leave_last_out ----------------------------------------------------------------------------------------


def last_out(*rows: tuple[int, int, int], min_items: int = 3) -> list[int]:
    """Rows of (user, group, positive)."""
    user, group, positive = columns(*rows)
    return splits.leave_last_out(user, group, positive.astype(bool), min_items).tolist()


def test_the_last_group_is_test_and_the_one_before_it_valid() -> None:
    assert last_out((0, 5, 1), (0, 6, 1), (0, 7, 1), (0, 8, 1)) == [TRAIN, TRAIN, VALID, TEST]


def test_groups_count_from_their_first_event_and_everything_after_the_valid_target_is_left_out() -> None:
    rows = [(0, 5, 1), (0, 6, 1), (0, 5, 1), (0, 7, 1), (0, 6, 1), (0, 5, 1)]  # first events: 5, 6, 7
    assert last_out(*rows) == [TRAIN, VALID, LEFT_OUT, TEST, LEFT_OUT, LEFT_OUT]


def test_what_is_no_positive_is_never_a_target() -> None:
    rows = [(0, 5, 1), (0, 6, 1), (0, 7, 0), (0, 7, 1), (0, 9, 0)]
    assert last_out(*rows) == [TRAIN, VALID, LEFT_OUT, TEST, LEFT_OUT]


def test_users_with_too_few_groups_stay_in_train() -> None:
    rows = [(0, 5, 1), (0, 6, 1), (1, 5, 1), (1, 5, 1), (1, 6, 1), (1, 7, 1), (2, 5, 0)]
    assert last_out(*rows) == [TRAIN, TRAIN, TRAIN, TRAIN, VALID, TEST, TRAIN]


def test_with_few_groups_allowed_nothing_of_the_test_pair_stays_in_train() -> None:
    assert last_out((0, 5, 1), (0, 5, 1), (1, 5, 1), (1, 6, 1), (1, 6, 1), min_items=1) == [
        TEST, LEFT_OUT, VALID, TEST, LEFT_OUT,
    ]  # fmt: skip


# --- global_time -------------------------------------------------------------------------------------------

DAY = 86_400_000_000


def test_global_time_cuts_at_two_instants() -> None:
    assert splits.global_time(np.array([0, 9, 10, 19, 20, 99]), 10, 20).tolist() == [0, 0, 1, 1, 2, 2]


def cuts(valid: Any, test: Any, times: list[int]) -> tuple[int, int]:
    """Boundaries by the definition: the latest instant from which on at least that share of all events lies."""

    def begin(share: float, end: int) -> int:
        need = share * len(times)
        return max(t for t in times if sum(t <= x < end for x in times) >= need - 1e-9)

    return splits.boundaries(SplitSpec("global_time", valid, test), min(times), max(times), begin)


def test_cuts_by_instant_by_days_and_by_share() -> None:
    ten_days = [d * DAY for d in range(10)]
    assert cuts("1970-01-08", "1970-01-09", ten_days) == (7 * DAY, 8 * DAY)
    assert cuts("1970-01-08T02:00:00+02:00", "1970-01-09T00:00:00Z", ten_days) == (7 * DAY, 8 * DAY)
    assert cuts("2d", "3d", ten_days) == (4 * DAY + 1, 6 * DAY + 1)  # counted back from just after the last event
    assert cuts(0.1, 0.2, ten_days) == (7 * DAY, 8 * DAY)
    assert cuts("1.5d", 0.2, ten_days) == (8 * DAY - 3 * DAY // 2, 8 * DAY)


@pytest.mark.parametrize(
    ("valid", "test"), [("1970-01-05", "1970-01-04"), ("1d", "1980-01-01"), ("20d", "1d"), ("1960-01-01", "1d")]
)
def test_cuts_that_leave_a_split_empty_are_refused_in_readable_dates(valid: Any, test: Any) -> None:
    with pytest.raises(ConfigError, match=r"the log runs from 1970-01-01T00:00:00\+00:00 to 1970-01-10"):
        cuts(valid, test, [d * DAY for d in range(10)])


def test_an_instant_is_utc_unless_it_says_otherwise() -> None:
    assert instant("1970-01-02") == instant("1970-01-02T00:00:00Z") == instant("1970-01-02T02:00:00+02:00") == DAY


@given(st.lists(st.integers(0, 40), min_size=30, max_size=80), st.data())
@settings(derandomize=True, deadline=None, max_examples=15)
def test_shares_of_a_log_are_cut_where_the_definition_says(times: list[int], data: Any) -> None:
    """Through DuckDB: test is the smallest tail of the log that holds its share (up to ties), valid the one before."""
    import tempfile

    valid, test = data.draw(st.sampled_from([(0.1, 0.2), (0.2, 0.1), (0.25, 0.25)]))
    times = [t * DAY for t in times]
    try:
        expected = cuts(valid, test, times)
    except (ConfigError, ValueError):
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "log.parquet", events(*((0, i, t) for i, t in enumerate(times))))
        found = prepared(Path(folder), split={"rule": "global_time", "valid": valid, "test": test})
    assert tuple(found.info["split"]["boundaries_us"]) == expected


# --- random_per_user, cold_items ---------------------------------------------------------------------------


def random(
    *rows: tuple[int, int, int], valid: float = 0.25, test: float = 0.25, min_items: int = 3, seed: int = 0
) -> np.ndarray:
    user, group, positive = columns(*rows)
    pair = splits.pair_hash(user.astype(np.uint64), group.astype(np.uint64))
    return splits.random_per_user(user, group, positive.astype(bool), pair, valid, test, min_items, seed)


def test_random_per_user_takes_whole_shares_of_each_users_jobs() -> None:
    rows = [(u, g, 1) for u in range(50) for g in range(u % 5 + 1)]
    split = random(*rows)
    user = np.array([r[0] for r in rows])
    for u in range(50):
        n = u % 5 + 1
        counts = np.bincount(split[user == u], minlength=3).tolist()
        test, valid = (max(1, int(n / 4 + 0.5)), int(n / 4 + 0.5)) if n >= 3 else (0, 0)
        assert counts == [n - valid - test, valid, test]


def test_another_event_of_a_held_out_pair_goes_with_it_and_an_impression_of_it_is_left_out() -> None:
    rows = [(0, g, p) for g in range(8) for p in (1, 1, 0)]
    split = random(*rows).reshape(8, 3)
    assert (split[:, 0] == split[:, 1]).all()
    held_out = split[:, 0] > 0
    assert held_out.sum() == 4
    assert (split[held_out, 2] == LEFT_OUT).all()
    assert (split[~held_out, 2] == TRAIN).all()


def test_cold_items_hold_out_whole_jobs_in_about_the_right_shares() -> None:
    item = (np.arange(100_000) % 20_000).astype(np.uint64)
    split = splits.cold_items(item, 0.1, 0.3, seed=1)
    assert (split == np.tile(split[:20_000], 5)).all()
    assert np.bincount(split) / len(split) == pytest.approx([0.6, 0.1, 0.3], abs=0.01)
    assert (split != splits.cold_items(item, 0.1, 0.3, seed=2)).any()


def test_a_hash_is_the_beginning_of_the_md5_of_the_id_as_text() -> None:
    with duckdb.connect() as con:
        for ids, texts in (([7, -12, 2**40], ["7", "-12", str(2**40)]), (["7", "Zürich"], ["7", "Zürich"])):
            expected = [int.from_bytes(hashlib.md5(t.encode()).digest()[:8]) for t in texts]
            assert splits.id_hashes(con, pa.array(ids)).tolist() == expected


@pytest.mark.parametrize("rule", ["random_per_user", "cold_items"])
@pytest.mark.parametrize("kind", ["integer", "text"])
def test_new_users_and_items_leave_earlier_choices_as_they_were(tmp_path: Path, rule: str, kind: str) -> None:
    """The newcomers' ids come before and between the old ones, hence every row number changes."""
    name = (lambda i: i) if kind == "integer" else (lambda i: f"x{i:04d}")
    old = [(name(10 * u), name(10 * i), 1) for u in range(20) for i in range(u % 7, 40, 3)]
    new = [(name(10 * u - 5), name(5 * i), 1) for u in range(20) for i in range(-1, 80)]
    found = []
    for folder, log in (("before", old), ("after", new + old)):
        write(tmp_path / folder / "log.parquet", events(*log))
        data = prepared(tmp_path / folder, split={"rule": rule, "valid": 0.2, "test": 0.2})
        e = data.examples("train", "valid", "test")
        users, items = (
            data.ids(side).take(pa.array(r)).to_pylist() for side, r in (("user", e.user), ("item", e.item))
        )
        found.append(dict(zip(zip(users, items, strict=True), e.split.tolist(), strict=True)))
    before, after = found
    assert set(before.values()) == {TRAIN, VALID, TEST}
    assert {pair: after[pair] for pair in before} == before


def test_reposts_share_the_fate_of_their_family(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", events(*((u, i, 1) for u in range(30) for i in range(60))))
    families = [{"item": i, "family": None if i % 10 == 9 else f"f{i // 10}"} for i in range(60)]
    write(tmp_path / "items.csv", families)
    split = {"rule": "cold_items", "valid": 0.3, "test": 0.3}
    data = prepared(tmp_path, split=split, items={"files": "items.csv", "group": "family"})
    e = data.examples("train", "valid", "test")
    fates = {f: {int(s) for i, s in zip(e.item, e.split, strict=True) if families[i]["family"] == f}
             for f in (row["family"] for row in families) if f}  # fmt: skip
    assert len(fates) == 6
    assert all(len(splits_) == 1 for splits_ in fates.values())


# --- properties --------------------------------------------------------------------------------------------

RULES: dict[str, dict[str, Any]] = {
    "leave_last_out": {"min_items": 2},
    "random_per_user": {"valid": 0.2, "test": 0.3, "min_items": 2, "seed": 3},
    "cold_items": {"valid": 0.2, "test": 0.3, "seed": 4},
    "global_time": {"valid": 0.2, "test": 0.3},
}
EVENT = st.tuples(st.integers(0, 4), st.integers(0, 7), st.integers(0, 9), st.sampled_from(["view", "shown"]))
LOGS = st.lists(EVENT, min_size=12, max_size=40).map(lambda rows: list(dict.fromkeys(rows)))


@pytest.mark.parametrize("rule", RULES)
@given(log=LOGS, shuffled=st.randoms(use_true_random=False), several=st.booleans())
@settings(derandomize=True, deadline=None, max_examples=12)
def test_what_every_rule_guarantees(
    tmp_path_factory: Any, rule: str, log: list[Any], shuffled: Any, several: bool
) -> None:
    folder = tmp_path_factory.mktemp("log")
    rows = events(*log, names="user item time what")
    shuffled.shuffle(rows)
    cut = len(rows) // 2 if several else 0
    write(folder / "log" / "b.parquet", rows[cut:])
    if cut:
        write(folder / "log" / "a.parquet", rows[:cut])
    base = events(*sorted(log), names="user item time what")
    write(folder / "sorted" / "log" / "a.parquet", base)
    config: dict[str, Any] = {
        "events": {"files": "log", "time": {"column": "time", "unit": "us"}, "action": "what"},
        "actions": {"view": {}, "shown": {"weight": 0, "history": False}},
        "split": {"rule": rule, **RULES[rule]},
        "tasks": {"test": {}},
        "select": "test",
        "faults": {"duplicate": {"limit": 1.0}},
    }
    try:
        data = prepared(folder, **config)
    except TowersError as e:
        refused = str(e)
        event("refused")
    else:
        refused = ""
    if refused:
        assert "leaves a split empty" in refused or "no positive events" in refused
        return
    same = prepared(folder / "sorted", **config)
    train, held = data.examples("train"), data.examples("valid", "test")
    for name in ("user", "item", "time", "split", "history_end"):  # whatever the order of rows and files
        assert (
            getattr(data.examples("train", "valid", "test"), name)
            == getattr(same.examples("train", "valid", "test"), name)
        ).all()
    positive = held.weight > 0
    pairs = set(zip(held.user[positive].tolist(), held.item[positive].tolist(), strict=True))
    in_train = set(zip(train.user.tolist(), train.item.tolist(), strict=True))
    assert train.time is not None
    assert held.time is not None
    if rule in ("random_per_user", "cold_items"):
        assert not pairs & in_train
    if rule == "leave_last_out":
        chosen = train.weight > 0
        assert not pairs & set(zip(train.user[chosen].tolist(), train.item[chosen].tolist(), strict=True))
    if rule == "cold_items":
        assert not {i for _, i in pairs} & set(train.item.tolist())
    if rule == "global_time":
        assert train.time.max() < held.time.min()
    if rule == "leave_last_out":
        for u in np.unique(held.user):
            assert train.time[train.user == u].max(initial=-1) <= held.time[held.user == u].min()


# --- given -------------------------------------------------------------------------------------------------


def test_splits_given_by_file(tmp_path: Path) -> None:
    for name, rows in {"train": SMALL[:3], "valid": SMALL[3:4], "test": SMALL[4:5], "late": SMALL[5:]}.items():
        write(tmp_path / f"{name}.csv", rows)
    files = {name: f"{name}.csv" for name in ("train", "valid", "test", "late")}
    tasks = {"valid": {}, "test": {}, "both": {"targets": ["test", "late"]}}
    data = prepared(tmp_path, events={"files": files}, split={"rule": "given"}, tasks=tasks)
    assert data.splits == ("train", "valid", "test", "late")
    assert data.info["counts"]["positives"] == {"train": 3, "valid": 1, "test": 1, "late": 1}
    assert data.ids("item").take(data.examples("late").item).to_pylist() == [13]


def test_splits_given_by_column(tmp_path: Path) -> None:
    parts = ["train", "train", "valid", "train", "test", "test"]
    write(tmp_path / "log.jsonl", [{**r, "part": p} for r, p in zip(SMALL, parts, strict=True)])
    data = prepared(tmp_path, events={"files": "log.jsonl", "split": "part", "order": "time"}, split={"rule": "given"})
    assert data.info["counts"]["positives"] == {"train": 3, "valid": 1, "test": 2}
    assert data.examples("test").item.tolist() == [2, 3]


def test_groups_are_held_out_as_one(tmp_path: Path) -> None:
    """Three jobs, of which 12 and 13 are reposts: leave-last-out sees two groups."""
    write(tmp_path / "log.parquet", events((1, 10, 1), (1, 11, 2), (1, 12, 3), (1, 13, 4)))
    write(tmp_path / "items.csv", [{"item": i, "family": f} for i, f in ((10, "a"), (11, None), (12, "b"), (13, "b"))])
    data = prepared(tmp_path, items={"files": "items.csv", "group": "family"})
    assert data.info["counts"]["positives"] == {"train": 1, "valid": 1, "test": 1}
    assert data.examples("test").item.tolist() == [2]
    assert data.info["rejected"] == {"left_out_by_split": 1}


def test_a_refit_moves_validation_into_training(tmp_path: Path) -> None:
    from data.prepare import prepare
    from data.prepared import PreparedDataset
    from tests.data.worlds import spec

    write(tmp_path / "log.parquet", SMALL)
    refit = spec(tmp_path, items={"features": {"item_id": {"kind": "id"}}}).refitted()
    data = PreparedDataset(prepare(refit, tmp_path / "refit"))
    assert (data.name, data.refit, list(data.info["tasks"])) == ("small-refit", True, ["test"])
    assert data.info["counts"]["positives"] == {"train": 4, "valid": 0, "test": 2}
    assert data.events("item").tolist() == [2, 1, 1, 0]
    before = prepared(tmp_path, items={"features": {"item_id": {"kind": "id"}}})
    assert before.events("item").tolist() == [2, 0, 0, 0]
    # vocabularies are fitted again
    assert [f.featurizer("item").infos[0].cardinality for f in (before, data)] == [4, 6]
