"""Eligible search against sorting all scores, for every kind of index and at every selectivity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import ConfigError
from towers.features import Ragged
from towers.index.bitmaps import rows_where
from towers.index.exact import exact_search
from towers.index.recall import check_recall, measure_index, recall_at
from towers.index.recipes import KINDS, IndexRecipe, build_index
from towers.index.search import VectorSearch
from towers.index.similarity import Similarity

N, DIM = 12_000, 16
DOT = Similarity("dot")


@pytest.fixture(scope="module")
def searches() -> dict[str, VectorSearch]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((N, DIM)).astype(np.float32)
    x += 2 * rng.standard_normal((20, DIM)).astype(np.float32)[rng.integers(0, 20, N)]
    recipes = {k: IndexRecipe(k, nprobe=24, ef_construction=40, ef_search=64).resolve(N, DIM) for k in KINDS}
    return {k: VectorSearch(build_index(x, r, DOT), x, r) for k, r in recipes.items()}


@pytest.mark.parametrize("rows", [None, np.arange(0, N, 7), np.arange(0, N, 100)])
@pytest.mark.parametrize("n", [1, 6])
def test_a_query_that_is_no_number_finds_nothing(rows: np.ndarray | None, n: int) -> None:
    """A tower that diverged gives such vectors; the others of the request have their answers."""
    x, asked = queries(N, 1), queries(n)
    asked[0, 3] = np.nan
    found, scores = exact_search(asked, x, 10, rows)
    assert (found[0] == -1).all()
    assert (scores[0] < -1e30).all()
    assert (found[1:] >= 0).all()


def queries(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def check(
    search: VectorSearch, q: np.ndarray, k: int, allowed: np.ndarray | None, exclude: list[list[int]] | None
) -> float:
    """Nothing ineligible, nothing twice, never short, scores right and sorted; returns recall."""
    lists = None
    if exclude is not None:
        offsets = np.cumsum([0, *map(len, exclude)])
        lists = Ragged(offsets, np.array([r for e in exclude for r in e], np.int64))
    rows, scores = search.search(q, k, allowed=None if allowed is None else rows_where(allowed), exclude=lists)
    assert rows.shape == scores.shape == (len(q), k)
    recall = []
    for i in range(len(q)):
        eligible = np.ones(len(search.embeddings), bool) if allowed is None else allowed.copy()
        if exclude is not None:
            eligible[exclude[i]] = False
        there = rows[i] >= 0
        mine = rows[i][there]
        assert len(mine) == len(set(mine.tolist())) == min(k, eligible.sum())
        assert there[: len(mine)].all()
        assert eligible[mine].all()
        assert (scores[i][~there] == -np.inf).all()
        np.testing.assert_allclose(scores[i][there], search.embeddings[mine] @ q[i], rtol=1e-4, atol=1e-4)
        assert (np.diff(scores[i][there]) <= 1e-5).all()
        best = np.sort((search.embeddings @ q[i])[eligible])[::-1][: len(mine)]
        recall.append((scores[i][there] >= best[-1:] - 1e-4).mean() if len(mine) else 1.0)
    return float(np.mean(recall))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 1 / N, 0.001, 0.05, 0.35, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_eligibility_holds_at_every_selectivity(
    searches: dict[str, VectorSearch], kind: str, share: float, k: int
) -> None:
    rng = np.random.default_rng(2)
    allowed = np.zeros(N, bool)
    allowed[rng.permutation(N)[: round(share * N)]] = True
    exclude = [rng.integers(0, N, 30).tolist(), [], np.flatnonzero(allowed)[:50].tolist()]
    recall = check(searches[kind], queries(3), k, allowed, exclude)
    if kind == "flat" or share * N <= 4096:
        assert recall == 1.0
    assert recall >= 0.8  # as sloppy as these recipes are


@pytest.mark.parametrize("order", ["rising", "falling", "random", "equal"])
@pytest.mark.parametrize("k", [1, 100, 16_000, 40_000])
def test_one_query_over_many_blocks_finds_what_sorting_finds(order: str, k: int) -> None:
    n = 40_000  # more than two blocks, the last of them not full
    values = {"equal": np.ones(n), "random": np.random.default_rng(4).permutation(n)}.get(order, np.arange(n))
    vectors = np.stack([values, np.zeros(n)], 1).astype(np.float32)
    q = np.array([[-1.0 if order == "falling" else 1.0, 3.0], [0.0, 1.0]], np.float32)
    rows, scores = exact_search(q, vectors, k)
    assert (scores == np.sort(q @ vectors.T, axis=1)[:, ::-1][:, :k]).all()
    assert all(len(np.unique(found)) == k for found in rows)
    assert (np.take_along_axis(q @ vectors.T, rows, 1) == scores).all()
    every = np.flatnonzero(np.arange(n) % 5 < 2)  # so many that all are scored, and the rest is left out
    rows, scores = exact_search(q, vectors, k, every)
    assert (scores == np.sort(q @ vectors[every].T, axis=1)[:, ::-1][:, :k]).all()
    assert all(len(np.unique(found)) == min(k, len(every)) and np.isin(found, every).all() for found in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_without_filters(searches: dict[str, VectorSearch], kind: str) -> None:
    assert check(searches[kind], queries(5), 10, None, None) >= (1.0 if kind == "flat" else 0.8)
    best = searches[kind].exact(queries(2), 30)[0].tolist()
    assert check(searches[kind], queries(2), 30, None, best) >= (1.0 if kind == "flat" else 0.8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_that_points_away_from_the_query(searches: dict[str, VectorSearch], kind: str) -> None:
    search, q = searches[kind], queries(4)
    worst = np.argsort(search.embeddings @ q[0])[: int(0.5 * N)]
    allowed = np.zeros(N, bool)
    allowed[worst] = True
    check(search, q, 50, allowed, None)


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_there_is(searches: dict[str, VectorSearch], kind: str) -> None:
    check(searches[kind], queries(2), N + 5, None, [[1, 2, 3], []])


def test_no_queries(searches: dict[str, VectorSearch]) -> None:
    rows, _ = searches["flat"].search(queries(0), 3, exclude=Ragged(np.zeros(1, np.int64), np.zeros(0, np.int64)))
    assert rows.shape == (0, 3)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.data())
def test_small_catalogues_of_any_shape(data: st.DataObject) -> None:
    n, k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 14))
    kind = data.draw(st.sampled_from(["flat", "ivf_flat", "hnsw"]))
    entry = st.integers(-2, 2)
    x = np.array(data.draw(st.lists(st.tuples(entry, entry), min_size=n, max_size=n)), np.float32)
    q = np.array(data.draw(st.lists(st.tuples(entry, entry), min_size=1, max_size=3)), np.float32)
    allowed = data.draw(st.none() | st.lists(st.booleans(), min_size=n, max_size=n).map(np.array))
    lists = st.lists(st.lists(st.integers(0, n - 1)), min_size=len(q), max_size=len(q))
    recipe = IndexRecipe(kind, nlist=min(n, 3) if kind == "ivf_flat" else 0, nprobe=1).resolve(n, 2)
    check(VectorSearch(build_index(x, recipe, DOT), x, recipe), q, k, allowed, data.draw(st.none() | lists))


# Recipes.


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_one_index(kind: str) -> None:
    from towers.index.faiss_setup import faiss

    x = queries(600, 3)
    recipe = IndexRecipe(kind)
    a, b = (faiss.serialize_index(build_index(x, recipe, DOT)) for _ in range(2))
    assert a.tobytes() == b.tobytes()
    if kind.startswith("ivf"):
        other = faiss.serialize_index(build_index(x, IndexRecipe(kind, seed=7), DOT))
        assert other.tobytes() != a.tobytes()


def test_search_settings_are_stored_in_the_index(searches: dict[str, VectorSearch]) -> None:
    from towers.index.faiss_setup import faiss

    assert searches["ivf_pq"].index.nprobe == searches["ivf_flat"].index.nprobe == 24
    read = faiss.deserialize_index(faiss.serialize_index(searches["hnsw"].index))
    assert read.hnsw.efSearch == 64
    assert all(s.index.metric_type == faiss.METRIC_INNER_PRODUCT for s in searches.values())


def test_auto_settings() -> None:
    assert IndexRecipe("ivf_flat").resolve(1_000_000, 64).nlist == 4000
    assert IndexRecipe("ivf_flat").resolve(10_000, 64).nlist == 256  # 39 items in each cell
    assert IndexRecipe("ivf_flat").resolve(3, 64).nlist == IndexRecipe("ivf_flat").resolve(3, 64).nprobe == 1
    assert [IndexRecipe("ivf_pq").resolve(1000, d).m for d in (128, 64, 30, 7, 3)] == [32, 16, 6, 1, 1]
    assert IndexRecipe("hnsw").resolve(10, 8).m == 32


@pytest.mark.parametrize(
    ("settings_", "shape", "message"),
    [
        ({"kind": "ivf_pq", "m": 5}, (1000, 16), "index.m=4"),
        ({"kind": "ivf_pq"}, (255, 16), "index=flat"),
        ({"kind": "ivf_flat", "nlist": 11}, (10, 16), "index.nlist=0"),
        ({"kind": "hnsw", "m": 1}, (10, 16), "32 is usual"),
        ({"kind": "flat"}, (0, 16), "empty"),
        ({"kind": "lsh"}, (10, 16), "flat, ivf_flat, ivf_fp16, ivf_sq8, ivf_pq, ivf_pq4, ivf_rabitq, hnsw"),
        ({"nprobe": 0}, (10, 16), "at least 1"),
        ({"nprobe": 2.5}, (10, 16), "whole number"),
        ({"min_recall": 95}, (10, 16), "share"),
        ({"device": "gpu"}, (10, 16), "auto, cpu or cuda"),
    ],
)
def test_settings_that_cannot_work(settings_: dict[str, object], shape: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IndexRecipe(**settings_).resolve(*shape)  # type: ignore[arg-type]


def test_cuda_without_a_gpu_says_so() -> None:
    from towers.index.faiss_setup import faiss

    if faiss.get_num_gpus():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="no GPU"):
        build_index(queries(10), IndexRecipe("flat", device="cuda"), DOT)


def test_vectors_must_fit_the_similarity() -> None:
    x = queries(10)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    build_index(unit, IndexRecipe("flat"), Similarity("cosine"))
    unit[4] *= 1.1
    with pytest.raises(ConfigError, match=r"row 4 has norm 1\.1000"):
        build_index(unit, IndexRecipe("flat"), Similarity("cosine"))
    x[3, 2] = np.nan
    with pytest.raises(ConfigError, match="row 3 is not finite"):
        build_index(x, IndexRecipe("flat"), DOT)
    with pytest.raises(ConfigError, match="float64"):
        build_index(x.astype(np.float64), IndexRecipe("flat"), DOT)  # type: ignore[arg-type]
    for bad in ("l2", "Dot"):
        with pytest.raises(ConfigError, match="'dot' or 'cosine'"):
            Similarity(bad)
    with pytest.raises(ConfigError, match="positive"):
        Similarity("dot", 0.0)


# Recall.


def test_recall_by_hand_ties_count() -> None:
    exact = np.array([[3.0, 2.0, 2.0], [9.0, 8.0, 7.0]], np.float32)
    found = np.array([[3.0, 2.0, 1.0], [8.0, 7.0, -np.inf]], np.float32)
    assert recall_at(found, exact) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert recall_at(exact, exact) == 1.0
    assert recall_at(np.array([[-1.0, -3.0]], np.float32), np.array([[-1.0, -2.0]], np.float32)) == 0.5


def test_measured_recall_is_recall(searches: dict[str, VectorSearch]) -> None:
    q = queries(40)
    for kind, search in searches.items():
        measured = measure_index(search, q, singles=3)
        found, truth = search.search(q, 100)[0], np.argsort(-(q @ search.embeddings.T), axis=1)[:, :100]
        by_id = np.mean([len(set(a) & set(b)) / 100 for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
        assert measured["index/recall@100"] == pytest.approx(by_id, abs=1e-3)
        assert (measured["index/recall@100"] == 1.0) == (kind == "flat")
        assert measured["index/search_p99_ms"] >= measured["index/search_p50_ms"] > 0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (IndexRecipe("ivf_flat", nlist=100, nprobe=8), r"0\.9000, below index.min_recall=0.95: raise index.nprobe "
         r"from 8 to 16, or use index=flat"),
        (IndexRecipe("ivf_pq", nlist=10, nprobe=10, m=4, rescore=4), r": raise index.rescore from 4 to 8"),
        (IndexRecipe("hnsw", m=16, ef_search=32), "raise index.ef_search from 32 to 64, or raise index.m from 16"),
    ],
)  # fmt: skip
def test_the_gate_says_what_to_change(recipe: IndexRecipe, message: str) -> None:
    check_recall(recipe, 0.95)
    with pytest.raises(ConfigError, match=message):
        check_recall(recipe, 0.9)
