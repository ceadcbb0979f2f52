"""One search over all parts of a catalogue.

``Q`` queries, ``k`` results. Each part promises its best ``min(k, eligible)`` and never an item that is not eligible;
the best ``k`` of those are the best of all, and the promise holds for the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from towers.features import Ragged
from towers.index.bitmaps import Rows
from towers.index.eligibility import Eligible
from towers.index.exact import Found, best_of
from towers.index.filters import Filter
from towers.index.live_catalogue import Catalogue, Part
from towers.index.planner import Plan


def eligible_at(catalogue: Catalogue, at: int, condition: Filter | str | None) -> list[Eligible]:
    """Of each part, which items may be given.

    Raises:
        ConfigError: a filter that does not fit the attributes.
    """
    return [p.eligibility.at(at, condition, present=p.present) for p in catalogue.parts]


def search(
    catalogue: Catalogue,
    queries: NDArray[np.float32],
    k: int,
    *,
    eligible: Sequence[Eligible],
    exclude: Ragged | None = None,
    exact: bool = False,
) -> tuple[Found, Plan]:
    """The ``k`` best items of each query, and how they were found.

    Args:
        catalogue: whose items.
        queries: ``[Q, D]`` float32.
        k: results wanted.
        eligible: of each part.
        exclude: ``[Q]`` lists of rows that this query must not get.
        exact: score every eligible item, whatever the index.

    Returns:
        rows ``[Q, k]`` and scores ``[Q, k]``, ``-1`` and ``-inf`` where there are no more; and the plan: the route is
        that of the bundle's own items, the counts are of all.
    """
    base, *more = catalogue.parts
    found, plan = base.search.explained(
        queries, k, allowed=eligible[0].rows, exclude=_within(exclude, base) if more else exclude, exact=exact
    )
    if base.dead or more:
        plan = replace(plan, items=len(catalogue), eligible=sum(map(_count, eligible, catalogue.parts)))
    filled = [(p, e.rows) for p, e in zip(more, eligible[1:], strict=True) if _count(e, p)]
    if not filled:
        return found, plan
    rows, scores = [found[0]], [found[1]]
    completed = plan.completed
    for part, allowed in filled:
        (mine, theirs), way = part.search.explained(
            queries, k, allowed=allowed, exclude=_within(exclude, part), exact=exact
        )
        rows.append(np.where(mine >= 0, mine + part.start, -1))
        scores.append(theirs)
        completed = max(completed, way.completed)
    plan = replace(plan, excluded=_most(exclude), completed=completed, written=catalogue.written)
    return best_of(np.hstack(rows), np.hstack(scores), k), plan


def joined(eligible: Sequence[Eligible], parts: Sequence[Part]) -> Rows | None:
    """The eligible rows of all parts as one set; None: all rows."""
    if all(e.rows is None for e in eligible):
        return None
    sets = [p.eligibility.everything if e.rows is None else e.rows for e, p in zip(eligible, parts, strict=True)]
    return Rows.union(*(s.shift(p.start) for s, p in zip(sets, parts, strict=True)))


def _count(eligible: Eligible, part: Part) -> int:
    return len(part) if eligible.rows is None else len(eligible.rows)


def _most(exclude: Ragged | None) -> int:
    return 0 if exclude is None or len(exclude.offsets) < 2 else int(np.diff(exclude.offsets).max())


def _within(exclude: Ragged | None, part: Part) -> Ragged | None:
    """What of the lists lies in a part, counted from its start; None: nothing."""
    if exclude is None:
        return None
    inside = (exclude.values >= part.start) & (exclude.values < part.end)
    if not inside.any():
        return None
    before = np.concatenate([[0], np.cumsum(inside)])
    return Ragged(before[exclude.offsets].astype(np.int64), exclude.values[inside] - part.start)
