"""What an approximate index loses and costs, measured on queries of the model it serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError
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
