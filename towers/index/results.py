"""What a retriever answers with.

``Q`` requests, ``k`` results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from towers.index.planner import Plan


@dataclass(frozen=True)
class Results:
    """Items and scores, best first; unpacks as ``ids, scores``.

    Attributes:
        ids: external ids, int64 or objects of type str. One request: ``[≤ k]``, only what there is.
            Many: ``[Q, k]``; where fewer items are eligible, the places left are ``-1`` or None.
        scores: float32 of the same shape, dot product or cosine. ``-inf`` marks the places left: it tells
            them from an item whose id is ``-1``.
        unknown: ``[Q]`` (one request: a number) items of a raw history that the catalogue does not have;
            they were skipped.
        plan: how the items were found, and how many were eligible, if ``explain`` was asked for.
        bundle: id of the bundle that answered, see ``manifest.bundle_id``.
    """

    ids: NDArray[Any]
    scores: NDArray[np.float32]
    unknown: Any = 0
    plan: Plan | None = None
    bundle: str = ""

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """The ids, then the scores."""
        return iter((self.ids, self.scores))


class Names(Protocol):
    """What names rows."""

    def external(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """External ids of rows, in the same shape; ``-1`` or None for row ``-1``."""
        ...


def answers(
    ids: Names,
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    one: bool,
    unknown: NDArray[np.int64] | None = None,
    plan: Plan | None = None,
    bundle: str = "",
) -> Results:
    """Rows as external ids; for one request without the places that are left.

    Args:
        ids: of the rows.
        rows: ``[Q, k]``, ``-1`` where there is nothing.
        scores: ``[Q, k]``.
        one: whether one request was made, not a list of them.
        unknown: ``[Q]``, see ``Results``; None: none.
        plan: see ``Results``.
        bundle: see ``Results``.
    """
    unknown = np.zeros(len(rows), np.int64) if unknown is None else unknown
    if not one:
        return Results(ids.external(rows), scores, unknown, plan, bundle)
    there = rows[0] >= 0
    return Results(ids.external(rows[0][there]), scores[0][there], int(unknown[0]), plan, bundle)
