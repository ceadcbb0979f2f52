"""Vocabularies: hand-worked ids, special rows, limits, and the way to disk and back."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import DataError
from towers.features import FIRST, MISSING, OOV, IdMap, StoredVocabulary, Vocabulary


def test_the_most_frequent_come_first_and_ties_go_by_value() -> None:
    vocabulary = Vocabulary.fit(pa.array(["b", "a", "c", "c", None, "d"]))
    assert vocabulary.values.to_pylist() == ["c", "a", "b", "d"]
    assert vocabulary.counts.tolist() == [2, 1, 1, 1]
    assert len(vocabulary) == 7
    assert vocabulary.all_counts().tolist() == [0, 0, 0, 2, 1, 1, 1]
    assert vocabulary.encode(pa.array(["d", None, "zebra", "c"])).tolist() == [6, MISSING, OOV, 3]


def test_rare_values_and_those_beyond_the_size_are_out_of_vocabulary() -> None:
    column = pa.array(["a"] * 3 + ["b"] * 2 + ["c"] * 2 + ["d"])
    assert Vocabulary.fit(column, min_count=2).values.to_pylist() == ["a", "b", "c"]
    assert Vocabulary.fit(column, max_size=2).values.to_pylist() == ["a", "b"]
    assert Vocabulary.fit(column, max_size=2).encode(pa.array(["c", "d"])).tolist() == [OOV, OOV]


def test_weights_count_and_a_weight_of_nought_leaves_out() -> None:
    vocabulary = Vocabulary.fit(pa.array(["a", "b", "c", "b"]), np.array([5, 1, 0, 2]), min_count=2)
    assert vocabulary.values.to_pylist() == ["a", "b"]
    assert vocabulary.counts.tolist() == [5, 3]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([3, -1, 3], pa.int16()),
        pa.array(["Zürich", "zürich", "東京", "🦉", ""]),
        pa.array([True, False, True]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.chunked_array([["a"], ["b", "a"]]),
        pa.array([None, None], pa.string()),
        pa.array([], pa.int64()),
        pa.nulls(2),
    ],
)
def test_the_way_to_disk_and_back(tmp_path: Path, column: Any) -> None:
    vocabulary = Vocabulary.fit(column)
    vocabulary.save(tmp_path / "v.parquet")
    for again in (Vocabulary.load(tmp_path / "v.parquet"), StoredVocabulary(tmp_path / "v.parquet")):
        assert again.values.equals(vocabulary.values)
        assert again.counts.tolist() == vocabulary.counts.tolist()
        assert again.encode(column).tolist() == vocabulary.encode(column).tolist()
        assert (len(again), again.all_counts().tolist()) == (len(vocabulary), vocabulary.all_counts().tolist())
    on_disk = pq.read_table(tmp_path / "v.parquet")
    assert on_disk["id"].to_pylist() == list(range(FIRST, len(vocabulary)))


def test_values_of_another_type_are_compared_where_that_is_exact_and_refused_where_not() -> None:
    numbers = Vocabulary.fit(pa.array([1, 2, 2]))
    assert numbers.encode(pa.array([2.0, 1.0])).tolist() == [3, 4]
    assert numbers.encode(pa.nulls(1)).tolist() == [MISSING]
    narrow = Vocabulary.fit(pa.array([1, 2, 2], pa.int8()))
    assert narrow.encode(pa.array([1, 70_000])).tolist() == [4, OOV], "a new value is no error, however wide"
    words = Vocabulary.fit(pa.array(["3", "3.0"]))
    assert words.encode(pa.array(["3.0"], pa.large_string())).tolist() == [4]
    nothing = Vocabulary.fit(pa.nulls(2))
    assert nothing.encode(pa.array(["new", None])).tolist() == [OOV, MISSING]


@pytest.mark.parametrize(
    ("known", "given"),
    [(["3"], [3.0]), (["3"], [3]), (["true"], [True]), ([1], [1.5]), ([1], ["1"]), ([1], [True]), ([True], [1]),
     ([True], ["true"]), ([1], [[1]]), (["a"], [["a"]])],
)  # fmt: skip
def test_what_cannot_be_compared_is_an_error_and_not_out_of_vocabulary(known: list[Any], given: list[Any]) -> None:
    found, fitted = pa.array(given).type, pa.array(known).type
    said = re.escape(f"values of type {found}; this feature was fitted on {fitted}\n  where: request, feature 'x'")
    with pytest.raises(DataError, match=said):
        Vocabulary.fit(pa.array(known)).encode(pa.array(given), "request, feature 'x'")


@given(st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=30), st.integers(1, 3), st.integers(0, 5))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_every_kept_value_reads_back(values: list[str | None], min_count: int, max_size: int) -> None:
    vocabulary = Vocabulary.fit(pa.array(values, pa.string()), min_count=min_count, max_size=max_size)
    assert len(vocabulary.values) <= max_size
    assert vocabulary.encode(vocabulary.values).tolist() == list(range(FIRST, len(vocabulary)))
    kept = set(vocabulary.values.to_pylist())
    for value, code in zip(values, vocabulary.encode(pa.array(values, pa.string())).tolist(), strict=True):
        assert code == MISSING if value is None else (code >= FIRST) == (value in kept)
        if value in kept:
            assert values.count(value) >= min_count


def test_ids_and_rows() -> None:
    ids = IdMap(pa.array(["b", "a"]), "user")
    assert ids.rows(["a", "x", "b"]).tolist() == [1, -1, 0]
    assert ids.external(np.array([1, -1])).tolist() == ["a", None]
    assert "a" in ids
    assert 7 not in ids
    assert len(ids) == 2
    with pytest.raises(DataError, match="the user ids here are string"):
        ids.rows([7])
    numbers = IdMap(pa.array([30, -5, 7]), "item")
    assert numbers.rows([7, 30, 8]).tolist() == [2, 0, -1]
    assert numbers.external(np.array([[1], [-1]])).tolist() == [[-5], [-1]]
    assert True not in numbers
    for wrong, said in (
        (pa.array([1, 1]), "1 id ids occur more than once"),
        (pa.array([1, None]), "1 nulls"),
        (pa.array([1.0]), "ids are double"),
    ):
        with pytest.raises(DataError, match=said):
            IdMap(wrong, "id")
