"""Every kind of feature: encodings worked by hand, the way to disk, and one row encoded as a whole table is."""

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import DataError
from towers.features import MISSING, OOV, PAD, Feature, Featurizer, Kind
from towers.features.text import bucket, hashed, ngrams, words


def fitted(feature: Feature, column: Any, events: list[int] | None = None) -> Featurizer:
    table = pa.table({"x": column})
    return Featurizer.fit((feature,), table, np.array(events or [1] * len(table)), "x")


def encoded(featurizer: Featurizer, column: Any) -> Any:
    (array,) = featurizer.encode(pa.table({"x": column})).values()
    return array.tolist()


# --- by hand -----------------------------------------------------------------------------------------------


def test_id_counts_events_and_leaves_out_what_training_saw_too_little_of() -> None:
    f = fitted(Feature("me", Kind.ID, min_count=2), pa.array([7, 8, 9, 10]), [2, 0, 5, 1])
    assert encoded(f, pa.array([7, 8, 9, 10, 99, None])) == [4, OOV, 3, OOV, OOV, MISSING]
    (info,) = f.infos
    assert (info.width, info.cardinality, info.training_counts().tolist()) == (0, 5, [0, 0, 0, 5, 2])  # type: ignore[union-attr]


def test_categorical_counts_rows_that_training_saw() -> None:
    f = fitted(Feature("x", Kind.CATEGORICAL, ("x",)), ["a", "b", "b", "c"], [1, 9, 1, 0])
    assert encoded(f, ["a", "b", "c", None, "ä"]) == [4, 3, OOV, MISSING, OOV]


def test_categorical_list_keeps_the_order_pads_and_counts_repeats_once() -> None:
    f = fitted(Feature("x", Kind.CATEGORICAL_LIST, ("x",), max_length=3), [["a", "b"], ["b"], [], None])
    rows = [["a", "b"], ["b", "b", "a"], [], None, ["z", "y"], ["a", None], ["z", "a", "b", "c"], ["a", "b", "z", "b"]]
    assert encoded(f, rows) == [
        [4, 3, PAD],
        [3, 4, PAD],
        [MISSING, PAD, PAD],
        [MISSING, PAD, PAD],
        [OOV, PAD, PAD],  # two unknown values weigh no more than one
        [4, MISSING, PAD],
        [OOV, 4, 3],
        [4, 3, OOV],
    ]


def test_a_long_list_is_cut() -> None:
    f = fitted(Feature("x", Kind.CATEGORICAL_LIST, ("x",), max_length=2), [["a", "b", "c"]])
    assert encoded(f, [["c", "b", "a"]]) == [[5, 4]]


def test_numbers_are_normalised_by_what_training_saw_and_clipped() -> None:
    f = fitted(Feature("x", Kind.NUMERIC, ("x",)), [1.0, 3.0, None, 1e9], [1, 1, 1, 0])
    assert encoded(f, [1.0, 3.0, None, 1e9, -1e9]) == [[-1, 0], [1, 0], [0, 1], [10, 0], [-10, 0]]


def test_numbers_on_a_logarithmic_scale() -> None:
    f = fitted(Feature("x", Kind.NUMERIC, ("x",), log=True), [0.0, np.e**2 - 1])
    assert np.allclose(encoded(f, [0.0, np.e**2 - 1, np.e - 1]), [[-1, 0], [1, 0], [0, 0]])
    assert np.allclose(encoded(f, [-(np.e - 1)]), [[-2, 0]])


@pytest.mark.parametrize("column", [[5, 5, 5], pa.array([None, None], pa.float64())])
def test_numbers_without_any_spread_do_not_divide_by_nought(column: Any) -> None:
    f = fitted(Feature("x", Kind.NUMERIC, ("x",)), column)
    mean = 5 if column[0] == 5 else 0
    assert encoded(f, pa.array([mean + 1.0, None])) == [[1, 0], [0, 1]]


def test_numbers_in_quantile_buckets() -> None:
    f = fitted(Feature("x", Kind.NUMERIC, ("x",), buckets=4), [0, 1, 2, 3, 4])  # edges 1, 2, 3
    assert encoded(f, pa.array([-9, 0.9, 1, 2.5, 3, 99, None])) == [3, 3, 4, 5, 6, 6, MISSING]
    assert f.infos[0].cardinality == 7
    same = fitted(Feature("x", Kind.NUMERIC, ("x",), buckets=4), [2, 2, 2, 2])  # one edge is left
    assert encoded(same, [1, 2, 3]) == [3, 4, 4]
    assert same.infos[0].cardinality == 5
    none = fitted(Feature("x", Kind.NUMERIC, ("x",), buckets=4), pa.array([None], pa.float64()))
    assert encoded(none, pa.array([1.0, None])) == [3, MISSING]


def test_booleans_integers_and_decimals_are_numbers() -> None:
    for column in (
        pa.array([False, True]),
        pa.array([0, 1], pa.int8()),
        pa.array(["0", "1"]).cast(pa.decimal128(5, 1)),
    ):
        assert encoded(fitted(Feature("x", Kind.NUMERIC, ("x",)), column), column) == [[-1, 0], [1, 0]]


def test_vectors_keep_their_numbers_and_say_when_they_are_missing() -> None:
    feature = Feature("x", Kind.VECTOR, ("x",), dim=2)
    expected = [[0.5, -1, 0], [0, 0, 1]]
    for kind in (pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.float32())):
        column = pa.array([[0.5, -1.0], None], kind)
        assert encoded(fitted(feature, column), column) == expected
    assert encoded(fitted(feature, pa.array([[0.5, -1.0]])), pa.nulls(1)) == [[0, 0, 1]]


def test_text_is_words_first_then_their_ngrams() -> None:
    feature = Feature("x", Kind.TEXT, ("x",), buckets=1000, words=(1, 2), chars=(3,), max_length=6)
    column = ["Data nurse", "nurse", None, ""]
    f = fitted(feature, column)
    (vocabulary,) = (v.vocabulary for v in f._fitted.values())
    assert vocabulary is not None
    grams = ["data", "nurse", "data nurse", "<da", "dat", "ata"]
    codes = vocabulary.encode(pa.array([crc32(g.encode()) % 1000 for g in grams]))
    rows = encoded(f, column)
    assert rows[0] == codes.tolist()
    assert rows[1][0] == codes[1]
    assert rows[2] == rows[3] == [MISSING, PAD, PAD, PAD, PAD, PAD]
    assert encoded(f, ["zzz"])[0][0] == OOV


def test_text_of_several_columns_is_joined() -> None:
    feature = Feature("t", Kind.TEXT, ("a", "b"), buckets=1 << 18, chars=())
    table = pa.table({"a": ["registered", None], "b": ["nurse", "nurse"]})
    f = Featurizer.fit((feature,), table, np.ones(2, np.int64))
    assert f.columns == ("a", "b")
    one = Featurizer.fit(
        (Feature("t", Kind.TEXT, ("a",), buckets=1 << 18, chars=()),),
        pa.table({"a": ["registered nurse", "nurse"]}),
        np.ones(2, np.int64),
    )
    assert (f.encode(table)["t"] == one.encode(pa.table({"a": ["registered nurse", "nurse"]}))["t"]).all()


def test_words_and_ngrams_by_hand() -> None:
    assert words("C++ / C#, \N{FULLWIDTH LATIN CAPITAL LETTER N}URSE (m/f) Straße") == [
        "c++",
        "c#",
        "nurse",
        "m",
        "f",
        "strasse",
    ]
    assert words("") == words("—!") == []
    assert list(ngrams("an icu", (1, 2), (3,))) == ["an", "icu", "an icu", "<an", "an>", "<ic", "icu", "cu>"]
    assert list(ngrams("a", (), (3, 4))) == []  # the whole word is no n-gram of itself
    assert bucket("nurse", 97) == crc32(b"nurse") % 97
    assert hashed("a a a", 1 << 20, (1,), (), 9) == [crc32(b"a") % (1 << 20)]
    assert len(hashed("many words are here", 1 << 20, (1,), (), 2)) == 2


def test_a_word_said_often_may_stand_in_the_list_more_than_once() -> None:
    a, b = crc32(b"a") % (1 << 20), crc32(b"b") % (1 << 20)
    assert hashed("a a a b", 1 << 20, (1,), (), 9, repeats=True) == [a, a, b]  # 1 + ⌊log₂ 3⌋ and 1 + ⌊log₂ 1⌋
    assert hashed("a a a a b", 1 << 20, (1,), (), 2, repeats=True) == [a, a]


# --- what cannot be encoded --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feature", "column", "said"),
    [
        (Feature("f", Kind.NUMERIC, ("x",)), pa.array(["1"]), "column 'x' is string; numeric wants numbers"),
        (
            Feature("f", Kind.NUMERIC, ("x",)),
            pa.array([1.0, np.inf]),
            "column 'x' is infinite\n  where: jobs, feature 'f', row 1",
        ),
        (Feature("f", Kind.NUMERIC, ("x",), buckets=3), pa.array([-np.inf]), "infinite"),
        (Feature("f", Kind.CATEGORICAL_LIST, ("x",)), pa.array(["a|b"]), "is string; categorical_list wants lists"),
        (Feature("f", Kind.TEXT, ("x",), buckets=9), pa.array([1]), "is int64; text wants strings"),
        (
            Feature("f", Kind.VECTOR, ("x",), dim=2),
            pa.array([[1.0, 2.0], [1.0]]),
            "a vector of length 1; expected dim=2\n  where: jobs, feature 'f', row 1",
        ),
        (
            Feature("f", Kind.VECTOR, ("x",), dim=2),
            pa.array([[1.0]], pa.list_(pa.float32(), 1)),
            "vectors of length 1; expected dim=2",
        ),
        (
            Feature("f", Kind.VECTOR, ("x",), dim=1),
            pa.array([[1.0], [np.nan]]),
            "NaN or infinite entries\n  where: jobs, feature 'f', row 1",
        ),
        (Feature("f", Kind.VECTOR, ("x",), dim=1), pa.array([["1.0"]]), "vector wants lists of numbers"),
        (Feature("f", Kind.VECTOR, ("x",), dim=1), pa.array([1.0]), "vector wants lists of numbers"),
        (Feature("f", Kind.CATEGORICAL, ("y",)), pa.array(["a"]), r"no column 'y'; there are \['x'\]"),
    ],
)
def test_what_cannot_be_encoded_names_the_feature_and_the_row(feature: Feature, column: Any, said: str) -> None:
    good = {
        Kind.NUMERIC: pa.array([1.0, 2.0]), Kind.CATEGORICAL_LIST: pa.array([["a"]]), Kind.TEXT: pa.array(["a"]),
        Kind.VECTOR: pa.array([[0.0] * max(1, feature.dim)]), Kind.CATEGORICAL: pa.array(["a"]),
    }[feature.kind]  # fmt: skip
    name = feature.columns[0]
    f = Featurizer.fit((feature,), pa.table({name: good}), np.ones(len(good), np.int64))
    with pytest.raises(DataError, match=said) as e:
        f.encode(pa.table({"x": column}), "jobs")
    assert "feature 'f'" in e.value.where
    assert e.value.cure


def test_a_request_that_no_column_could_hold_is_an_error_for_its_sender() -> None:
    f = fitted(Feature("x", Kind.CATEGORICAL_LIST, ("x",)), [["a"]])
    for value in (["a", 1], {"a": 1}, 2**70):
        with pytest.raises(DataError, match="where: request"):
            f.encode_rows([{"x": value}])


def test_lists_of_one_length_are_lists() -> None:
    column = pa.array([["a", "b"]], pa.list_(pa.string(), 2))
    assert encoded(fitted(Feature("x", Kind.CATEGORICAL_LIST, ("x",), max_length=3), column), column) == [[3, 4, PAD]]


# --- the same everywhere -----------------------------------------------------------------------------------

FEATURES = (
    Feature("me", Kind.ID),
    Feature("place", Kind.CATEGORICAL, ("place",), min_count=2),
    Feature("skills", Kind.CATEGORICAL_LIST, ("skills",), max_length=3),
    Feature("pay", Kind.NUMERIC, ("pay",), log=True),
    Feature("age", Kind.NUMERIC, ("age",), buckets=3),
    Feature("title", Kind.TEXT, ("title", "place"), buckets=64, max_length=8),
    Feature("look", Kind.VECTOR, ("look",), dim=2),
)
NUMBER = st.floats(-1e6, 1e6, allow_nan=False, width=32)
ROW = st.fixed_dictionaries(
    {
        "user": st.integers(0, 9),
        "place": st.none() | st.sampled_from(["Köln", "東京", "", "Paris"]),
        "skills": st.none() | st.lists(st.none() | st.sampled_from("abcd"), max_size=5),
        "pay": st.none() | NUMBER,
        "age": st.none() | st.integers(0, 99),
        "title": st.none() | st.text(max_size=12),
        "look": st.none() | st.lists(NUMBER, min_size=2, max_size=2),
    }
)
TYPES = pa.schema(
    {
        "user": pa.int64(), "place": pa.string(), "skills": pa.list_(pa.string()), "pay": pa.float64(),
        "age": pa.int64(), "title": pa.string(), "look": pa.list_(pa.float64()),
    }
)  # fmt: skip


@given(st.lists(ROW, min_size=1, max_size=12), st.lists(ROW, min_size=1, max_size=5), st.data())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_one_row_encodes_as_the_table_does_byte_for_byte_from_memory_and_from_disk(
    tmp_path_factory: Any, seen: list[dict[str, Any]], asked: list[dict[str, Any]], data: Any
) -> None:
    events = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(seen), max_size=len(seen))))
    f = Featurizer.fit(FEATURES, pa.Table.from_pylist(seen, TYPES), events, "user")
    folder: Path = tmp_path_factory.mktemp("vocab")
    f.save(folder, "user")
    loaded = Featurizer.load(folder, "user", FEATURES)
    whole = f.encode(pa.Table.from_pylist(asked, TYPES))
    again = loaded.encode(pa.Table.from_pylist(asked, TYPES))
    for info, same in zip(f.infos, loaded.infos, strict=True):
        array = whole[info.name]
        assert array.shape == ((len(asked), info.width) if info.width else (len(asked),))
        assert array.dtype == (np.float32 if info.cardinality == 0 else np.int32)
        if info.cardinality:
            assert array.min() >= 0
            assert array.max() < info.cardinality
        assert again[info.name].tobytes() == array.tobytes()
        assert (info.name, info.kind, info.width, info.cardinality) == (
            same.name,
            same.kind,
            same.width,
            same.cardinality,
        )
    for i, row in enumerate(asked):
        given_only = {k: v for k, v in row.items() if v is not None}  # absent and null are the same
        for one in (f.encode_rows([row]), loaded.encode_rows([given_only])):
            assert {n: a.tobytes() for n, a in one.items()} == {n: a[i : i + 1].tobytes() for n, a in whole.items()}


def test_nothing_but_training_rows_is_looked_at() -> None:
    rows = [
        {"user": 1, "place": "Köln", "pay": 1.0},
        {"user": 1, "place": "Köln", "pay": 3.0},
        {"user": 2, "place": "Rom", "pay": 1e6},
    ]
    table = pa.Table.from_pylist(rows)
    features = (
        Feature("me", Kind.ID),
        Feature("place", Kind.CATEGORICAL, ("place",)),
        Feature("pay", Kind.NUMERIC, ("pay",)),
    )
    with_it = Featurizer.fit(features, table, np.array([1, 1, 0]), "user").encode(table)
    without = Featurizer.fit(features, table.slice(0, 2), np.array([1, 1]), "user").encode(table)
    for name, array in with_it.items():
        assert array.tolist() == without[name].tolist()


def test_repeated_words_reach_the_encoded_text_and_are_counted_once_by_text() -> None:
    feature = Feature("title", Kind.TEXT, ("x",), max_length=6, words=(1,), chars=(), buckets=1 << 18, repeats=True)
    f = fitted(feature, ["wire wire drawer", "drawer"])
    assert (counts := f.infos[0].training_counts()) is not None
    assert sorted(counts.tolist())[-2:] == [1, 2]  # wire in one text, drawer in two
    row = encoded(f, ["wire wire wire new words"])[0]
    assert row[0] == row[1] > OOV
    assert row[2:] == [OOV, PAD, PAD, PAD]
