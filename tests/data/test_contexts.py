"""Contexts: numbered once for each distinct combination, carried by examples, one query for each in a task."""

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import Collator
from data.prepared import PreparedDataset
from data.tasks import build_task
from tests.data.worlds import events, prepared, spec, stopped, write
from towers.errors import ConfigError
from towers.features import MISSING, OOV

NAMES = "user item time query place part"
SEARCHES = events(
    (1, 10, 1, "nurse", "Bern", "train"),
    (1, 11, 2, "cook", None, "train"),
    (2, 10, 1, "nurse", "Bern", "train"),
    (2, 12, 2, None, None, "train"),
    (1, 12, 3, "nurse", "Basel", "valid"),
    (2, 11, 3, "driver", "Bern", "test"),
    names=NAMES,
)
FEATURES = {"query": {"kind": "text", "words": [1], "chars": []}, "place": {"kind": "categorical"}}


def searches(folder: Path, rows: Any = SEARCHES, file: str = "log.parquet", **config: Any) -> PreparedDataset:
    write(folder / file, rows)
    config.setdefault("context", {"features": FEATURES})
    log = {"files": file, "time": {"column": "time", "unit": "us"}, "split": "part"}
    return prepared(folder, **{"events": log, "split": {"rule": "given"}, **config})


def asked(data: PreparedDataset, rows: Any) -> list[tuple[Any, Any]]:
    """(query, place) of context rows."""
    raw = data.raw("context").take(np.asarray(rows, np.int64))
    return list(zip(raw["query"].to_pylist(), raw["place"].to_pylist(), strict=True))


@pytest.mark.parametrize("file", ["log.parquet", "log.csv", "log.jsonl"])
def test_each_distinct_context_is_encoded_once_and_row_0_is_the_one_in_which_nothing_is_given(
    tmp_path: Path, file: str
) -> None:
    data = searches(tmp_path, SEARCHES, file)
    every = asked(data, range(len(data.contexts)))
    assert every[0] == (None, None)
    assert sorted(every[1:], key=str) == sorted({(r["query"], r["place"]) for r in SEARCHES} - {(None, None)}, key=str)
    assert data.info["counts"]["contexts"] == len(every)
    e = data.examples("train", "valid", "test")
    assert e.context is not None
    found = {
        (data.ids("user")[int(u)].as_py(), data.ids("item")[int(i)].as_py(), *asked(data, [x])[0])
        for u, i, x in zip(e.user, e.item, e.context, strict=True)
    }
    assert found == {(r["user"], r["item"], r["query"], r["place"]) for r in SEARCHES}


@pytest.mark.parametrize("file", ["log.parquet", "log.csv"])
def test_a_negative_zero_is_zero(tmp_path: Path, file: str) -> None:
    """They are equal; which of them would be written is up to chance, and to the engine."""
    rows = [{**row, "pay": 0.0 if i % 2 else -0.0, "near": "0.0 1.5" if i % 2 else "-0.0 1.5"}
            for i, row in enumerate(SEARCHES)]  # fmt: skip
    features = {"pay": {"kind": "numeric"}, "near": {"kind": "vector", "dim": 2}}
    data = searches(tmp_path, rows, file, context={"features": features, "separator": " "})
    assert len(data.contexts) == 2, "nothing given, and this one"
    raw = data.raw("context").take(np.array([1]))
    pay, near = raw["pay"].to_pylist()[0], raw["near"].to_pylist()[0]
    assert (pay, near) == (0.0, [0.0, 1.5])
    assert not np.signbit([pay, *near]).any()


def test_vocabularies_are_those_of_training(tmp_path: Path) -> None:
    data = searches(tmp_path)
    places = dict(zip(asked(data, range(len(data.contexts))), data.encoded("context")["place"].tolist(), strict=True))
    assert places[("driver", "Bern")] == places[("nurse", "Bern")] > OOV
    assert places[("nurse", "Basel")] == OOV  # of the validation split only
    assert places[("cook", None)] == places[(None, None)] == MISSING
    texts = dict(zip(asked(data, range(len(data.contexts))), data.encoded("context")["query"][:, 0], strict=True))
    assert texts[("nurse", "Bern")] == texts[("nurse", "Basel")] > OOV
    assert texts[("driver", "Bern")] == OOV
    assert texts[(None, None)] == MISSING


def test_a_batch_carries_the_rows_of_its_contexts(tmp_path: Path) -> None:
    data = searches(tmp_path)
    e = data.examples("train")
    batch = Collator(data.history, data.schema.clock, 5)(e)
    assert batch.context is not None
    assert batch.context.tolist() == list(e.context)  # type: ignore[arg-type]
    assert len(data.encoded("context")["query"]) == len(data.contexts)


def test_data_without_context_has_none(tmp_path: Path) -> None:
    data = searches(tmp_path, context={})
    assert data.examples("train").context is None
    assert "contexts" not in data.info["counts"]
    assert len(data.contexts) == 0
    assert data.encoded("context") == {}
    assert data.featurizer("context").infos == ()
    assert Collator(data.history, data.schema.clock, 5)(data.examples("train")).context is None


def test_one_job_found_by_two_queries_is_two_examples_and_by_one_query_twice_is_one(tmp_path: Path) -> None:
    twice = events((1, 10, 1, "cook", "Bern", "train"), (1, 10, 1, "cook", "Bern", "train"), names=NAMES)
    data = searches(tmp_path, [*SEARCHES, *twice], faults={"duplicate": {"limit": 0.5}})
    assert data.info["rejected"] == {"duplicate": 1}
    assert len(data.examples("train")) == 5


LOG = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(0, 5), st.integers(0, 3), st.sampled_from([None, "a", "b"]),
        st.sampled_from([None, "x"]), st.sampled_from(["train", "valid", "test"]),
    ),
    min_size=5, max_size=30, unique=True,
).map(lambda rows: list(dict.fromkeys([*rows, (9, 0, 0, "a", "x", "train"), (9, 0, 1, "a", "x", "test")])))  # fmt: skip


@given(log=LOG, unit=st.sampled_from(["user", "event"]))
@settings(derandomize=True, deadline=None, max_examples=12)
def test_what_a_user_asks_in_different_contexts_are_different_queries(
    tmp_path_factory: pytest.TempPathFactory, log: Any, unit: str
) -> None:
    rows = events(*log, names=NAMES)
    tasks = {"test": {"unit": unit, "exclude": []}}
    data = searches(
        tmp_path_factory.mktemp("log"), rows, tasks=tasks, select="test", faults={"duplicate": {"limit": 1}}
    )
    wanted = defaultdict(set)
    for r in rows:
        if r["part"] == "test":
            key = (r["user"], r["query"], r["place"], r["time"] if unit == "event" else None)
            wanted[key].add(r["item"])
    task = build_task(data, "test", history_length=5)
    users, items = data.ids("user").to_pylist(), data.ids("item").to_pylist()
    context = np.concatenate([b.context for b in task.batches])
    time = task.time if unit == "event" and task.time is not None else [None] * len(task)
    found = {
        (users[int(u)], *asked(data, [x])[0], None if t is None else int(t)): {
            items[i] for i in task.targets.values[a:b]
        }
        for u, x, t, (a, b) in zip(task.query, context, time, pairwise(task.targets.offsets), strict=True)
    }
    assert len(found) == len(task)
    assert found == dict(wanted)


def test_a_log_without_users_names_its_query_as_the_user(tmp_path: Path) -> None:
    log = {"files": "log.parquet", "user": "query", "split": "part"}
    rows = [r for r in SEARCHES if r["query"]]
    data = searches(tmp_path, rows, events=log, context={"features": {"query": FEATURES["query"]}})
    assert data.ids("user").to_pylist() == ["cook", "driver", "nurse"]
    nurse = data.known.values[data.known.offsets[2] : data.known.offsets[3]]
    assert data.ids("item").take(nurse).to_pylist() == [10]  # taken by two users: known to the query


def test_a_query_and_a_title_can_have_one_vocabulary_of_what_both_saw(tmp_path: Path) -> None:
    write(tmp_path / "jobs.parquet", [{"item": 10, "title": "ward nurse"}, {"item": 11, "title": "chef"},
                                      {"item": 12, "title": "van"}])  # fmt: skip
    data = searches(
        tmp_path,
        items={"files": "jobs.parquet", "features": {"title": FEATURES["query"]}},
        context={"features": {"query": {**FEATURES["query"], "vocabulary": "items.title"}}},
    )
    query, title = data.featurizer("context"), data.featurizer("item")
    assert query.infos[0].cardinality == title.infos[0].cardinality == 3 + 5  # ward nurse chef van cook
    for text in ("nurse", "ward", "cook", "chef", "driver"):
        assert (query.encode_rows([{"query": text}])["query"] == title.encode_rows([{"title": text}])["title"]).all()
    counts = title.infos[0].training_counts()
    assert counts is not None
    # three trained jobs, and the trained contexts "nurse, Bern" and "cook"
    assert counts[title.encode_rows([{"title": "nurse"}])["title"][0, 0]] == 2


def test_numbers_of_a_csv_that_cannot_be_read_stop(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", [{"user": 1, "item": 2, "time": 1, "page": "3"}, {"user": 1, "item": 3, "time": 2,
                                 "page": "x"}])  # fmt: skip
    events_ = {"files": "log.csv", "time": {"column": "time", "unit": "us"}}
    text = stopped(tmp_path, events=events_, context={"features": {"page": {"kind": "numeric"}}})
    assert "'x'" in text
    assert "log.csv" in text


def test_a_missing_column_stops_with_the_setting_that_names_it(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", SEARCHES)
    text = stopped(tmp_path, context={"features": {"words": {"kind": "text"}}})
    assert "context.features" in text
    assert "words" in text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"context": {"features": {"q": {"kind": "id"}}}}, "kind id is of users and items"),
        ({"context": {"file": "x"}}, "unknown settings ['file']"),
        ({"context": {"features": {"q": {"kind": "text", "vocabulary": "items.title"}}}}, "and there are []"),
        (
            {
                "items": {"files": "jobs.csv", "features": {"title": {"kind": "text"}}},
                "context": {"features": {"q": {"kind": "text", "words": [3], "vocabulary": "items.title"}}},
            },
            "same buckets, words and chars",
        ),
        (
            {"items": {"files": "jobs.csv", "features": {"a": {"kind": "text", "vocabulary": "items.b"}}}},
            "vocabulary is of user and context features",
        ),
    ],
)
def test_what_cannot_work_is_said_before_any_file_is_read(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as e:
        spec(tmp_path, **config)
    assert said in str(e.value)
