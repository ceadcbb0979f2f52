"""Vector search in which eligibility is a promise: exact where it must be, approximate where it may.

``Q`` queries, ``N`` items, ``D`` dimensions, ``k`` results. Rows are positions in the catalogue; a place
that no item fills has row ``-1`` and score ``-inf``.

An approximate index does not know which items a request may see. ``planner`` chooses among three ways to exactly the
eligible ones, and whatever it chooses, queries that come out short have all eligible items scored after all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.features import Ragged
from towers.index.bitmaps import Rows, packed, row_numbers
from towers.index.exact import Found, best_of, exact_search, nothing
from towers.index.faiss_setup import faiss
from towers.index.planner import FEW_QUERIES, Plan, plan
from towers.index.probing import cells_of, in_cells, pointing_away
from towers.index.recipes import IndexRecipe

if TYPE_CHECKING:
    from towers.index.devices import DeviceVectors

_faiss: Any = faiss  # keyword arguments of search parameters are not in its type stubs
_FEW = 1024  # rows asked for one by one sooner than the bitmap is unpacked


@dataclass(frozen=True)
class VectorSearch:
    """An index, the embeddings it was built from, and how it is asked. Reading only: safe in threads.

    Attributes:
        index: FAISS index by inner product over the rows of ``embeddings``; None: every item is scored.
        embeddings: ``[N, D]`` float32, possibly memory-mapped, or ``StoredVectors``.
        recipe: what the index was built with, resolved.
        device: the embeddings once more on a GPU, for exact search there; None: the CPU searches.
    """

    index: Any  # faiss.Index | None; the type stubs know few of its attributes
    embeddings: NDArray[np.float32]
    recipe: IndexRecipe
    device: DeviceVectors | None = None

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        allowed: Rows | None = None,
        exclude: Ragged | None = None,
        exact: bool = False,
    ) -> Found:
        """The ``k`` best items of each query, best first.

        Args:
            queries: ``[Q, D]`` float32.
            k: results wanted.
            allowed: items that any query may get; None: all.
            exclude: ``[Q]`` lists of rows that this query must not get.
            exact: score every eligible item, whatever the index.

        Returns:
            rows ``[Q, k]`` and scores ``[Q, k]``. Never an item that is not eligible, never fewer than
            ``min(k, eligible)`` of them.
        """
        return self.explained(queries, k, allowed=allowed, exclude=exclude, exact=exact)[0]

    def explained(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        allowed: Rows | None = None,
        exclude: Ragged | None = None,
        exact: bool = False,
    ) -> tuple[Found, Plan]:
        """What ``search`` returns, and how it was found."""
        queries = self._checked(queries, k)
        n, dim = self.embeddings.shape
        if allowed is not None and len(allowed) == n:
            allowed = None
        eligible = n if allowed is None else len(allowed)
        excluded = 0 if exclude is None or not len(queries) else int(np.diff(exclude.offsets).max())
        way = plan(
            self.recipe, n, dim, eligible, k, excluded=excluded, queries=len(queries),
            exact=exact or self.index is None,
        )  # fmt: skip
        if self.device is not None and allowed is not None:  # FAISS ignores selectors on a GPU, which scores all soon
            way = replace(way, route="exact", fetch=min(k + excluded, eligible), nprobe=0)
        if not way.fetch or not len(queries):
            return nothing(len(queries), k), way
        away: NDArray[np.bool_] | None = None
        if way.route == "exact":
            found = self.exact(queries, way.fetch, None if allowed is None else row_numbers(allowed))
        elif way.route in ("cells", "probe") and allowed is not None:
            found, away = (self._in_cells if way.route == "cells" else self._probe)(queries, way, allowed)
        else:
            found = self.approximate(queries, way.fetch, way.nprobe)
        # The other routes look at eligible items only; what the index finds has to be sifted.
        found = _keep(found, k, n, allowed if way.route == "index" else None, exclude)
        if way.route == "exact":
            return found, way
        which = self._short(found[0], k, allowed, eligible, exclude)
        if away is not None:
            which = np.union1d(which, away.nonzero()[0])
        if not len(which):
            return found, way
        those = None if exclude is None else exclude.take(which)
        better = self.search(queries[which], k, allowed=allowed, exclude=those, exact=True)
        found[0][which], found[1][which] = better
        return found, replace(way, completed=len(which))

    def exact(self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None = None) -> Found:
        """The ``k`` best of all items, or of the given rows, by scoring each: ``[Q, min(k, len)]``."""
        if self.device is not None:
            return self.device.search(queries, k, rows)
        return exact_search(queries, self.embeddings, k, rows)

    def _in_cells(self, queries: NDArray[np.float32], way: Plan, allowed: Rows) -> tuple[Found, NDArray[np.bool_]]:
        """The best eligible items of the cells nearest to each query; and ``[Q]`` whether to look elsewhere."""
        (rows, scores), away = nothing(len(queries), way.fetch), np.zeros(len(queries), np.bool_)
        near, _ = self._nearest(queries, way.nprobe)
        for q, (held, elsewhere) in enumerate(in_cells(near, allowed, self._cells, self._cell_sizes)):
            away[q] = elsewhere
            if n := min(way.fetch, len(held)):
                (rows[q, :n],), (scores[q, :n],) = self.exact(queries[q : q + 1], n, held)
        return (rows, scores), away

    def _probe(self, queries: NDArray[np.float32], way: Plan, allowed: Rows) -> tuple[Found, NDArray[np.bool_]]:
        """Likewise, found by the index."""
        cells, near = self._nearest(queries, way.nprobe)
        away = pointing_away(cells, allowed, self._cells, self._cell_sizes)
        bits = packed(allowed, len(self.embeddings))
        params = _faiss.SearchParametersIVF(nprobe=way.nprobe, sel=_faiss.IDSelectorBitmap(bits))
        more = self.recipe.rescore if self.recipe.lossy else 1
        rows, scores = self._scanned(queries, min(way.eligible, way.fetch * more), cells, near, params)
        if self.recipe.lossy:
            return best_of(rows, self.scores(queries, rows), way.fetch), away
        return (rows, scores), away

    def _nearest(self, queries: NDArray[np.float32], nprobe: int) -> Found:
        """``[Q, nprobe]`` the cells of an IVF index nearest to each query, and their scores."""
        if len(queries) <= FEW_QUERIES and self._centres is not None:
            return exact_search(queries, self._centres, nprobe)
        near, cells = self.index.quantizer.search(queries, nprobe)
        return cells, near

    def _scanned(
        self, queries: NDArray[np.float32], k: int, cells: NDArray[np.int64], near: NDArray[np.float32], params: Any
    ) -> Found:
        """The ``k`` best items in these cells."""
        rows, scores = nothing(len(queries), k)
        pointer = _faiss.swig_ptr
        self.index.search_preassigned_c(  # the method without _c takes no parameters
            len(queries), pointer(queries), k, pointer(cells), pointer(near), pointer(scores), pointer(rows), False,
            params,
        )  # fmt: skip
        scores[rows < 0] = -np.inf  # FAISS fills up with the lowest float
        return rows, scores

    @cached_property
    def _centres(self) -> NDArray[np.float32] | None:
        """``[C, D]`` of the cells of an IVF index on the CPU; None: it is another index."""
        return _held(faiss.downcast_index(self.index.quantizer)) if isinstance(self.index, faiss.IndexIVF) else None

    @cached_property
    def _cells(self) -> NDArray[np.int32]:
        """``[N]`` the cell of each item of an IVF index."""
        return cells_of(self.index)

    @cached_property
    def _cell_sizes(self) -> NDArray[np.int64]:
        return np.bincount(self._cells, minlength=self.recipe.nlist)

    def approximate(self, queries: NDArray[np.float32], k: int, nprobe: int | None = None) -> Found:
        """What the index finds, ``[Q, k]``; possibly fewer than ``k``, filled up with ``-1``.

        Args:
            queries: ``[Q, D]`` float32, contiguous.
            k: results wanted, at most ``N``. The recipe's settings are good for ``recall_at`` results; a deeper
                search looks into more of the index.
            nprobe: cells of an IVF index to scan; None: as many as the best ``k`` want.
        """
        recipe = self.recipe
        if self._flat is not None and len(queries) <= FEW_QUERIES:
            return exact_search(queries, self._flat, k)
        fetch = min(len(self.embeddings), k * recipe.rescore) if recipe.lossy else k
        rows, scores = self._asked(queries, fetch, nprobe or recipe.probes(k), k / recipe.recall_at)
        return best_of(rows, self.scores(queries, rows), k) if recipe.lossy else (rows, scores)

    def _asked(self, queries: NDArray[np.float32], fetch: int, nprobe: int, widen: float) -> Found:
        """What the index says, before anything is scored again."""
        recipe, params = self.recipe, None
        if recipe.is_ivf:
            params = _searched(nprobe)
            if len(queries) <= FEW_QUERIES and self._centres is not None:
                return self._scanned(queries, fetch, *self._nearest(queries, nprobe), params)
        elif widen > 1 and recipe.kind.startswith("hnsw"):
            params = _faiss.SearchParametersHNSW(efSearch=math.ceil(recipe.ef_search * widen))
        scores, rows = self.index.search(queries, fetch, params=params)
        scores[rows < 0] = -np.inf
        return rows, scores

    @cached_property
    def _flat(self) -> NDArray[np.float32] | None:
        """``[N, D]`` what a flat index on the CPU holds; None: it is another index."""
        return _held(self.index)

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
        allowed: Rows | None,
        eligible: int,
        exclude: Ragged | None,
    ) -> NDArray[np.int64]:
        """Queries with fewer results than ``min(k, eligible)``."""
        suspects = (rows[:, min(k, eligible) - 1] < 0).nonzero()[0]  # what there is comes first
        if exclude is None or not len(suspects):
            return suspects
        have = np.count_nonzero(rows >= 0, axis=1)
        out = []
        for q in suspects:
            mine = np.unique(exclude.values[exclude.offsets[q] : exclude.offsets[q + 1]])
            gone = len(mine) if allowed is None else sum(row in allowed for row in mine.tolist())
            if have[q] < min(k, eligible - gone):
                out.append(q)
        return np.asarray(out, np.int64)

    def _checked(self, queries: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        dim = self.embeddings.shape[1]
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise ConfigError(f"query vectors have shape {list(queries.shape)}; expected [Q, {dim}]")
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ConfigError(f"k is {k!r}; expected a whole number, at least 1")
        return np.ascontiguousarray(queries, np.float32)


@lru_cache
def _searched(nprobe: int) -> Any:
    return _faiss.SearchParametersIVF(nprobe=nprobe)


def _held(index: Any) -> NDArray[np.float32] | None:
    """``[N, D]`` the vectors of a flat index, where they lie."""
    if not isinstance(index, faiss.IndexFlat):
        return None
    held: NDArray[np.float32] = _faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return held.reshape(index.ntotal, index.d)


def _keep(found: Found, k: int, n: int, allowed: Rows | None, exclude: Ragged | None) -> Found:
    """Drop what may not be seen, close the gaps, and cut or fill up to ``k`` columns."""
    rows, scores = found
    if allowed is not None or (exclude is not None and len(exclude.values)):
        keep = rows >= 0
        if allowed is not None:
            keep &= _among(rows, n, allowed)
        if exclude is not None and len(exclude.values):
            query = np.repeat(np.arange(len(rows)), np.diff(exclude.offsets))
            keep &= ~np.isin(np.arange(len(rows))[:, None] * n + rows, query * n + exclude.values)
        if len(rows) == 1:  # the most frequent request; a tenth of the time of what follows
            kept = np.flatnonzero(keep[0])[:k]
            rows, scores = rows[:, kept], scores[:, kept]
        else:
            order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
            keep = np.take_along_axis(keep, order, 1)
            rows = np.where(keep, np.take_along_axis(rows, order, 1), -1)
            scores = np.where(keep, np.take_along_axis(scores, order, 1), np.float32(-np.inf))
    if rows.shape[1] < k:
        more = nothing(len(rows), k - rows.shape[1])
        rows, scores = np.hstack([rows, more[0]]), np.hstack([scores, more[1]])
    return rows[:, :k], scores[:, :k]


def _among(rows: NDArray[np.int64], n: int, allowed: Rows) -> NDArray[np.bool_]:
    """``[Q, F]`` which of these rows are allowed."""
    if rows.size <= _FEW:
        return np.asarray([[row in allowed for row in mine] for mine in rows.tolist()], np.bool_)
    return np.asarray((packed(allowed, n)[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1, np.bool_)
