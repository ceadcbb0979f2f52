"""Four ways to the best eligible items, and which is the shortest for a request.

``N`` items, ``E`` of them eligible, ``p = E / N``, ``Q`` queries, ``D`` dimensions, ``k`` results.

=======  ======================================================================  ==================================
route    what is done                                                            shortest when
=======  ======================================================================  ==================================
exact    every eligible item is scored, and no other is looked at                few pass, or many queries share them
cells    the eligible items in the nearest cells of an IVF index are scored,     some pass, one query asks
         in the more cells the fewer pass
probe    those cells are scanned for eligible items by the index itself          some pass of very many
index    the index is asked for more than ``k``, and what is not eligible        most pass
         dropped
=======  ======================================================================  ==================================

The bitmaps know ``E`` exactly: nothing about it is estimated. Times are: each route is so many steps of a few kinds,
and the constants say what a step takes. Where routes cross they take about equally long, so that a machine on which the
constants are off by a quarter loses little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from towers.index.recipes import IndexRecipe

Route = Literal["exact", "cells", "probe", "index"]
FEW_ITEMS = 4096  # so many are scored sooner than any index is asked
FEW_QUERIES = 4  # up to so many, eligible embeddings are scored where they lie; for more they are copied together once
MOST = 1 / 3  # if more of the items are eligible, scoring all in their order is quicker than going from one to the next

# Nanoseconds on one core, for a dimension …
_ROW = 0.45  # … of an embedding scored where it lies, anywhere in memory
_COPY = 1.0  # … of an embedding copied
_PRODUCT = 0.08  # … of a matrix product
_SCAN = 0.26  # … of an embedding scored in a row of others, as cells are
_STREAM = 0.16  # … of one of all embeddings, scored from the first to the last
# … and for
_CELL = 0.5  # … a dimension of a cell's centre
_CODE = 1.0  # … a byte of a product-quantised vector
_FAST = 0.1  # … half a byte of one that is scanned 32 at a time
_SIGN = 0.2  # … a dimension of which the sign is kept
_FAR = 0.7  # … a dimension of an embedding scored where it lies, others being far away
_PICK = 2.0  # … an eligible item's cell; as much again for each query, whether the cell is near
_CHECK = 5.0  # … asking whether an item is eligible
_SURPRISE = 35.0  # … an answer that the processor did not foresee
_PLACE = 120.0  # … an item that takes a place among the results, for the time being
_STEP = 30_000.0  # … a query that is not answered together with the others
_BITS = 100_000.0  # … a bitmap as FAISS reads it, and a look at where the eligible items lie


@dataclass(frozen=True)
class Plan:
    """How a request was, or is to be, answered.

    Attributes:
        route: see above.
        items: in the catalogue.
        eligible: of those, before what single requests exclude.
        excluded: the most items that one request excludes.
        fetch: results that the route is asked for, of which the best eligible ``k`` are kept.
        nprobe: cells scanned for a query; 0 where none are.
        completed: queries for which all eligible items were scored after all, because results came out short or the
            eligible items lie elsewhere than in the cells scanned.
        live: items posted and not expired at the moment of the request; None if nobody has asked.
        passing: items that pass its filter, live or not; None if nobody has asked.
        written: items outside of the bundle's index, written since it was made; they are searched beside it.
    """

    route: Route
    items: int
    eligible: int
    excluded: int
    fetch: int
    nprobe: int = 0
    completed: int = 0
    live: int | None = None
    passing: int | None = None
    written: int = 0

    def __str__(self) -> str:
        """One line for people."""
        counts = {"live": self.live, "pass the filter": self.passing}
        told = "".join(f", {n:,} {what}" for what, n in counts.items() if n is not None)
        told += f", {self.written:,} of them written since" if self.written else ""
        cells = f" from {self.nprobe:,} cells" if self.nprobe else ""
        return (
            f"{self.route}: {self.eligible:,} of {self.items:,} items are eligible{told}; "
            f"{self.fetch:,} fetched{cells}, {self.excluded:,} excluded, {self.completed:,} queries completed"
        )


def plan(
    recipe: IndexRecipe, items: int, dim: int, eligible: int, k: int, *, excluded: int = 0, queries: int = 1,
    exact: bool = False,
) -> Plan:  # fmt: skip
    """The shortest route.

    Args:
        recipe: of the index, resolved.
        items: ``N``.
        dim: ``D``.
        eligible: ``E``.
        k: results wanted.
        excluded: the most items that one query excludes, eligible or not.
        queries: ``Q``; they share the eligible items.
        exact: nothing but exact will do.
    """
    wanted = min(k + excluded, eligible)
    all_scored = Plan("exact", items, eligible, excluded, wanted)
    if not exact and eligible == items:
        return Plan("index", items, eligible, excluded, wanted, recipe.probes(wanted))  # what it was built for
    if exact or eligible <= FEW_ITEMS:
        return all_scored
    share = eligible / items
    depth = wanted / share  # as deep in the ranking of all items lie the best eligible ones
    fetch = min(items, math.ceil((wanted + 3 * math.sqrt(wanted)) / share))  # by chance enough of them are eligible
    over = Plan("index", items, eligible, excluded, fetch, recipe.probes(depth))  # what lies deeper fills up
    routes = [
        (_exact(eligible, items, dim, queries), all_scored),
        (_index(recipe, items, dim, over, queries), over),
    ]
    if over.nprobe:
        cells = Plan("cells", items, eligible, excluded, wanted, recipe.probes(depth))
        probe = replace(cells, route="probe")
        routes.append((_in_cells(recipe, items, dim, cells, queries), cells))
        routes.append((_probe(recipe, items, dim, probe, queries), probe))
    return min(routes, key=lambda r: r[0])[1]


def _exact(eligible: int, items: int, dim: int, queries: int) -> float:
    if queries > FEW_QUERIES:
        return eligible * dim * (_PRODUCT * queries + (_COPY if eligible < items else 0))
    return dim * queries * (items * _STREAM if eligible > MOST * items else eligible * _ROW)


def _index(recipe: IndexRecipe, items: int, dim: int, plan: Plan, queries: int) -> float:
    if recipe.kind == "flat":
        return _exact(items, items, dim, queries) + queries * _kept(recipe, dim, plan.fetch, items)
    if recipe.kind.startswith("hnsw"):
        visited = recipe.ef_search * max(1.0, plan.fetch / recipe.recall_at) * recipe.m
        return queries * visited * (dim * _ROW + _PLACE)
    scanned = items * plan.nprobe / recipe.nlist
    each = _cells(recipe, dim) + scanned * _scored(recipe, dim) + _kept(recipe, dim, plan.fetch, scanned)
    return queries * each


def _in_cells(recipe: IndexRecipe, items: int, dim: int, plan: Plan, queries: int) -> float:
    held = plan.eligible * plan.nprobe / recipe.nlist
    return plan.eligible * _PICK * (1 + queries) + queries * (_STEP + _cells(recipe, dim) + held * dim * _FAR)


def _probe(recipe: IndexRecipe, items: int, dim: int, plan: Plan, queries: int) -> float:
    share = plan.eligible / items
    scanned = items * plan.nprobe / recipe.nlist
    asked = scanned * (_CHECK + _SURPRISE * math.sqrt(share * (1 - share)) + share * _scored(recipe, dim))
    return _BITS + queries * (_cells(recipe, dim) + asked + _kept(recipe, dim, plan.fetch, scanned * share))


def _cells(recipe: IndexRecipe, dim: int) -> float:
    return recipe.nlist * dim * _CELL


def _scored(recipe: IndexRecipe, dim: int) -> float:
    if recipe.kind == "ivf_pq":
        return recipe.m * _CODE
    return {"ivf_pq4": recipe.m * _FAST, "ivf_rabitq": dim * _SIGN}.get(recipe.kind, dim * _SCAN)


def _kept(recipe: IndexRecipe, dim: int, fetch: int, scored: float) -> float:
    """Keeping the best: in random order, ``k (1 + log n / k)`` of ``n`` items are among the best ``k`` so far."""
    places = fetch * (recipe.rescore if recipe.lossy else 1)
    again = places * dim * _ROW if recipe.lossy else 0.0
    return again + places * _PLACE * (1 + math.log(max(1.0, scored / places)))
