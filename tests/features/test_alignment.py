"""Where the values of one fit stood in another, and which data do not continue others."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import ConfigError, DataError
from towers.features import FIRST, Action, Feature, Featurizer, Kind, Schema, Vocabulary
from towers.features.alignment import UNKNOWN, check, places

FEATURES = [
    Feature("job", Kind.ID),
    Feature("skills", Kind.CATEGORICAL_LIST, ("skills",)),
    Feature("salary", Kind.NUMERIC, ("salary",), buckets=4),
    Feature("age", Kind.NUMERIC, ("age",)),
]
NAMES = [f.name for f in FEATURES]


def fit(jobs: list[Any], events: list[int], skills: list[list[str]], salary: list[float]) -> Featurizer:
    table = pa.table({"item": jobs, "skills": skills, "salary": salary, "age": salary})
    return Featurizer.fit(FEATURES, table, np.array(events), "item")


MONDAY = fit([11, 22, 33], [5, 9, 1], [["sql"], ["sql", "r"], []], [10.0, 20.0, 30.0])
TUESDAY = fit([11, 22, 44], [9, 5, 7], [["go"], ["go", "r"], ["go"]], [10.0, 20.0, 30.0])


def test_a_value_is_found_where_it_stood_whatever_its_rank() -> None:
    """Monday: 22, 11, 33. Tuesday: 11, 44, 22. Skills: sql, r; then go, r."""
    found = places(MONDAY, TUESDAY, NAMES)
    assert found["job"].tolist() == [0, 1, 2, FIRST + 1, UNKNOWN, FIRST]
    assert found["skills"].tolist() == [0, 1, 2, UNKNOWN, FIRST + 1]
    assert found["salary"].tolist() == list(range(FIRST + 4)), "equal edges: equal buckets"
    assert set(found) == {"job", "skills", "salary"}, "a normalised number has no ids"


def test_a_bucket_stood_where_its_middle_lies() -> None:
    """Old edges 12.5, 15, 17.5 (quartiles of 10 to 20); new ones 20, 25, 30 of twice the numbers, and so on."""
    old = fit([1, 2, 3, 4, 5], [1] * 5, [[]] * 5, [10.0, 12.5, 15.0, 17.5, 20.0])
    new = fit([1, 2, 3, 4, 5], [1] * 5, [[]] * 5, [9.0, 11.0, 14.0, 16.0, 30.0])
    assert old.numbers("salary")["edges"] == [12.5, 15.0, 17.5]
    assert new.numbers("salary")["edges"] == [11.0, 14.0, 16.0]
    # middles: -inf, 12.5 (the second begins there), 15, inf
    assert places(old, new, ["salary"])["salary"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    wide = fit([1, 2, 3, 4, 5], [1] * 5, [[]] * 5, [10.0, 11.0, 12.0, 100.0, 200.0])
    # edges 11, 12, 100; middles -inf, 11.5, 56, inf
    assert places(old, wide, ["salary"])["salary"][FIRST:].tolist() == [3, 3, 6, 6]
    one = fit([1, 2], [1, 1], [[]] * 2, [None, None])  # type: ignore[list-item]
    assert places(old, one, ["salary"])["salary"][FIRST:].tolist() == [FIRST + 1], "one bucket: the middle one"


@given(
    st.lists(st.text(max_size=3), unique=True, max_size=12),
    st.lists(st.text(max_size=3), unique=True, max_size=12),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_places_lead_back_to_the_value(before: list[str], now: list[str]) -> None:
    tables = [pa.table({"item": pa.array(v, pa.string())}) for v in (before, now)]
    old, new = (Featurizer.fit(FEATURES[:1], t, np.ones(len(t), np.int64), "item") for t in tables)
    known: list[Vocabulary] = [f.vocabulary("job") for f in (old, new)]  # type: ignore[misc]
    for i, place in enumerate(places(old, new, ["job"])["job"][FIRST:]):
        value = known[1].values[i].as_py()
        assert place == UNKNOWN if value not in before else known[0].values[place - FIRST].as_py() == value


def test_values_of_another_type_are_refused() -> None:
    text = fit(["11"], [1], [[]], [1.0])
    with pytest.raises(DataError, match="values of type string; this feature was fitted on int64"):
        places(MONDAY, text, ["job"])


SCHEMA = Schema((), tuple(FEATURES), (), (Action("view"), Action("apply")), "time")


def refusal(new: Schema, was: list[str] = NAMES, reads: list[str] = NAMES) -> str:
    with pytest.raises(ConfigError) as e:
        check(SCHEMA, new, {"item": (was, reads)})
    return str(e.value)


def test_equal_declarations_and_other_limits_go_on() -> None:
    check(SCHEMA, SCHEMA, {"item": (NAMES, NAMES)})
    looser = [replace(f, min_count=3, max_size=10, max_length=7, fit=f.fit) for f in FEATURES]
    looser[2] = replace(looser[2], buckets=8)
    check(SCHEMA, replace(SCHEMA, items=tuple(looser)), {"item": (NAMES, NAMES)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"actions": (Action("apply"), Action("view"))}, "actions are ['apply', 'view'] and were ['view', 'apply']"),
        ({"clock": "order"}, "clock is order and was time"),
        ({"item_id": "string"}, "item_id is string and was int64"),
        ({"items": (FEATURES[0], replace(FEATURES[1], kind=Kind.CATEGORICAL), *FEATURES[2:])},
         "items.skills: kind is categorical and was categorical_list"),
        ({"items": (*FEATURES[:2], replace(FEATURES[2], buckets=0), FEATURES[3])}, "buckets is 0 and was 4"),
        ({"items": (*FEATURES[:2], replace(FEATURES[2], log=True), FEATURES[3])}, "log is True and was False"),
    ],
)  # fmt: skip
def test_what_means_something_else_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    assert said in refusal(replace(SCHEMA, **change))


def test_features_that_come_or_go_are_refused_with_the_cure_unless_nothing_reads_them() -> None:
    more = replace(SCHEMA, items=(*FEATURES, Feature("team", Kind.CATEGORICAL, ("team",))))
    assert "items.team is read and was not; declare it as it was, exclude it from the model" in refusal(
        more, reads=[*NAMES, "team"]
    )
    check(SCHEMA, more, {"item": (NAMES, NAMES)})
    fewer = replace(SCHEMA, items=tuple(FEATURES[:3]))
    assert "items.age was read and is no longer" in refusal(fewer, reads=NAMES[:3])
    check(SCHEMA, fewer, {"item": (NAMES[:3], NAMES[:3])})


def test_keys_belong_to_values_and_spread() -> None:
    many = np.arange(-5000, 5000)
    for values in (pa.array(many), pa.array(map(str, many))):
        one = Vocabulary(values, np.ones(len(many), np.int64)).keys
        order = np.random.default_rng(0).permutation(len(many))
        other = Vocabulary(values.take(pa.array(order)), np.ones(len(many), np.int64)).keys
        assert np.array_equal(other[FIRST:], one[FIRST:][order])
        assert (one[:FIRST] == 0).all()
        assert one.min() >= 0
        assert one.max() < 2**31 - 1
        assert len(np.unique(one[FIRST:], axis=0)) == len(many)
        shares = np.bincount(one[FIRST:, 0] % 10, minlength=10) / len(many)
        assert np.abs(shares - 0.1).max() < 0.02
        assert abs(np.corrcoef(one[FIRST:].T)[0, 1]) < 0.05
    assert np.array_equal(Vocabulary(pa.array([7], pa.int32()), np.ones(1, np.int64)).keys,
                          Vocabulary(pa.array([7], pa.int64()), np.ones(1, np.int64)).keys)  # fmt: skip
