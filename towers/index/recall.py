"""What an approximate index loses and costs, measured on queries of the model it serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.index.exact import best_of
from towers.index.faiss_setup import faiss
from towers.index.recipes import IndexRecipe
from towers.index.search import VectorSearch

_TIE = 1e-5  # relative; scores this close are one score computed in two orders


def recall_at(scores: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    """The share of the exact top ``k`` that was found, ties counting as found.

    Judged by score: with reposts (equal embeddings) there is no one top ``k``.

    Args:
        scores: ``[Q, k]`` scores of what was found; ``-inf`` where there is nothing.
        exact: ``[Q, k]`` scores of exact search, best first.
    """
    worst = exact[:, -1:]
    return float((scores >= worst - _TIE * np.maximum(1e-6, np.abs(worst))).mean())


def measure_index(search: VectorSearch, queries: NDArray[np.float32], *, singles: int = 200) -> dict[str, float]:
    """Recall and speed of an index.

    Args:
        search: the index with its embeddings.
        queries: ``[Q, D]`` user vectors of this model; held-out ones, or the recall is flattered.
        singles: how many of them are timed one at a time.

    Returns:
        ``index/recall@K`` against exact search, ``index/search_p50_ms`` and ``…p99_ms`` of single
        queries, ``index/exact_p50_ms``, ``index/batch_queries_per_s``.

    Raises:
        ConfigError: there are no queries.
    """
    if not len(queries):
        raise ConfigError("no query vectors to measure the index with; the held-out split has no users")
    k = min(search.recipe.recall_at, len(search.embeddings))
    queries = np.ascontiguousarray(queries, np.float32)
    start = time.perf_counter()
    found, _ = search.search(queries, k)
    batch = time.perf_counter() - start
    exact = search.exact(queries, k)[1]
    some = queries[:singles]
    ours = [_ms(partial(search.search, q, k)) for q in some[:, None]]
    brute = [_ms(partial(search.exact, q, k)) for q in some[:, None]]
    return {
        f"index/recall@{search.recipe.recall_at}": recall_at(search.scores(queries, found), exact),
        "index/search_p50_ms": float(np.percentile(ours, 50)),
        "index/search_p99_ms": float(np.percentile(ours, 99)),
        "index/exact_p50_ms": float(np.percentile(brute, 50)),
        "index/batch_queries_per_s": len(queries) / max(batch, 1e-9),
    }


def recall_of_storage(search: VectorSearch, embeddings: NDArray[np.float32], queries: NDArray[np.float32]) -> float:
    """What exact search over stored embeddings finds of what it finds over the whole ones.

    Args:
        search: with the stored embeddings.
        embeddings: ``[N, D]`` the whole ones.
        queries: ``[Q, D]``.
    """
    k = min(search.recipe.recall_at, len(embeddings))
    exact = faiss.knn(queries, embeddings, k, metric=faiss.METRIC_INNER_PRODUCT)[0]
    found = search.exact(queries, k)[0]
    return recall_at(replace(search, embeddings=embeddings).scores(queries, found), exact)


def recall_of_prefix(
    cut: VectorSearch,
    queries: NDArray[np.float32],
    blocks: Iterable[NDArray[np.float32]],
    whole_queries: NDArray[np.float32],
) -> float:
    """What exact search by cut vectors finds of what it finds by the whole ones, of which a block is in memory.

    Args:
        cut: search by the cut vectors.
        queries: ``[Q, d]`` cut vectors.
        blocks: ``[n, D]`` the whole embeddings, in their order.
        whole_queries: ``[Q, D]``.
    """
    k, start, best = min(cut.recipe.recall_at, len(cut.embeddings)), 0, None
    for block in blocks:
        scores, rows = faiss.knn(whole_queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        found, start = (rows + start, scores), start + len(block)
        if best is not None:
            found = best_of(np.hstack([best[0], found[0]]), np.hstack([best[1], found[1]]), k)
        best = found
    mine = cut.exact(queries, k)[0]
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(mine, best[0] if best else mine[:, :0], strict=True)]))


def check_recall(recipe: IndexRecipe, measured: float) -> None:
    """The gate of an export.

    Args:
        recipe: resolved, as built.
        measured: recall at ``recipe.recall_at`` against exact search.

    Raises:
        ConfigError: below ``recipe.min_recall``; says which setting to raise, from what to what.
    """
    if measured >= recipe.min_recall:
        return
    cures = []
    if recipe.is_ivf:
        cures.append(_raise("nprobe", recipe.nprobe, recipe.nlist))
    if recipe.lossy:
        cures.append(_raise("rescore", recipe.rescore))
    if recipe.kind.startswith("hnsw"):
        cures += [_raise("ef_search", recipe.ef_search), _raise("m", recipe.m)]
    cure = ", or ".join([c for c in cures if c] + ["use index=flat (exact)"])
    raise ConfigError(
        f"recall@{recipe.recall_at} of the {recipe.kind} index against exact search is {measured:.4f}, below "
        f"index.min_recall={recipe.min_recall}: {cure}"
    )


def _raise(name: str, value: int, most: int | None = None) -> str:
    target = value * 2 if most is None else min(value * 2, most)
    return f"raise index.{name} from {value} to {target}" if target > value else ""


def _ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3
