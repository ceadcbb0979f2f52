"""Vector search in which eligibility is a promise: exact where it must be, approximate where it may.

``Q`` queries, ``N`` items, ``D`` dimensions, ``k`` results. Rows are positions in the catalogue; a place
that no item fills has row ``-1`` and score ``-inf``.

An approximate index does not know which items a request may see. Two ways lead from it to exactly the
eligible ones, and ``VectorSearch.search`` takes the cheaper:

* few items pass: score all of them (exact by construction);
* many pass: ask the index for more than ``k``, drop what may not be seen, and for the queries that come
  out short score all eligible items after all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.features import Ragged
from towers.index.faiss_setup import faiss
from towers.index.recipes import IndexRecipe

_faiss: Any = faiss  # keyword arguments of search parameters are not in its type stubs
Found = tuple[NDArray[np.int64], NDArray[np.float32]]
_FEW = 4096  # so many vectors are scored faster than any index is asked
_FEW_SHARE = 0.1  # below this share of eligible items, over-fetching costs more than scoring them
_MARGIN = 1.5  # over-fetch that much more than evenly spread eligible items would need
_BLOCK = 1 << 18  # eligible embeddings copied at a time


@dataclass(frozen=True)
class VectorSearch:
    """An index, the embeddings it was built from, and how it is asked. Reading only: safe in threads.

    Attributes:
        index: FAISS index by inner product over the rows of ``embeddings``.
        embeddings: ``[N, D]`` float32, possibly memory-mapped.
        recipe: what the index was built with, resolved.
    """

    index: faiss.Index
    embeddings: NDArray[np.float32]
    recipe: IndexRecipe

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        allowed: NDArray[np.bool_] | None = None,
        exclude: Ragged | None = None,
        exact: bool = False,
    ) -> Found:
        """The ``k`` best items of each query, best first.

        Args:
            queries: ``[Q, D]`` float32.
            k: results wanted.
            allowed: ``[N]`` items that any query may get; None: all.
            exclude: ``[Q]`` lists of rows that this query must not get.
            exact: score every eligible item, whatever the index.

        Returns:
            rows ``[Q, k]`` and scores ``[Q, k]``. Never an item that is not eligible, never fewer than
            ``min(k, eligible)`` of them.
        """
        queries = self._checked(queries, k)
        n = len(self.embeddings)
        passing = n if allowed is None else int(np.count_nonzero(allowed))
        dropped = 0 if exclude is None or not len(queries) else int(np.diff(exclude.offsets).max())
        wanted = min(k + dropped, passing)
        fetch = wanted if allowed is None else min(n, math.ceil(wanted * n / max(passing, 1) * _MARGIN))
        few = allowed is not None and (passing <= max(_FEW, n * _FEW_SHARE) or fetch > n * _FEW_SHARE)
        if exact or few or not passing:
            rows = None if allowed is None or passing == n else np.flatnonzero(allowed)
            return _keep(self.exact(queries, wanted, rows), k, n, None, exclude)
        found = _keep(self.approximate(queries, fetch), k, n, allowed, exclude)
        short = self._short(found[0], k, allowed, passing, exclude)
        if len(short):
            again = self.search(queries[short], k, allowed=allowed, exclude=_take(exclude, short), exact=True)
            found[0][short], found[1][short] = again
        return found

    def exact(self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None = None) -> Found:
        """The ``k`` best of all items, or of the given rows, by scoring each: ``[Q, min(k, len)]``."""
        if rows is None:
            k = min(k, len(self.embeddings))
            if k == 0:
                return _nothing(len(queries), 0)
            scores, found = faiss.knn(queries, self.embeddings, k, metric=faiss.METRIC_INNER_PRODUCT)
            return found, scores
        best = _nothing(len(queries), 0)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            scores, found = faiss.knn(
                queries, self.embeddings[block], min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT
            )
            best = _best(np.hstack([best[0], block[found]]), np.hstack([best[1], scores]), k)
        return best

    def approximate(self, queries: NDArray[np.float32], k: int) -> Found:
        """What the index finds, ``[Q, k]``; possibly fewer than ``k``, filled up with ``-1``.

        Args:
            queries: ``[Q, D]`` float32, contiguous.
            k: results wanted, at most ``N``. The recipe's settings are good for ``recall_at`` results; a deeper
                search looks into proportionally more of the index.
        """
        recipe = self.recipe
        widen = k / recipe.recall_at
        params: Any = None
        if widen > 1 and recipe.kind.startswith("ivf"):
            nprobe = min(recipe.nlist, math.ceil(recipe.nprobe * widen))
            params = _faiss.SearchParametersIVF(nprobe=nprobe)
        elif widen > 1 and recipe.kind == "hnsw":
            params = _faiss.SearchParametersHNSW(efSearch=math.ceil(recipe.ef_search * widen))
        if recipe.kind != "ivf_pq":
            scores, rows = self.index.search(queries, k, params=params)
            scores[rows < 0] = -np.inf  # FAISS fills up with the lowest float
            return rows, scores
        _, rows = self.index.search(queries, min(len(self.embeddings), k * recipe.rescore), params=params)
        return _best(rows, self.scores(queries, rows), k)

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """``[Q, F]`` inner products with the stored embeddings of ``[Q, F]`` rows; ``-inf`` for row ``-1``."""
        out = np.empty(rows.shape, np.float32)
        for q, mine in enumerate(rows):  # one query at a time: [F, D] fits the cache, [Q, F, D] does not
            out[q] = self.embeddings[mine] @ queries[q]
        out[rows < 0] = -np.inf
        return out

    def _short(
        self,
        rows: NDArray[np.int64],
        k: int,
        allowed: NDArray[np.bool_] | None,
        passing: int,
        exclude: Ragged | None,
    ) -> NDArray[np.int64]:
        """Queries with fewer results than ``min(k, eligible)``."""
        have = np.count_nonzero(rows >= 0, axis=1)
        suspects = np.flatnonzero(have < min(k, passing))
        if exclude is None:
            return suspects
        out = []
        for q in suspects:
            mine = np.unique(exclude.values[exclude.offsets[q] : exclude.offsets[q + 1]])
            gone = len(mine) if allowed is None else np.count_nonzero(allowed[mine])
            if have[q] < min(k, passing - gone):
                out.append(q)
        return np.asarray(out, np.int64)

    def _checked(self, queries: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        dim = self.embeddings.shape[1]
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise ConfigError(f"query vectors have shape {list(queries.shape)}; expected [Q, {dim}]")
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ConfigError(f"k is {k!r}; expected a whole number, at least 1")
        return np.ascontiguousarray(queries, np.float32)


def _nothing(q: int, k: int) -> Found:
    return np.full((q, k), -1, np.int64), np.full((q, k), -np.inf, np.float32)


def _best(rows: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Found:
    """The ``k`` best columns of each row, best first; ties in the order given."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def _keep(found: Found, k: int, n: int, allowed: NDArray[np.bool_] | None, exclude: Ragged | None) -> Found:
    """Drop what may not be seen, close the gaps, and cut or fill up to ``k`` columns."""
    rows, scores = found
    if allowed is not None or exclude is not None:
        keep = rows >= 0
        if allowed is not None:
            keep &= allowed[rows]
        if exclude is not None and len(exclude.values):
            query = np.repeat(np.arange(len(rows)), np.diff(exclude.offsets))
            keep &= ~np.isin(np.arange(len(rows))[:, None] * n + rows, query * n + exclude.values)
        order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
        keep = np.take_along_axis(keep, order, 1)
        rows = np.where(keep, np.take_along_axis(rows, order, 1), -1)
        scores = np.where(keep, np.take_along_axis(scores, order, 1), np.float32(-np.inf))
    if rows.shape[1] < k:
        more = _nothing(len(rows), k - rows.shape[1])
        rows, scores = np.hstack([rows, more[0]]), np.hstack([scores, more[1]])
    return rows[:, :k], scores[:, :k]


def _take(lists: Ragged | None, which: NDArray[np.int64]) -> Ragged | None:
    if lists is None:
        return None
    parts = [lists.values[lists.offsets[i] : lists.offsets[i + 1]] for i in which]
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
    return Ragged(offsets, np.concatenate(parts) if parts else lists.values[:0])
