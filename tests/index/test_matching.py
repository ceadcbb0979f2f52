"""An item's best users: the slow reference, takers, filters, and a bundle that proves that it means the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.small_market import DIM, END, Market
from towers.errors import BundleError, ConfigError, DataError
from towers.features import Ragged
from towers.index import Attribute, Retriever, layout
from towers.index.bitmaps import rows_where
from towers.index.bundle import write_bundle
from towers.index.golden import Golden
from towers.index.manifest import MANIFEST, SEAL, write_manifest
from towers.index.matching import match, takers
from towers.index.requests import KnownUsers
from towers.index.similarity import Similarity

USERS = 40
CITY = [["Berlin", "Paris", None][i % 3] for i in range(USERS)]


def crowd(market: Market, **changes: Any) -> KnownUsers:
    """Users without a history of whom each third has taken item 4, with embeddings that the user tower gives them."""
    fields = [["nursing", "law", "physics"][i % 3] for i in range(USERS)]
    taken = [[4, 7] if i % 3 == 0 else [] for i in range(USERS)]
    lengths = np.array([len(t) for t in taken])
    encoded = market.users.encode(pa.table({"field": fields}))
    rng = np.random.default_rng(5)
    known = KnownUsers(
        ids=pa.array(np.arange(USERS) * 3 - 9),
        features=encoded,
        histories=Ragged(np.zeros(USERS + 1, np.int64), np.zeros(0, np.int64)),
        actions=np.zeros(0, np.int64),
        times=np.zeros(0, np.int64),
        exclusions=Ragged(np.concatenate([[0], np.cumsum(lengths)]), np.array([i for t in taken for i in t], np.int64)),
        embeddings=(market.fields[encoded["field"]] + 0.1 * rng.standard_normal((USERS, DIM))).astype(np.float32),
        attributes=pa.table({"city": CITY}),
    )
    return replace(known, **changes)


@pytest.fixture(scope="module")
def known(market: Market) -> KnownUsers:
    return crowd(market)


@pytest.fixture(scope="module")
def folder(market: Market, known: KnownUsers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    golden = [Golden({"field": "law"}, market.vector("law", [], []), END)]
    contents = market.contents(known_users=known, golden=golden)
    return write_bundle(contents, tmp_path_factory.mktemp("matching") / "bundle")


@pytest.fixture(scope="module")
def retriever(folder: Path) -> Retriever:
    return Retriever.open(folder)


def brute(market: Market, known: KnownUsers, item: int, eligible: Any) -> tuple[list[int], list[float]]:
    assert known.embeddings is not None
    scores = known.embeddings @ market.embeddings[item]
    rows = sorted((u for u in range(USERS) if eligible(u)), key=lambda u: -scores[u])
    return [known.ids[u].as_py() for u in rows], [float(scores[u]) for u in rows]


def test_the_best_users_of_an_item(retriever: Retriever, market: Market, known: KnownUsers) -> None:
    ids, scores = retriever.match(market.ids[11], 5)
    want = brute(market, known, 11, lambda u: True)
    assert ids.tolist() == want[0][:5]
    np.testing.assert_allclose(scores, want[1][:5], rtol=1e-5)
    assert ids.dtype == np.int64


def test_who_has_taken_the_item_is_not_matched_with_it(retriever: Retriever, market: Market, known: KnownUsers) -> None:
    ids, _ = retriever.match(market.ids[4], USERS)
    assert ids.tolist() == brute(market, known, 4, lambda u: u % 3 != 0)[0]


def test_filters_and_exclusions_of_users(retriever: Retriever, market: Market, known: KnownUsers) -> None:
    out = [known.ids[1].as_py(), 10**9]  # the second is nobody
    for condition in ("city == 'Paris'", Attribute("city") == "Paris"):
        ids, _ = retriever.match(market.ids[4], USERS, filter=condition, exclude=out)
        assert ids.tolist() == brute(market, known, 4, lambda u: CITY[u] == "Paris" and u % 3 and u != 1)[0]
    assert retriever.user_attributes(ids)["city"].to_pylist() == ["Paris"] * len(ids)


def test_many_items_are_padded(retriever: Retriever, market: Market) -> None:
    result = retriever.match([market.ids[4], market.ids[5]], USERS)
    assert result.ids.shape == result.scores.shape == (2, USERS)
    assert np.isfinite(result.scores).sum(1).tolist() == [USERS - len(range(0, USERS, 3)), USERS]
    one = retriever.match(market.ids[4], USERS)
    assert result.ids[0, : len(one.ids)].tolist() == one.ids.tolist()


def test_what_cannot_be_matched_says_why(
    retriever: Retriever, market: Market, known: KnownUsers, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no item 1"):
        retriever.match(1)
    with pytest.raises(ConfigError, match="k is 0"):
        retriever.match(market.ids[0], 0)
    with pytest.raises(ConfigError, match="no attribute 'age'"):
        retriever.match(market.ids[0], filter="age > 3")
    golden = [Golden({"field": "law"}, market.vector("law", [], []), END)]
    plain = market.contents(known_users=replace(known, embeddings=None, attributes=None), golden=golden)
    without = Retriever.open(write_bundle(plain, tmp_path / "plain"))
    with pytest.raises(DataError, match="match=true"):
        without.match(market.ids[0])
    nameless = market.contents(known_users=replace(known, attributes=None), golden=golden)
    opened = Retriever.open(write_bundle(nameless, tmp_path / "nameless"))
    assert opened.user_attributes([known.ids[0].as_py()]).num_columns == 0
    with pytest.raises(ConfigError, match=r"users\.attributes"):
        opened.match(market.ids[0], filter="city == 'Paris'")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"embeddings": np.zeros((3, DIM), np.float32)}, "user embeddings are"),
        ({"embeddings": np.full((USERS, DIM), np.nan, np.float32)}, "not finite"),
        ({"attributes": pa.table({"city": ["Bern"]})}, "1 rows of attributes for 40 users"),
    ],
)
def test_users_that_do_not_fit_are_not_written(
    market: Market, known: KnownUsers, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        market.contents(known_users=replace(known, **changes))


def test_user_embeddings_in_another_order_are_found_out(folder: Path, tmp_path: Path) -> None:
    """With hashes that are right: as an export with a defect would write it."""
    from shutil import copytree

    copy = Path(copytree(folder, tmp_path / "copy"))
    vectors = np.load(copy / layout.USER_EMBEDDINGS)
    np.save(copy / layout.USER_EMBEDDINGS, vectors[::-1])
    facts = json.loads((copy / MANIFEST).read_text())
    for name in (MANIFEST, SEAL):
        (copy / name).unlink()
    write_manifest(copy, {k: v for k, v in facts.items() if k not in ("files", "format", "format_version")})
    with pytest.raises(BundleError, match="users score differently"):
        Retriever.open(copy)


@given(seed=st.integers(0, 100), k=st.integers(1, 12), items=st.integers(0, 3), share=st.sampled_from([0.0, 0.3, 1.0]))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_match_is_the_brute_force(seed: int, k: int, items: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    jobs, users = (rng.standard_normal((n, 3)).astype(np.float32) for n in (items, 9))
    allowed = rng.random(9) < share
    exclude = [np.flatnonzero(rng.random(9) < 0.3) for _ in range(items)]
    rows, scores = match(jobs, users, k, allowed=rows_where(allowed), exclude=exclude)
    assert rows.shape == scores.shape == (items, k)
    for m in range(items):
        eligible = [u for u in range(9) if allowed[u] and u not in exclude[m]]
        wanted = sorted(eligible, key=lambda u: -float(users[u] @ jobs[m]))[:k]
        assert rows[m].tolist() == wanted + [-1] * (k - len(wanted))
        np.testing.assert_allclose(scores[m, : len(wanted)], users[wanted] @ jobs[m], rtol=1e-4, atol=1e-5)
        assert (scores[m, len(wanted) :] == -np.inf).all()


def test_users_of_whom_nothing_is_known_may_have_no_length_where_the_similarity_is_cosine(
    market: Market, known: KnownUsers
) -> None:
    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    assert known.embeddings is not None
    users, items, cosine = unit(known.embeddings), unit(market.embeddings), Similarity("cosine", 0.05)
    users[3] = 0
    cosine.check(users, "user embeddings", nothing=True)
    with pytest.raises(ConfigError, match="row 3 has norm 0"):
        cosine.check(users, "item embeddings")
    users[3] = 0.5 * items[0]
    with pytest.raises(ConfigError, match=r"row 3 has norm 0\.5"):
        cosine.check(users, "user embeddings", nothing=True)


def test_takers_are_those_in_whose_list_the_item_stands(market: Market) -> None:
    known = crowd(market)
    assert takers(known, 7).tolist() == list(range(0, USERS, 3))
    assert takers(known, 5).tolist() == []
