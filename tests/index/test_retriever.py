"""Asking a bundle: the slow reference, known and raw users, filters, exclusions, live items, errors."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.index.small_market import END, FIELDS, HOUR, Market
from towers.errors import ConfigError, DataError
from towers.features import Feature, Featurizer, Kind
from towers.index import Attribute, Retriever
from towers.index.bundle import write_bundle
from towers.index.golden import Golden
from towers.index.planner import Plan
from towers.index.recipes import KINDS, IndexRecipe
from towers.index.similarity import Similarity

LATER = END + 10_000 * HOUR


def brute(market: Market, vector: np.ndarray, k: int, eligible: Any) -> tuple[list[Any], list[float]]:
    scores = market.embeddings @ vector
    rows = sorted((r for r in range(market.n) if eligible(r)), key=lambda r: -scores[r])[:k]
    return [market.ids[r] for r in rows], [float(scores[r]) for r in rows]


def test_a_raw_user_gets_the_best_live_items(retriever: Retriever, market: Market, at: dt.datetime) -> None:
    raw = {"field": "law", "history": [market.ids[2], market.ids[9]]}
    ids, scores = retriever.recommend(raw, 7, at=at)
    want = brute(market, market.vector("law", [9, 2], [0, 0]), 7, lambda r: market.live(r, END))
    assert ids.tolist() == want[0]
    np.testing.assert_allclose(scores, want[1], rtol=1e-5)
    assert ids.dtype == np.int64
    assert scores.dtype == np.float32


def test_a_known_user_brings_history_ages_and_exclusions(retriever: Retriever, market: Market) -> None:
    ids, _ = retriever.recommend(11, market.n, at=END)
    vector = market.vector("nursing", [4, 3], [1, 5])
    assert ids.tolist() == brute(market, vector, market.n, lambda r: market.live(r, END) and r not in (3, 4))[0]


def test_a_history_keeps_the_newest_events_that_have_happened(retriever: Retriever, market: Market) -> None:
    # user 30: items 0…5 at 30, 25, 20, 15, 10, 0 hours before the end; the schema keeps four.
    np.testing.assert_allclose(
        retriever.vector(30, at=END), market.vector("physics", [5, 4, 3, 2], [0, 10, 15, 20]), rtol=1e-5
    )
    np.testing.assert_allclose(
        retriever.vector(30, at=END - 12 * HOUR), market.vector("physics", [3, 2, 1, 0], [3, 8, 13, 18]), rtol=1e-5
    )


def test_times_and_actions_of_a_raw_history(retriever: Retriever, market: Market, at: dt.datetime) -> None:
    times = [at - dt.timedelta(hours=1), (at - dt.timedelta(hours=9)).isoformat()]
    raw = {"field": "law", "history": [market.ids[1], market.ids[2]], "history_times": times}
    raw["history_actions"] = ["click", "apply"]
    np.testing.assert_allclose(retriever.vector(raw, at=at), market.vector("law", [1, 2], [1, 9]), rtol=1e-5)


def test_an_empty_history_and_missing_fields_are_fine(retriever: Retriever, market: Market) -> None:
    np.testing.assert_allclose(retriever.vector({}), market.fields[1], rtol=1e-6)  # row 1: missing
    np.testing.assert_allclose(retriever.vector({"field": "alchemy"}), market.fields[2], rtol=1e-6)  # row 2: unknown


def test_many_requests_are_padded(retriever: Retriever, market: Market) -> None:
    result = retriever.recommend([11, -5], market.n, at=END)
    eligible = sum(market.live(r, END) for r in range(market.n))
    excluded = sum(market.live(r, END) for r in (3, 4))
    assert result.ids.shape == result.scores.shape == (2, market.n)
    assert np.isfinite(result.scores).sum(axis=1).tolist() == [eligible - excluded, eligible]
    assert (result.ids[~np.isfinite(result.scores)] == -1).all()
    one = retriever.recommend(11, market.n, at=END)
    assert result.ids[0, : len(one.ids)].tolist() == one.ids.tolist()


def test_no_users_no_answers(retriever: Retriever) -> None:
    assert retriever.recommend([], 5).ids.shape == (0, 5)


def test_unknown_history_items_are_skipped_and_counted(retriever: Retriever, market: Market) -> None:
    known = {"field": "law", "history": [market.ids[2]]}
    result = retriever.recommend([{"field": "law", "history": [999, market.ids[2], 1000]}, known], 5, at=END)
    assert result.unknown.tolist() == [2, 0]
    np.testing.assert_array_equal(result.ids[0], result.ids[1])
    assert retriever.recommend({"history": [999]}, 5).unknown == 1


def test_items_come_only_while_they_are_live(retriever: Retriever, market: Market) -> None:
    for at in (END, END - 30 * HOUR, LATER):
        ids, _ = retriever.recommend({}, market.n, at=at)
        assert sorted(ids.tolist()) == sorted(market.ids[r] for r in range(market.n) if market.live(r, at))
    exported, now = retriever.recommend({}, market.n, at="export").ids, retriever.recommend({}, market.n).ids
    assert set(exported) == set(retriever.recommend({}, market.n, at=END).ids)
    assert set(now) == set(retriever.recommend({}, market.n, at=LATER).ids)


def test_filters_and_exclusions_together(retriever: Retriever, market: Market) -> None:
    filters = [
        'place == "Berlin" and salary >= 8000',
        (Attribute("place") == "Berlin") & (Attribute("salary") >= 8000),
    ]
    raw, out = {"field": "law"}, [market.ids[8], market.ids[12], 123456]
    want = brute(
        market,
        market.vector("law", [], []),
        5,
        lambda r: r % 4 == 0 and (market.salary[r] or 0) >= 8000 and r not in (8, 12) and market.live(r, END),
    )[0]
    for f in filters:
        assert retriever.recommend(raw, 5, filter=f, exclude=out, at=END).ids.tolist() == want


def test_explain_says_how_and_how_many(retriever: Retriever, market: Market) -> None:
    live = sum(market.live(r, END) for r in range(market.n))
    paris = [r for r in range(market.n) if r % 4 == 1]
    found = retriever.recommend(11, 5, filter="place == 'Paris'", exclude=[market.ids[1]], at=END, explain=True)
    assert found.plan == Plan(
        "exact", items=market.n, eligible=sum(market.live(r, END) for r in paris), excluded=3, fetch=8,
        live=live, passing=len(paris),
    )  # fmt: skip
    everything = retriever.search(market.embeddings[0], 5, at=END, explain=True).plan
    assert everything is not None
    assert (everything.eligible, everything.live, everything.passing) == (live, live, market.n)
    none = retriever.recommend({}, 5, filter="place == 'Oslo'", at=END, explain=True)
    assert none.plan is not None
    assert (len(none.ids), none.plan.eligible, none.plan.passing) == (0, 0, 0)
    assert retriever.recommend({}, 5, at=END).plan is None


def test_exclusions_for_each_of_many(retriever: Retriever, market: Market) -> None:
    first, second = market.ids[11], market.ids[22]
    ids, _ = retriever.recommend([{}, {}], market.n, exclude=[[first], [second]], at=END)
    assert first not in ids[0]
    assert first in ids[1]
    assert second in ids[0]
    assert second not in ids[1]
    ids, _ = retriever.recommend([{}, {}], market.n, exclude=[first], at=END)
    assert first not in ids


def test_search_similar_len_in_and_attributes(retriever: Retriever, market: Market) -> None:
    assert len(retriever) == market.n
    assert market.ids[3] in retriever
    assert 5 not in retriever
    assert "x" not in retriever
    vector = market.embeddings[3]
    want = brute(market, vector, 4, lambda r: market.live(r, END))[0]
    assert retriever.search(vector, 4, at=END).ids.tolist() == want
    assert retriever.search(vector[None], 4, at=END, exact=True).ids[0].tolist() == want
    near = brute(market, vector, 4, lambda r: market.live(r, END) and r != 3)[0]
    assert retriever.similar(market.ids[3], 4, at=END).ids.tolist() == near
    assert retriever.similar(market.ids[3], 3, exclude=near[:1], at=END).ids.tolist() == near[1:]
    assert retriever.attributes([market.ids[2], market.ids[0]])["place"].to_pylist() == ["Rome", "Berlin"]


def test_string_ids_go_out_as_strings(tmp_path: Path) -> None:
    market = Market(strings=True)
    retriever = Retriever.open(write_bundle(market.contents(), tmp_path / "strings"))
    ids, scores = retriever.recommend(["ann", "bob"], market.n, at=END)
    assert isinstance(ids[0, 0], str)
    assert set(ids[~np.isfinite(scores)]) == {None}
    assert (
        retriever.recommend("bob", 3, exclude=["job-0"], at=END).ids.tolist() == [i for i in ids[1] if i != "job-0"][:3]
    )
    with pytest.raises(DataError, match="string"):
        retriever.recommend(7)


@pytest.mark.parametrize("users", [np.array([11, 30]), pa.array([11, 30]), [11, 30], (11, 30)])
def test_many_ids_in_any_list(retriever: Retriever, users: Any) -> None:
    np.testing.assert_array_equal(
        retriever.recommend(users, 3, at=END).ids, retriever.recommend([11, 30], 3, at=END).ids
    )


def test_many_threads_get_the_same_answers(retriever: Retriever) -> None:
    want = retriever.recommend([11, -5, 30], 10, at=END)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: retriever.recommend([11, -5, 30], 10, at=END), range(64)))
    for ids, _ in answers:
        np.testing.assert_array_equal(ids, want.ids)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        (12, "unknown users.*12"),
        ([11, 999], "999"),
        ("ann", "int64"),
        (True, "int64"),
        ({"feild": "law"}, "feild.*known are.*field"),
        ({"field": object()}, "field"),
        ({"field": ["law"]}, "field"),
        ([{"field": "law"}, {"field": 3}], "field"),
        ({"history": "abc"}, "expected a list.*history"),
        ({"history": ["a"]}, "int64"),
        ({"history": [0], "history_times": []}, "0 entries"),
        ({"history": [0], "history_times": [1, 2]}, "2 entries"),
        ({"history": [0], "history_times": ["2024-01-01T00:00:00"]}, "no time zone"),
        ({"history": [0], "history_actions": ["impression"]}, "apply.*click"),
        ([{"field": "law"}, 11], "separately"),
        ([11, {"field": "law"}], "int64"),
    ],
)
def test_bad_requests_say_what_is_wrong(retriever: Retriever, users: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        retriever.recommend(users)


def test_other_bad_arguments(retriever: Retriever, market: Market) -> None:
    with pytest.raises(ConfigError, match=r"k is 0"):
        retriever.recommend({}, 0)
    with pytest.raises(ConfigError, match=r"expected \[Q, 8\]"):
        retriever.search(np.zeros((1, 9), np.float32))
    with pytest.raises(ConfigError, match="not finite"):
        retriever.search(np.full(8, np.nan, np.float32))
    with pytest.raises(DataError, match="no item 5"):
        retriever.similar(5)
    with pytest.raises(DataError, match="no time zone"):
        retriever.recommend({}, at=dt.datetime(2024, 1, 1))
    with pytest.raises(DataError, match="1 lists"):
        retriever.recommend([{}, {}], exclude=[[1]])
    with pytest.raises(ConfigError, match=r"no attribute 'city'.*place, salary"):
        retriever.recommend({}, filter='city == "Berlin"')


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_index_is_written_opened_and_asked(kind: str, tmp_path: Path) -> None:
    market = Market(300)
    recipe = IndexRecipe(kind, nlist=4 if kind.startswith("ivf") else 0)
    retriever = Retriever.open(write_bundle(market.contents(recipe), tmp_path / kind))
    assert retriever.bundle.manifest["index"]["kind"] == kind
    want = brute(market, market.vector("law", [], []), 20, lambda r: market.live(r, END) and r % 4 == 1)[0]
    got = retriever.recommend({"field": "law"}, 20, filter="place == 'Paris'", at=END).ids.tolist()
    assert got == want
    ids, scores = retriever.recommend([11, -5, 30], 10, at=END)
    assert np.isfinite(scores).all()
    assert all(market.live(market.ids.index(i), END) for i in ids.ravel())


def test_cosine_bundles_know_their_vectors(tmp_path: Path) -> None:
    market = Market()

    def unit(x: np.ndarray) -> np.ndarray:
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    market.embeddings, market.fields, market.mix = unit(market.embeddings), unit(market.fields), market.mix * 0
    cosine = {
        "similarity": Similarity("cosine", 0.05),
        "golden": [Golden({"field": "law"}, market.vector("law", [], []))],
    }
    retriever = Retriever.open(write_bundle(market.contents(**cosine), tmp_path / "cosine"))
    assert retriever.bundle.similarity == Similarity("cosine", 0.05)
    assert abs(retriever.recommend({"field": "law"}, 60).scores).max() <= 1 + 1e-6
    with pytest.raises(ConfigError, match="norm"):
        retriever.search(2 * market.fields[0])


def test_an_id_feature_reads_its_column_in_a_request(tmp_path: Path) -> None:
    market = Market()
    declared = (Feature("member", Kind.ID), *market.schema.users)
    table = pa.table({"user": market.user_ids, "field": FIELDS})
    market.schema = replace(market.schema, users=declared)
    Featurizer.fit(declared, table, np.ones(3, np.int64), id_column="user").save(tmp_path, "user")
    market.users = Featurizer.load(tmp_path, "user", declared)  # as an export gets it
    market.known = replace(market.known, features=market.users.encode(table))
    retriever = Retriever.open(write_bundle(market.contents(), tmp_path / "ids"))
    raw = {"user": 11, "field": "law"}
    np.testing.assert_allclose(retriever.vector(raw), market.vector("law", [], []), rtol=1e-6)
