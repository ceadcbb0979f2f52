"""Concepts that go together: by hand, by loops, and in fewer dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.model.test_baselines import batch, dense, log, quiet, scores
from towers.errors import ConfigError
from towers.features import FIRST
from towers.model.baselines.coclick import CoclickTfidf, shares, together
from towers.model.baselines.tfidf import Tfidf
from towers.model.closed_form.bags import lists, tfidf, vectors
from towers.model.closed_form.coclick import coclick, similarity
from towers.model.closed_form.interactions import Interactions
from towers.model.closed_form.lsa import lsa

ITEMS, VALUES = 7, 6
many = settings(derandomize=True, deadline=None, max_examples=20)
CARE, NURSE, LAW = FIRST, FIRST + 1, FIRST + 2


def concepts(*rows: list[int]) -> dict[str, NDArray[Any]]:
    return {"concepts": np.array([r + [0] * (2 - len(r)) for r in rows], np.int32)}


def world(seed: int) -> Interactions:
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.arange(FIRST, FIRST + VALUES))[: rng.integers(1, 3)].tolist() for _ in range(ITEMS)]
    clicks = [rng.permutation(ITEMS)[: rng.integers(0, 5)].tolist() for _ in range(12)]
    return log(clicks, ITEMS, item_features=concepts(*rows))


def small() -> Interactions:
    """Two users clicked care and nursing, one law twice; nobody yet clicked items 4 (nursing) and 5 (law)."""
    return log([[0, 1], [0, 1], [2, 3]], 6, item_features=concepts([CARE], [NURSE], [LAW], [LAW], [NURSE], [LAW]))


def test_who_clicked_care_finds_the_new_job_for_a_nurse() -> None:
    x, query = small(), batch([[0]])
    plain = scores(Tfidf(features={"concepts": 1.0}), x, query, [4, 5])
    assert plain.tolist() == [[0.0, 0.0]]
    smoothed = scores(CoclickTfidf(features={"concepts": 1.0}, smoothing=0.5), x, query, [0, 4, 5])
    assert smoothed[0].tolist() == pytest.approx([1.0, 0.5, 0.0])  # itself; all that goes with care is nursing


def test_pairs_of_users_and_values_are_counted_once() -> None:
    x = small()
    values = together(
        x, vectors(tfidf(lists(x.item_features, "concepts", ""), 1.0, 0.5), lists(x.item_features, "concepts", ""))
    )
    pairs = sorted(zip(values.user.tolist(), values.item.tolist(), strict=True))
    assert pairs == [(0, CARE), (0, NURSE), (1, CARE), (1, NURSE), (2, LAW)]


def test_shares_add_up_to_one_where_there_is_something() -> None:
    from scipy import sparse

    got = shares(sparse.csr_array(np.array([[1.0, 3.0], [0.0, 0.0]])))
    assert got.toarray().tolist() == [[0.25, 0.75], [0.0, 0.0]]


@given(st.integers(0, 1000), st.floats(0, 4), st.floats(0, 1.5), st.floats(0, 1.5))
@many
def test_it_is_its_definition(seed: int, beta: float, a: float, c: float) -> None:
    x = world(seed)
    method = CoclickTfidf(
        features={"concepts": 1.0}, smoothing=beta, user_power=a, item_power=c, neighbours=None, item_length_power=0.2
    )
    state = method.fit(x, quiet)
    history, candidates = dense(state["history"]), dense(state["candidates"])
    y = np.zeros((x.n_users, candidates.shape[1]))
    for u, i in zip(x.user, x.item, strict=True):
        y[u] = np.maximum(y[u], candidates[i] > 0)
    n_u, n_v = np.maximum(y.sum(1), 1), np.maximum(y.sum(0), 1)
    s = np.array([[sum(y[:, v] * y[:, w] * n_u**-a) * n_v[w] ** -c * (v != w) for w in range(y.shape[1])]
                  for v in range(y.shape[1])])  # fmt: skip
    s /= np.where(s.sum(1, keepdims=True) > 0, s.sum(1, keepdims=True), 1.0)
    wanted = (history[1] + history[4]) @ (np.eye(len(s)) + beta * s) @ candidates.T
    assert np.allclose(scores(method, x, batch([[1, 4]]))[0], wanted, atol=1e-4)


def test_without_smoothing_it_is_tf_idf_and_less_is_refused() -> None:
    x = world(1)
    plain = scores(Tfidf(features={"concepts": 1.0}), x, batch([[0, 2]]))
    assert np.allclose(scores(CoclickTfidf(features={"concepts": 1.0}, smoothing=0.0), x, batch([[0, 2]])), plain)
    with pytest.raises(ConfigError, match=r"smoothing is -1"):
        CoclickTfidf(features={"concepts": 1.0}, smoothing=-1.0).fit(x, quiet)
    with pytest.raises(ConfigError, match=r"init\.smoothing is -1"):
        coclick(x, 4, item="concepts", smoothing=-1.0, progress=quiet)


@given(st.integers(0, 1000), st.floats(0, 1))
@many
def test_the_similarity_is_symmetric_and_shrinks(seed: int, a: float) -> None:
    x = world(seed)
    ids = lists(x.item_features, "concepts", "")
    s = similarity(together(x, vectors(tfidf(ids, 1.0, 0.5), ids)), a).toarray()
    assert np.allclose(s, s.T, atol=1e-6)
    assert not s.diagonal().any()
    assert np.abs(np.linalg.eigvalsh(s)).max(initial=0) <= 1 + 1e-5


def test_a_closed_form_scores_with_smoothed_tables_on_both_sides() -> None:
    """With the plain directions E of lsa: φ (I + β/2 S) E Eᵀ (I + β/2 S)ᵀ φᵀ."""
    x, beta = world(5), 1.5
    settings_ = {"item": "concepts", "leading": 0.25, "progress": quiet}
    plain, smoothed = lsa(x, 16, **settings_), coclick(x, 16, smoothing=beta, **settings_)
    ids = lists(x.item_features, "concepts", "")
    phi = vectors(tfidf(ids, 1.5, 0.5), ids)
    s = similarity(together(x, phi), 1.0).toarray()
    spread = np.eye(len(s)) + beta / 2 * s
    e = plain.item_bags["concepts"].table.numpy()
    wanted = phi @ spread @ e
    assert np.allclose(smoothed.item.numpy(), wanted, atol=1e-5)
    assert np.allclose(smoothed.item_bags["concepts"].table.numpy(), spread @ e, atol=1e-5)
    assert np.allclose(coclick(x, 16, smoothing=0.0, **settings_).item.numpy(), plain.item.numpy(), atol=1e-6)
