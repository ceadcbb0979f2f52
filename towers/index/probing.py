"""How many cells of an IVF index to scan for eligible items, and when not to trust those cells.

``N`` items, ``C`` cells, ``Q`` queries.

If the items that pass were drawn by lot, the best hundred of the tenth that passes would lie as deep as the best
thousand of all. So many cells must be scanned as hold the best thousand: more than for a hundred, but far fewer than
ten times as many. ``probe_growth`` measures how the number grows on held-out queries.

Filters are not drawn by lot. If they point towards the query (nursing jobs for a nurse), the cells nearest to it hold
more than their share, and recall is higher than measured. If they point away (nursing jobs for a lawyer), the best of
them lie in cells that are not scanned: ``pointing_away`` notices, and the search scores all eligible items instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.index.bitmaps import Rows
from towers.index.exact import exact_search
from towers.index.faiss_setup import faiss
from towers.index.recipes import MEASURED_DEPTH, IndexRecipe

_SAMPLE = 2048  # eligible items whose cells are looked up
_AWAY = 0.5  # of their share in the cells scanned
_SPARE = 0.2  # of the way from the recall asked for to 1: what other queries may need
_QUERIES = 256  # whose ranking is measured


def cells_of(index: Any) -> NDArray[np.int32]:
    """``[N]`` the cell of each item of an IVF index."""
    lists = index.invlists
    out = np.full(index.ntotal, -1, np.int32)
    for cell in range(index.nlist):
        if size := lists.list_size(cell):
            out[faiss.rev_swig_ptr(lists.get_ids(cell), size)] = cell
    return out


def pointing_away(
    scanned: NDArray[np.int64], eligible: Rows, cells: NDArray[np.int32], sizes: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """``[Q]`` queries of which the cells scanned hold less than half of the eligible items that chance would put there.

    Args:
        scanned: ``[Q, P]`` cells.
        eligible: some items.
        cells: ``[N]`` the cell of each item.
        sizes: ``[C]`` items in each cell.
    """
    rows = np.frombuffer(eligible.to_array(), np.uint32)
    sample = cells[rows[:: max(1, len(rows) // _SAMPLE)]]
    held = np.bincount(sample, minlength=len(sizes)) / len(sample)
    by_chance = sizes / len(cells)
    return np.asarray(held[scanned].sum(1) < _AWAY * by_chance[scanned].sum(1), np.bool_)


def in_cells(
    scanned: NDArray[np.int64], eligible: Rows, cells: NDArray[np.int32], sizes: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], bool]]:
    """For each query the eligible items in its cells; and whether it is one of those that ``pointing_away`` means.

    Args:
        scanned: as there, like all others.
        eligible: some items.
        cells: ``[N]``.
        sizes: ``[C]``.
    """
    rows = np.frombuffer(eligible.to_array(), np.uint32)
    lies = cells.take(rows)
    for mine in scanned:
        near = np.zeros(len(sizes), np.bool_)
        near[mine] = True
        held = rows.take(np.flatnonzero(near.take(lies))).astype(np.int64)
        yield held, len(held) < _AWAY * len(rows) * int(sizes[mine].sum()) / len(cells)


def with_probe_growth(
    recipe: IndexRecipe, index: Any, embeddings: NDArray[np.float32], queries: NDArray[np.float32]
) -> IndexRecipe:
    """The recipe of an IVF index with its ``probe_growth`` measured; another as it is. Arguments as there."""
    if not recipe.is_ivf or not len(queries):
        return recipe
    return replace(recipe, probe_growth=round(probe_growth(index, recipe, embeddings, queries), 4))


def probe_growth(
    index: Any, recipe: IndexRecipe, embeddings: NDArray[np.float32], queries: NDArray[np.float32]
) -> float:
    """The power by which cells to scan grow with the depth of the results wanted; 0: they need not.

    The least ``g`` with which ``nprobe · (depth / recall_at) ^ g`` cells hold enough of the best ``depth`` items, at
    depths from ``recall_at`` to fifty times that, or half of the catalogue. Enough is a little more than
    ``min_recall``.

    Args:
        index: an IVF index.
        recipe: what it was built with, resolved.
        embeddings: ``[N, D]``.
        queries: ``[Q, D]`` held-out user vectors.
    """
    queries = np.ascontiguousarray(queries[:_QUERIES], np.float32)
    n, cells = len(embeddings), index.nlist
    deepest = min(n // 2, int(MEASURED_DEPTH * recipe.recall_at))
    if deepest <= recipe.recall_at or not len(queries):
        return 1.0  # too small a catalogue for an index to be asked
    best = exact_search(queries, embeddings, deepest)[0]
    _, nearest = index.quantizer.search(queries, cells)
    place = np.empty_like(nearest)
    np.put_along_axis(place, nearest, np.arange(cells)[None].repeat(len(queries), 0), 1)
    needed = np.take_along_axis(place, cells_of(index)[best].astype(np.int64), 1)  # cells before the one it is in
    enough = recipe.min_recall + _SPARE * (1 - recipe.min_recall)

    def probes(depth: int) -> int:
        return 1 + math.ceil(float(np.quantile(needed[:, :depth], enough)))

    start = max(recipe.nprobe, probes(recipe.recall_at))  # what is lost there is lost without a filter too
    return max(
        0.0,
        *(
            math.log(probes(depth) / start) / math.log(depth / recipe.recall_at)
            for depth in np.geomspace(recipe.recall_at, deepest, 9)[1:].astype(int).tolist()
        ),
    )
