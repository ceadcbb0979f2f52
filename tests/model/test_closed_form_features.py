"""Closed forms of what users and items say: against dense algebra, and as a tower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import ConfigError
from towers.features import FeatureInfo, Kind
from towers.model.closed_form.bags import BagWeights, tfidf, vectors
from towers.model.closed_form.factors import Factors, assign
from towers.model.closed_form.feature_ridge import feature_ridge
from towers.model.closed_form.interactions import Interactions
from towers.model.closed_form.lsa import lsa
from towers.model.encoders import EncoderSettings
from towers.model.history import HistorySettings
from towers.model.tables import FeatureTable
from towers.model.tower import TowerSettings
from towers.model.two_tower import TwoTower

SUM = TowerSettings(fusion="sum", body="none")
NONE = HistorySettings(pooling="none")
USERS, TRAINED, ITEMS, WORDS = 20, 16, 11, 18  # the last users have no events


def quiet(what: str, share: float) -> None:
    """No progress bar."""


def texts(n: int, width: int, seed: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Values 3 … WORDS + 2, some of them twice, then padding; unknown values (2) among them."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, WORDS + 3, (n, width))
    out = np.where(np.arange(width) < rng.integers(1, width + 1, (n, 1)), ids, 0).astype(np.int32)
    out[0, :2] = WORDS + 2  # the largest value occurs
    return out


def world(seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    r = rng.random((TRAINED, ITEMS)) < 0.3
    r[np.arange(TRAINED), np.arange(TRAINED) % ITEMS] = True
    user, item = np.nonzero(r)
    features = {"title": texts(USERS, 6, seed), "skills": texts(USERS, 9, seed + 1)}
    return Interactions(user, item, np.ones(len(user), np.float32), USERS, ITEMS, None,
                        {"text": texts(ITEMS, 5, seed + 2)}, features)  # fmt: skip


def info(name: str, width: int, vocabulary: str | None = None) -> FeatureInfo:
    return FeatureInfo(name, Kind.TEXT, width, WORDS + 3, np.ones(WORDS + 3, np.int64), vocabulary)


ITEM_ID = FeatureInfo("id", Kind.ID, 0, ITEMS + 3, np.ones(ITEMS + 3, np.int64))


def tables(x: Interactions) -> tuple[FeatureTable, FeatureTable]:
    ids = np.arange(ITEMS, dtype=np.int32) + 3
    return FeatureTable(x.user_features), FeatureTable({"id": ids, **x.item_features})


def scores(m: TwoTower, x: Interactions) -> np.ndarray[Any, np.dtype[np.float32]]:
    users, items = tables(x)
    with torch.no_grad():
        q = m.embed_users(users(torch.arange(USERS)))
        return (q @ m.embed_items(items(torch.arange(ITEMS))).T).numpy()


def phi(ids: np.ndarray[Any, Any], documents: np.ndarray[Any, Any], p: float, gamma: float) -> np.ndarray[Any, Any]:
    """The definition, slowly."""
    df = np.array([(documents == v).any(1).sum() for v in range(WORDS + 3)], float)
    df[:3] = 0
    idf = 1 + np.log((1 + len(documents)) / (1 + df))
    idf[:3] = 1.0
    out = np.zeros((len(ids), WORDS + 3))
    for row, values in enumerate(ids):
        weights = [idf[v] ** p for v in values if v != 0]
        for v in values[values >= 3]:
            out[row, v] += idf[v] ** p / sum(weights) ** gamma
    return out


# --- bags


@settings(derandomize=True, deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), p=st.floats(0.0, 2.0), gamma=st.floats(0.0, 1.0))
def test_vectors_are_tf_idf_with_a_power_of_length(seed: int, p: float, gamma: float) -> None:
    ids = texts(7, 6, seed)
    bag = tfidf(torch.from_numpy(ids), p, gamma)
    np.testing.assert_allclose(
        vectors(bag, torch.from_numpy(ids)).toarray(), phi(ids, ids, p, gamma), rtol=1e-4, atol=1e-6
    )


def test_a_value_that_no_document_had_counts_for_nothing() -> None:
    bag = tfidf(torch.tensor([[3, 4], [4, 0]]), 1.0, 1.0)
    np.testing.assert_allclose(
        vectors(bag, torch.tensor([[4, 9]])).toarray(), vectors(bag, torch.tensor([[4, 0]])).toarray()
    )


# --- ridge regression


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_at_full_rank_it_is_kernel_ridge_regression(gamma: float) -> None:
    x, lam, weights = world(), 0.3, {"title": 1.0, "skills": 2.0}
    f = feature_ridge(x, ITEMS, features=weights, regularisation=lam, length_power=gamma, progress=quiet)
    m = TwoTower([info("title", 6), info("skills", 9)], [ITEM_ID], dim=ITEMS, user=SUM, item=SUM, history=NONE).eval()
    assign(m, f, tables(x)[1].select(["id"]))

    kernel = np.zeros((USERS, USERS))
    for name, weight in weights.items():
        ids = x.user_features[name]
        part = phi(ids, ids[:TRAINED], 1.0, gamma)
        kernel += weight / 3 * (part @ part.T) / (part[:TRAINED] ** 2).sum(1).mean()
    known = kernel[:TRAINED, :TRAINED]
    assert np.trace(known) / TRAINED == pytest.approx(1.0)
    dual = np.linalg.solve(known + lam * np.eye(TRAINED), x.matrix().toarray()[:TRAINED])
    np.testing.assert_allclose(scores(m, x), kernel[:, :TRAINED] @ dual, atol=1e-4)


VECTOR = FeatureInfo("meaning", Kind.SENTENCE, 5, 0, np.ones(0, np.int64))


def with_vectors(x: Interactions) -> Interactions:
    """Vectors of four numbers and the flag of those that are missing: the first user's, and the last one's."""
    meaning = np.random.default_rng(5).standard_normal((USERS, 5)).astype(np.float32)
    meaning[:, 4] = 0
    meaning[[0, -1]] = [0, 0, 0, 0, 1]
    return replace(x, user_features={**x.user_features, "meaning": meaning})


def test_vectors_are_one_more_kernel() -> None:
    x, lam = with_vectors(world()), 0.3
    f = feature_ridge(x, ITEMS, features={"title": 1.0, "meaning": 3.0}, regularisation=lam, progress=quiet)
    m = TwoTower([info("title", 6), VECTOR], [ITEM_ID], dim=ITEMS, user=SUM, item=SUM, history=NONE).eval()
    assign(m, f, tables(x)[1].select(["id"]))

    part = phi(x.user_features["title"], x.user_features["title"][:TRAINED], 1.0, 0.5)
    meaning = x.user_features["meaning"][:, :4].astype(float)
    shares = [(part, 0.25), (meaning, 0.75)]
    kernel = sum(w * (v @ v.T) / (v[:TRAINED] ** 2).sum(1).mean() for v, w in shares)
    known = kernel[:TRAINED, :TRAINED]
    dual = np.linalg.solve(known + lam * np.eye(TRAINED), x.matrix().toarray()[:TRAINED])
    np.testing.assert_allclose(scores(m, x), kernel[:, :TRAINED] @ dual, atol=1e-4)


def test_users_without_a_vector_get_nothing_from_it() -> None:
    x = with_vectors(world())
    f = feature_ridge(x, 6, features={"meaning": 1.0}, progress=quiet)
    m = TwoTower([VECTOR], [ITEM_ID], dim=6, user=SUM, item=SUM, history=NONE).eval()
    assign(m, f, tables(x)[1].select(["id"]))
    there = np.abs(scores(m, x)).max(1)
    assert (there[[0, -1]] == 0).all()
    assert (there[1:-1] > 1e-3).all()


@settings(derandomize=True, deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), dim=st.integers(1, ITEMS - 1))
def test_at_lower_rank_no_other_tables_have_a_lower_loss(seed: int, dim: int) -> None:
    """The loss of W Q Qᵀ against that of the ridge solution in other subspaces: leading ones of Y, random ones."""
    x, lam = world(seed), 0.3
    ids = x.user_features["title"]
    part = phi(ids, ids[:TRAINED], 1.0, 0.5)[:TRAINED]
    part /= np.sqrt((part**2).sum(1).mean())
    y = x.matrix().toarray()[:TRAINED].astype(float)
    whole = part.T @ np.linalg.solve(part @ part.T + lam * np.eye(TRAINED), y)

    def loss(w: np.ndarray[Any, Any]) -> float:
        return float(((y - part @ w) ** 2).sum() + lam * (w**2).sum())

    q = feature_ridge(x, dim, features={"title": 1.0}, regularisation=lam, progress=quiet).item.numpy().astype(float)
    mine = np.linalg.qr(q)[0]
    rng = np.random.default_rng(seed)
    others = [np.linalg.svd(y)[2][:dim].T, np.linalg.qr(rng.standard_normal((ITEMS, dim)))[0]]
    assert all(loss(whole @ mine @ mine.T) <= loss(whole @ p @ p.T) + 1e-6 for p in others)


def test_items_of_busy_users_count_less_if_wanted() -> None:
    x = world()
    n = np.bincount(x.user, minlength=USERS)[x.user]
    scaled = Interactions(
        x.user, x.item, (n**-0.5).astype(np.float32), USERS, ITEMS, None, x.item_features, x.user_features
    )
    one = feature_ridge(x, 5, features={"title": 1.0}, user_power=0.5, progress=quiet)
    two = feature_ridge(scaled, 5, features={"title": 1.0}, progress=quiet)
    a, b = (f.user_bags["title"].table @ f.item.T for f in (one, two))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_an_item_that_nobody_took_scores_zero() -> None:
    x = world()
    keep = x.item != 4
    x = Interactions(x.user[keep], x.item[keep], x.weight[keep], USERS, ITEMS, None, x.item_features, x.user_features)
    f = feature_ridge(x, 6, features={"title": 1.0}, progress=quiet)
    assert f.item[4].abs().max() < 1e-5
    assert f.item[3].abs().max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"features": {}}, "name texts, lists or vectors"),
        ({"features": {"title": 0.0}}, "above 0"),
        ({"features": {"age": 1.0}}, r"'age'.*\['title', 'skills'\]"),
        ({"regularisation": 0.0}, "set a positive number"),
        ({"dim": ITEMS + 1}, r"lower model\.dim"),
    ],
)
def test_ridge_tells_what_it_cannot_do(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        feature_ridge(world(), **{"dim": 4, "features": {"title": 1.0}, "progress": quiet, **changes})


# --- match of texts


def siamese(dim: int) -> TwoTower:
    user, item = info("title", 6, "items.text"), info("text", 5)
    return TwoTower([user], [item], dim=dim, user=SUM, item=SUM, history=NONE).eval()


def test_with_a_direction_for_every_word_the_match_is_that_of_tf_idf() -> None:
    x = world()
    dim = WORDS + 1  # documents are at least as many, and words that occur fewer
    f = lsa(x, dim, item="text", user="title", leading=WORDS / dim, idf_power=1.5, progress=quiet)
    m = siamese(dim)
    assign(m, f, tables(x)[1].select(["text"]))

    item, user = x.item_features["text"], x.user_features["title"]
    wide = np.zeros((ITEMS, 6), np.int32)
    wide[:, :5] = item
    documents = np.concatenate([wide, user[:TRAINED]])
    a, b = phi(user, documents, 1.5, 0.5), phi(item, documents, 1.5, 0.5)
    length = np.sqrt((a[:TRAINED] ** 2).sum(1).mean() * (b**2).sum(1).mean())
    np.testing.assert_allclose(scores(m, x), a @ b.T / length, atol=1e-4)


@pytest.mark.parametrize("leading", [0.0, 0.001])
def test_random_directions_keep_the_match_on_average(leading: int) -> None:
    x, dim = world(), 8000
    a = phi(x.item_features["text"], x.item_features["text"], 1.5, 0.5)
    exact = torch.from_numpy(a @ a.T / (a**2).sum(1).mean()).float()
    got = lsa(x, dim, item="text", leading=leading, progress=quiet).item
    torch.testing.assert_close(got @ got.T, exact, rtol=0, atol=0.08)


def test_a_history_of_texts_is_matched_with_texts() -> None:
    x = world()
    m = TwoTower([], [info("text", 5)], dim=9, user=SUM, item=SUM, history=HistorySettings(pooling="mean")).eval()
    f = lsa(x, 9, item="text", leading=0.5, progress=quiet)
    items = tables(x)[1].select(["text"])
    assign(m, f, items)
    torch.testing.assert_close(m.embed_items(items(torch.arange(ITEMS))), f.item)
    torch.testing.assert_close(m.history_inputs(items(torch.arange(ITEMS))), f.item)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"item": "id"}, r"init\.item names 'id'.*\['text'\]"),
        ({"user": "text"}, r"init\.user names 'text'.*\['title', 'skills'\]"),
        ({"leading": 1.5}, "from 0 to 1"),
        ({"leading": 1.0, "dim": ITEMS}, r"fewer lead than there are texts \(11\)"),
        ({"leading": -0.5}, "from 0 to 1"),
    ],
)
def test_lsa_tells_what_it_cannot_do(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        lsa(world(), **{"dim": 8, "item": "text", "leading": 0.25, "progress": quiet, **changes})


# --- assigning


def test_tables_for_features_that_the_model_does_not_read_are_told() -> None:
    m = TwoTower([info("title", 6)], [ITEM_ID], dim=4, user=SUM, item=SUM, history=NONE)
    weights = BagWeights(torch.zeros(5, 4), torch.zeros(5), 0.5)
    items = tables(world())[1].select(["id"])
    with pytest.raises(ConfigError, match=r"tables for \['skills'\].*reads \['title'\].*model\.user\.include"):
        assign(m, Factors(torch.zeros(ITEMS, 4), user_bags={"skills": weights}), items)


def test_projections_of_vectors_that_the_model_does_not_project_are_told() -> None:
    as_they_are = replace(SUM, encoders=EncoderSettings(vector="identity"))
    m = TwoTower([VECTOR], [ITEM_ID], dim=4, user=as_they_are, item=SUM, history=NONE)
    items = tables(world())[1].select(["id"])
    with pytest.raises(ConfigError, match=r"projections of \['meaning'\].*encoders\.vector=linear"):
        assign(m, Factors(torch.zeros(ITEMS, 4), user_vectors={"meaning": torch.zeros(4, 4)}), items)


def test_values_beyond_the_tables_keep_their_weight_and_say_nothing() -> None:
    m = siamese(4)
    bag = m.item_inputs.encoder("text")
    before = bag.log_weight.weight[10:].clone()  # type: ignore[union-attr,operator]
    weights = BagWeights(torch.ones(10, 4), torch.full((10,), 0.7), 0.25)
    assign(m, Factors(torch.zeros(ITEMS, 4), item_bags={"text": weights}), tables(world())[1].select(["text"]))
    assert (bag.table.weight[10:] == 0).all()  # type: ignore[union-attr]
    assert (bag.table.weight[3:10] == 1).all()  # type: ignore[union-attr]
    torch.testing.assert_close(bag.log_weight.weight[10:], before)  # type: ignore[union-attr]
    assert float(bag.length_power.detach()) == 0.25  # type: ignore[arg-type]
