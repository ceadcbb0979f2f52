"""Ranking metrics, one number for each query.

Shapes: ``Q`` queries, ``K`` places, ``T`` targets of all queries end to end.

Every metric starts from ``hits [Q, K]`` (whether the item at a place is a target) and ``targets [Q]``
(how many targets the query has), and averages over queries are left to the caller. Relevance is
binary. Two habits differ between libraries and are fixed here: Recall divides by the number of
targets, never by ``min(K, targets)``; the ideal of NDCG and the divisor of MAP stop at ``min(K, targets)``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from towers.features import Ragged

Floats = NDArray[np.float64]
_COMPARED = 1 << 24  # entries compared at once


def places(items: NDArray[np.int64], targets: Ragged) -> NDArray[np.int64]:
    """``[T]`` where each target stands in its query's list: its place from 1, or 0 if it is not there.

    Args:
        items: ``[Q, K]`` item rows, ``-1`` where there is none.
        targets: ``[Q]`` lists of distinct item rows.

    >>> places(np.array([[7, 3, 5]]), Ragged(np.array([0, 2]), np.array([5, 4])))
    array([3, 0])
    """
    query = np.repeat(np.arange(len(items)), np.diff(targets.offsets))
    out = np.zeros(len(query), np.int64)
    step = max(1, _COMPARED // max(1, items.shape[1]))
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        found = items[query[part]] == targets.values[part, None]
        out[part] = np.where(found.any(axis=1), found.argmax(axis=1) + 1, 0)
    return out


def hits(place: NDArray[np.int64], query: NDArray[np.int64], queries: int, k: int) -> NDArray[np.bool_]:
    """``[Q, K]`` whether the item at each of the first ``K`` places is a target.

    Args:
        place: ``[T]`` as from ``places``.
        query: ``[T]`` the query of each target.
        queries: ``Q``.
        k: ``K``.
    """
    out = np.zeros((queries, k + 1), np.bool_)
    out[query, np.where(place <= k, place, 0)] = True
    return out[:, 1:]


def recall(hits: NDArray[np.bool_], targets: NDArray[np.int64], k: int) -> Floats:
    """``[Q]`` hits in the first ``k`` / targets.

    Two of three targets found:

    >>> recall(np.array([[True, False, True, False]]), np.array([3]), 4)  # 2/3
    array([0.66666667])
    """
    share: Floats = hits[:, :k].sum(axis=1) / targets
    return share


def precision(hits: NDArray[np.bool_], targets: NDArray[np.int64], k: int) -> Floats:
    """``[Q]`` hits in the first ``k`` / ``k`` (also where fewer than ``k`` items could be ranked).

    >>> precision(np.array([[True, False, True, False]]), np.array([3]), 4)  # 2/4
    array([0.5])
    """
    share: Floats = hits[:, :k].sum(axis=1) / k
    return share


def hit_rate(hits: NDArray[np.bool_], targets: NDArray[np.int64], k: int) -> Floats:
    """``[Q]`` 1 if there is any hit in the first ``k``, else 0.

    >>> hit_rate(np.array([[False, False, True], [False, False, False]]), np.array([3, 1]), 3)
    array([1., 0.])
    """
    return np.asarray(hits[:, :k].any(axis=1), np.float64)


def ndcg(hits: NDArray[np.bool_], targets: NDArray[np.int64], k: int) -> Floats:
    """``[Q]`` Σ over hits of 1/log2(place + 1), divided by the same sum for min(k, targets) hits in front.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (2002), with
    gains of 0 and 1.

    A hit at place 3 of one target: 1/log2(4) = 1/2 of the ideal 1/log2(2) = 1.

    >>> ndcg(np.array([[False, False, True]]), np.array([1]), 3)
    array([0.5])
    """
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    gained: Floats = hits[:, :k] @ discount[: hits.shape[1]]
    return np.asarray(gained / ideal[np.minimum(targets, k)])


def mrr(hits: NDArray[np.bool_], targets: NDArray[np.int64], k: int) -> Floats:
    """``[Q]`` 1 / place of the first hit, 0 if there is none in the first ``k``.

    >>> mrr(np.array([[False, True, True], [False, False, False]]), np.array([2, 1]), 3)
    array([0.5, 0. ])
    """
    head = hits[:, :k]
    return np.where(head.any(axis=1), 1 / (head.argmax(axis=1) + 1), 0.0)


def average_precision(hits: NDArray[np.bool_], targets: NDArray[np.int64], k: int) -> Floats:
    """``[Q]`` Σ over hits of precision at their place, divided by min(k, targets).

    (TREC divides by the number of targets: the same for ``k`` at least as large.)

    Hits at places 1 and 3 of three targets: (1/1 + 2/3) / 3 = 5/9.

    >>> average_precision(np.array([[True, False, True, False]]), np.array([3]), 4)
    array([0.55555556])
    """
    head = hits[:, :k]
    precisions = np.cumsum(head, axis=1) / np.arange(1, head.shape[1] + 1)
    found: Floats = (precisions * head).sum(axis=1)
    return np.asarray(found / np.minimum(targets, k))


AT_K: dict[str, Callable[[NDArray[np.bool_], NDArray[np.int64], int], Floats]] = {
    "recall": recall,
    "ndcg": ndcg,
    "hr": hit_rate,
    "precision": precision,
    "mrr": mrr,
    "map": average_precision,
}
"""Metrics with a cut-off, by the name in their key (``recall@20``)."""


def auc(ranks: Ragged, eligible: NDArray[np.int64]) -> Floats:
    """``[Q]`` share of (target, other eligible candidate) pairs in which the target stands first.

    With ``n`` eligible targets at ranks ``r_1 < … < r_n`` of ``E`` eligible candidates, target ``i`` stands behind
    ``r_i - i`` others, so the share is ``1 - Σ(r_i - i) / (n (E - n))``; 1 if there are no others. A target that is
    not eligible loses all its pairs.

    Args:
        ranks: ``[Q]`` lists as in ``Ranking.target_ranks``, 0 for a target that is not eligible.
        eligible: ``[Q]`` eligible candidates.

    Targets at ranks 1 and 4 of 4: of the pairs with the 2 others, 2 + 0 of 4 are in order.

    >>> auc(Ragged(np.array([0, 2]), np.array([4, 1])), np.array([4]))
    array([0.5])
    """
    queries = len(eligible)
    count = np.diff(ranks.offsets)
    query = np.repeat(np.arange(queries), count)
    n = np.bincount(query, ranks.values > 0, queries)
    others = eligible - n
    behind = np.bincount(query, ranks.values, queries) - n * (n + 1) / 2
    pairs = n * others
    in_order = 1 - np.divide(behind, pairs, out=np.zeros(queries), where=pairs > 0)
    share: Floats = in_order * n / count
    return share


def reciprocal_rank(ranks: Ragged) -> Floats:
    """``[Q]`` 1 / rank of the first target among all eligible candidates; 0 if no target is eligible.

    >>> reciprocal_rank(Ragged(np.array([0, 2, 3]), np.array([5, 4, 0])))
    array([0.25, 0.  ])
    """
    query = np.repeat(np.arange(len(ranks.offsets) - 1), np.diff(ranks.offsets))
    out = np.zeros(len(ranks.offsets) - 1)
    eligible = ranks.values > 0
    np.maximum.at(out, query[eligible], 1 / ranks.values[eligible])
    return out


WITHOUT_CUT = ("auc", "mrr@all")
"""Metrics over the whole ranking; they need the rank of every target."""


def coverage(items: NDArray[np.int64], candidates: int, k: int) -> float:
    """Share of the candidates that stand among the first ``k`` of any query, of ``[Q, K]`` item rows.

    >>> coverage(np.array([[4, 2], [4, -1]]), 10, 2)  # items 2 and 4 of 10
    0.2
    """
    shown = np.unique(items[:, :k])
    return int((shown >= 0).sum()) / candidates
