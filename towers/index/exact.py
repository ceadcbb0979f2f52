"""Exact search: every item, or every eligible one, is scored.

``Q`` queries, ``N`` items, ``D`` dimensions, ``k`` results. Rows are positions in the catalogue; a place that no item
fills has row ``-1`` and score ``-inf``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.index.faiss_setup import faiss
from towers.index.planner import FEW_QUERIES, MOST

_faiss: Any = faiss  # its type stubs lack a function
Found = tuple[NDArray[np.int64], NDArray[np.float32]]
_BLOCK = 1 << 18  # eligible embeddings copied at a time
_SOME = 1 << 12  # scores from which is told what the others have to beat
_CACHED = 1 << 14  # scores that are looked through before the processor forgets them


def exact_search(
    queries: NDArray[np.float32], embeddings: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None = None
) -> Found:
    """The ``k`` best of all items, or of the given rows, by scoring each.

    Args:
        queries: ``[Q, D]`` float32, contiguous.
        embeddings: ``[N, D]``, possibly memory-mapped, or ``StoredVectors``: of these a block is in memory.
        k: results wanted.
        rows: some items; None: all.

    Returns:
        rows and scores ``[Q, min(k, len)]``, best first. A query that is not finite finds nothing.
    """
    plain = isinstance(embeddings, np.ndarray)
    in_place = plain and embeddings.flags.c_contiguous and len(queries) <= FEW_QUERIES
    if rows is None and in_place:
        return _streamed(queries, embeddings, min(k, len(embeddings)))
    if rows is None and not plain:
        rows = np.arange(len(embeddings))
    if rows is None:
        k = min(k, len(embeddings))
        if k == 0:
            return nothing(len(queries), 0)
        scores, found = faiss.knn(queries, embeddings, k, metric=faiss.METRIC_INNER_PRODUCT)
        return found, scores
    if in_place and len(rows) > MOST * len(embeddings):
        mask = np.zeros(len(embeddings), np.bool_)
        mask[rows] = True
        return _streamed(queries, embeddings, min(k, len(rows)), mask)
    if in_place:
        return _in_place(queries, embeddings, rows, min(k, len(rows)))
    best = nothing(len(queries), 0)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        scores, found = faiss.knn(
            queries, embeddings.take(block, axis=0), min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT
        )
        found = np.where(found < 0, -1, block[found])
        best = best_of(np.hstack([best[0], found]), np.hstack([best[1], scores]), k)
    return best


def best_of(rows: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Found:
    """``[Q, k]`` the best of ``[Q, F]`` candidates, best first; ties in the order given."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def nothing(q: int, k: int) -> Found:
    """``[Q, k]`` places that no item fills."""
    return np.full((q, k), -1, np.int64), np.full((q, k), -np.inf, np.float32)


def _streamed(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None = None
) -> Found:
    """The ``k`` best of all, or of those at which an ``[N]`` mask is true. All are scored, in the order they lie in.

    For one query this is a quarter of FAISS's time, which takes as long for one as for four.
    """
    found, scores = nothing(len(queries), k)
    pointer, of_block = _faiss.swig_ptr, np.empty(_CACHED, np.float32)
    for q in _finite(queries) if k else ():
        least, rows, best = np.float32(-np.inf), found[q, :0], scores[q, :0]
        for start in range(0, len(vectors), _CACHED):
            block = vectors[start : start + _CACHED]
            _faiss.fvec_inner_products_ny(
                pointer(of_block), pointer(queries[q]), pointer(block), block.shape[1], len(block)
            )
            better = np.flatnonzero(of_block[: len(block)] > least)  # few, once the first blocks are through
            if mask is not None:
                better = better[mask[better + start]]
            rows, best = np.concatenate([rows, better + start]), np.concatenate([best, of_block[better]])
            if len(best) > 2 * k:
                kept = np.argpartition(best, -k)[-k:]
                rows, best = rows[kept], best[kept]
                least = best.min()
        order = np.argsort(-best, kind="stable")[:k]
        found[q], scores[q] = rows[order], best[order]
    return found, scores


def _in_place(queries: NDArray[np.float32], vectors: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Found:
    """The ``k`` best of some rows, scored where they lie: a third of the time of copying them first, for one query."""
    found, scores = nothing(len(queries), k)
    pointer, of_rows = _faiss.swig_ptr, np.empty(len(rows), np.float32)
    for q in _finite(queries) if k else ():
        _faiss.fvec_inner_products_by_idx(
            pointer(of_rows), pointer(queries[q]), pointer(vectors), pointer(rows), vectors.shape[1], 1, len(rows)
        )
        best = _first(of_rows, k)
        found[q], scores[q] = rows[best], of_rows[best]
    return found, scores


def _finite(queries: NDArray[np.float32]) -> list[int]:
    """Queries whose scores have an order."""
    return [q for q in range(len(queries)) if np.isfinite(queries[q]).all()]


def _first(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """``[k]`` places of the best of ``[n]`` scores, best first."""
    places = None
    if len(scores) > 2 * _SOME and k < _SOME:  # what some of them do not beat is not looked at again
        places = np.flatnonzero(scores >= np.partition(scores[:_SOME], -k)[-k])
        scores = scores[places]
    best = np.argpartition(scores, -k)[-k:]
    best = best[np.argsort(-scores[best], kind="stable")]
    return best if places is None else places[best]
