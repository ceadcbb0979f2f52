"""Exact search: every item, or every eligible one, is scored.

``Q`` queries, ``N`` items, ``D`` dimensions, ``k`` results. Rows are positions in the catalogue; a place that no item
fills has row ``-1`` and score ``-inf``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.index.faiss_setup import faiss
from towers.index.planner import FEW_QUERIES

_faiss: Any = faiss  # its type stubs lack a function
Found = tuple[NDArray[np.int64], NDArray[np.float32]]
_BLOCK = 1 << 18  # eligible embeddings copied at a time


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
        rows and scores ``[Q, min(k, len)]``, best first.
    """
    plain = isinstance(embeddings, np.ndarray)
    if rows is None and not plain:
        rows = np.arange(len(embeddings))
    if rows is None:
        k = min(k, len(embeddings))
        if k == 0:
            return nothing(len(queries), 0)
        scores, found = faiss.knn(queries, embeddings, k, metric=faiss.METRIC_INNER_PRODUCT)
        return found, scores
    if plain and len(queries) <= FEW_QUERIES and embeddings.flags.c_contiguous:
        return _in_place(queries, embeddings, rows, min(k, len(rows)))
    best = nothing(len(queries), 0)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        scores, found = faiss.knn(
            queries, embeddings.take(block, axis=0), min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT
        )
        best = best_of(np.hstack([best[0], block[found]]), np.hstack([best[1], scores]), k)
    return best


def best_of(rows: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Found:
    """The ``k`` best columns of each row, best first; ties in the order given."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def nothing(q: int, k: int) -> Found:
    """``[Q, k]`` places that no item fills."""
    return np.full((q, k), -1, np.int64), np.full((q, k), -np.inf, np.float32)


def _in_place(queries: NDArray[np.float32], vectors: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Found:
    """The ``k`` best of some rows, scored where they lie: a third of the time of copying them first, for one query."""
    found, scores = nothing(len(queries), k)
    pointer = _faiss.swig_ptr
    _faiss.knn_inner_products_by_idx(
        pointer(queries), pointer(vectors), pointer(rows), vectors.shape[1], len(queries), len(vectors), len(rows), k,
        pointer(scores), pointer(found), 0,
    )  # fmt: skip
    return found, scores
