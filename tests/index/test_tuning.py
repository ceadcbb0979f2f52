"""Which index: the quickest that keeps recall and budget, chosen the same way whatever the clock says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from towers.errors import ConfigError
from towers.index import sweeping, tuning, tuning_told
from towers.index.auto import AutoIndex
from towers.index.faiss_setup import faiss
from towers.index.recall import recall_at
from towers.index.recipes import KINDS, IndexRecipe, build_index
from towers.index.search import VectorSearch
from towers.index.similarity import Similarity
from towers.index.sizes import index_bytes, least_bytes
from towers.index.sweeping import Held, Speed, Sweep
from towers.index.tuning import Candidate, finalists, tune

N, DIM = 6_000, 16
COSINE = Similarity("cosine")


def points(n: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, DIM)) / np.sqrt(np.arange(1, DIM + 1))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


ITEMS, QUERIES = points(N, 0), points(120, 1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Milliseconds of a query by kind of index, instead of those of this machine."""
    times: dict[str, float] = {}

    def told(search: VectorSearch, queries: np.ndarray, k: int) -> Speed:
        r = search.recipe
        ms = times[r.kind] * (1 + r.nprobe / 1000 + r.rescore / 1000 + r.ef_search / 10_000)
        return Speed(ms, 100 * times[r.kind])  # what is slow for one is quick for many

    monkeypatch.setattr(sweeping, "speed", told)
    monkeypatch.setattr(tuning, "speed", told)
    times.update(dict.fromkeys(KINDS, 10.0))
    return times


def test_every_kind_is_measured_and_the_quickest_chosen(clock: dict[str, float]) -> None:
    clock["ivf_sq8"] = 1.0
    told: list[str] = []
    tuned = tune(ITEMS, QUERIES, AutoIndex(ef_construction=40), COSINE, lambda what, share: told.append(what))
    assert {c.kind for c in tuned.candidates} == set(KINDS)
    assert len(told) == len(KINDS)
    best = tuned.candidates[0]
    assert (best.kind, best.verdict, tuned.recipe) == ("ivf_sq8", "chosen", best.recipe)
    exact = faiss.knn(QUERIES, ITEMS, 100, metric=faiss.METRIC_INNER_PRODUCT)[0]
    for c in tuned.candidates:
        assert c.recipe is not None, c
        assert c.recall >= 0.95
        assert c.bytes_per_item > 0
        recalls = [p.recall for p in c.curve]
        assert recalls == sorted(recalls), c.kind
    found = VectorSearch(tuned.index, ITEMS, tuned.recipe).search(QUERIES, 100)[1]
    assert recall_at(found, exact) >= 0.95
    ivf: Any = tuned.index
    assert ivf.nprobe == tuned.recipe.nprobe


def test_of_equally_fast_kinds_the_smallest(clock: dict[str, float]) -> None:
    kinds = ["flat", "ivf_flat", "ivf_sq8"]
    clock |= {"flat": 1.0, "ivf_flat": 1.0, "ivf_sq8": 1.02}
    assert tune(ITEMS, QUERIES, AutoIndex(kinds=kinds), COSINE).recipe.kind == "ivf_sq8"
    clock["ivf_sq8"] = 1.2
    tuned = tune(ITEMS, QUERIES, AutoIndex(kinds=kinds), COSINE)
    assert tuned.recipe.kind == "flat"  # the cells have bytes of their own
    assert [c.verdict for c in tuned.candidates] == ["chosen", "as fast, but larger", "slower"]


def test_batches_may_be_what_counts(clock: dict[str, float]) -> None:
    clock |= {"flat": 1.0, "ivf_flat": 5.0}
    kinds = ["flat", "ivf_flat"]
    assert tune(ITEMS, QUERIES, AutoIndex(kinds=kinds), COSINE).recipe.kind == "flat"
    assert tune(ITEMS, QUERIES, AutoIndex(kinds=kinds, optimise="batch"), COSINE).recipe.kind == "ivf_flat"


def test_the_budget_is_kept(clock: dict[str, float]) -> None:
    clock |= {"flat": 1.0, "ivf_pq": 9.0}
    tuned = tune(ITEMS, QUERIES, AutoIndex(kinds=["flat", "ivf_pq"], max_bytes_per_item=40), COSINE)
    assert tuned.recipe.kind == "ivf_pq"
    assert tuned.candidates[1].verdict == "not built: 64 bytes an item, 40 allowed"
    with pytest.raises(ConfigError, match=r"(?s)in 30 bytes an item.*flat: not built.*cure: raise index.max_bytes"):
        tune(ITEMS, QUERIES, AutoIndex(kinds=["flat"], max_bytes_per_item=30), COSINE)


def test_time_is_kept_and_the_first_kind_always_measured(clock: dict[str, float]) -> None:
    tuned = tune(ITEMS, QUERIES, AutoIndex(kinds=["flat", "ivf_flat", "hnsw"], seconds=0), COSINE)
    assert tuned.recipe.kind == "flat"
    assert [c.verdict for c in tuned.candidates[1:]] == ["not built within index.seconds=0"] * 2


def test_a_large_catalogue_is_screened_on_a_sample(clock: dict[str, float]) -> None:
    clock |= {"flat": 1.0, "ivf_flat": 1.5, "ivf_fp16": 1.6, "ivf_sq8": 1.7}
    auto = AutoIndex(kinds=["flat", "ivf_flat", "ivf_fp16", "ivf_sq8"], sample=2000)
    tuned = tune(ITEMS, QUERIES, auto, COSINE)
    assert tuned.index.ntotal == N
    by = {c.kind: c for c in tuned.candidates}
    assert by["flat"].verdict == "slower on a sample of 2,000 items"  # three times the items, three times the time
    assert [by[k].items for k in ("flat", "ivf_flat", "ivf_fp16", "ivf_sq8")] == [2000, N, N, N]


def test_exact_search_grows_in_proportion_cells_by_the_root_graphs_hardly() -> None:
    def c(kind: str, ms: float) -> Candidate:
        return Candidate(kind, "slower", recipe=IndexRecipe(kind), speed=Speed(ms, 1.0))

    screened = {k: c(k, ms) for k, ms in {"flat": 1, "ivf_flat": 2, "ivf_pq": 2.2, "hnsw": 19, "hnsw_sq8": 30}.items()}
    assert finalists(screened, 1.0, "single") == ["flat", "ivf_flat", "ivf_pq"]
    assert finalists(screened, 100.0, "single") == ["ivf_flat", "ivf_pq", "hnsw"]


def test_settings_are_the_least_that_suffice() -> None:
    recipe = IndexRecipe("ivf_flat", nlist=100, nprobe=1).resolve(N, DIM)
    index: Any = build_index(ITEMS, recipe, COSINE)
    exact = faiss.knn(QUERIES, ITEMS, 100, metric=faiss.METRIC_INNER_PRODUCT)[0]

    def recall(nprobe: int) -> float:
        index.nprobe = nprobe
        return recall_at(index.search(QUERIES, 100)[0], exact)

    for target in (0.3, 0.8, 0.95, 1.0):
        (found,) = Sweep(index, ITEMS, recipe, Held(QUERIES, exact)).sufficient(target)
        least = next(p for p in range(1, 101) if recall(p) >= target)
        assert least <= found.nprobe <= max(least + 1, 1.1 * least)


@pytest.mark.parametrize(("kind", "least"), [("ivf_pq", -1e-3), ("ivf_sq8", -1e-3), ("ivf_pq4", -0.01)])
def test_one_search_tells_the_recall_of_every_rescore(kind: str, least: float) -> None:
    """Fast scan sums bytes, so that many are equal, and of equals a short search keeps others than a long one."""
    recipe = IndexRecipe(kind, nlist=20, nprobe=20, m=8).resolve(N, DIM)
    exact = faiss.knn(QUERIES, ITEMS, 100, metric=faiss.METRIC_INNER_PRODUCT)[0]
    sweep = Sweep(build_index(ITEMS, recipe, COSINE), ITEMS, recipe, Held(QUERIES, exact))
    options = sweep.sufficient(0.9)
    assert options
    for option in options:
        said = next(p.recall for p in sweep.curve(option) if p.recipe == option)
        found = recall_at(sweep.search(option).approximate(QUERIES, 100)[1], exact)
        assert said >= 0.9
        assert found - said >= least
        assert kind == "ivf_pq4" or found - said <= 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_file_and_never_below_what_is_promised(kind: str) -> None:
    recipe = IndexRecipe(kind, ef_construction=20).resolve(N, DIM)
    index = build_index(ITEMS, recipe, COSINE)
    size = index_bytes(index)
    assert size == len(faiss.serialize_index(index))
    assert size / N * 1.25 > least_bytes(recipe, N, DIM) > 0.6 * size / N
    assert least_bytes(recipe, N, DIM) <= size / N


def test_what_is_told(clock: dict[str, float]) -> None:
    clock["flat"] = 1.0
    auto = AutoIndex(kinds=["flat", "ivf_pq", "ivf_pq4"], max_bytes_per_item=70)
    tuned = tune(ITEMS[:200], QUERIES, auto, COSINE)
    rows = tuning_told.rows(tuned.candidates)
    assert rows[0][:4] == ("flat", "chosen", "", "1.0000")
    assert all(len(r) == len(tuning_told.COLUMNS) for r in rows)
    assert "learns from at least 256 items" in rows[1][1]
    assert tuning_told.markdown(tuned.candidates).count("\n") == 4
    assert json.loads(json.dumps(tuning_told.facts(tuned.candidates)))[0]["kind"] == "flat"
    picture = tuning_told.picture(tuned.candidates, 0.95, 100)
    assert "<svg" in picture
    assert picture == tuning_told.picture(tuned.candidates, 0.95, 100)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kinds": ["lsh"]}, r"\['lsh'\]; expected some of flat"),
        ({"kinds": []}, "names none"),
        ({"optimise": "p99"}, "single or batch"),
        ({"max_bytes_per_item": 0}, "positive"),
        ({"seconds": -1}, "at least 0"),
        ({"min_recall": 2}, "share"),
        ({"storage": "int4"}, "float32, float16, int8"),
    ],
)
def test_what_cannot_be_asked(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoIndex(**wrong)  # type: ignore[arg-type]


def test_without_queries_nothing_can_be_tuned() -> None:
    with pytest.raises(ConfigError, match="no query vectors"):
        tune(ITEMS, QUERIES[:0], AutoIndex(), COSINE)
