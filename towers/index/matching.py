"""From items to users: whom a job may interest, by the embeddings that recommend jobs to users.

``M`` items, ``U`` known users, ``D`` dimensions, ``k`` results.

The inner product is the same in both directions, the training was not: a softmax over items teaches which items suit a
user, and leaves open what is common to all scores of one user. A cosine bounds that; with a dot product, users
with long vectors come first for every item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError, DataError
from towers.features import IdMap
from towers.index.attributes import AttributeIndex
from towers.index.bitmaps import Rows, row_numbers
from towers.index.faiss_setup import faiss
from towers.index.filter_text import passing
from towers.index.filters import Filter
from towers.index.opening import OpenBundle
from towers.index.requests import KnownUsers

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def match(
    items: Floats,
    users: Floats,
    k: int,
    *,
    allowed: Rows | None = None,
    exclude: Sequence[Ints] | None = None,
) -> tuple[Ints, Floats]:
    """The ``k`` best users of each item, every user scored.

    Args:
        items: ``[M, D]`` embeddings.
        users: ``[U, D]`` embeddings, possibly memory-mapped.
        k: users wanted.
        allowed: rows of the users that any item may get; None: all.
        exclude: ``[M]`` rows of users that this item must not get.

    Returns:
        rows ``[M, k]``, ``-1`` where there are no more users, and scores ``[M, k]``, ``-inf`` there.

    Raises:
        ConfigError: ``k`` is no whole number, or below 1.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ConfigError(f"k is {k!r}; expected a whole number, at least 1")
    rows, best = np.full((len(items), k), -1, np.int64), np.full((len(items), k), -np.inf, np.float32)
    pool = np.arange(len(users)) if allowed is None else row_numbers(allowed)
    within = users if allowed is None else users[pool]
    dropped = max((len(e) for e in exclude), default=0) if exclude is not None else 0
    wanted = min(k + dropped, len(pool))
    if not len(items) or not wanted:
        return rows, best
    scores, found = faiss.knn(np.ascontiguousarray(items), within, wanted, metric=faiss.METRIC_INNER_PRODUCT)
    for m in range(len(items)):
        mine = pool[found[m]]
        keep = np.ones(wanted, bool) if exclude is None else ~np.isin(mine, exclude[m])
        n = min(k, int(keep.sum()))
        rows[m, :n], best[m, :n] = mine[keep][:n], scores[m][keep][:n]
    return rows, best


@dataclass(frozen=True)
class Matchable:
    """The known users of a bundle, with what matching needs of them.

    Attributes:
        ids: external ids.
        known: ``[U]`` users.
        embeddings: ``[U, D]``, possibly memory-mapped.
        attributes: what they can be filtered by, or None.
    """

    ids: IdMap
    known: KnownUsers
    embeddings: Floats
    attributes: AttributeIndex | None

    @classmethod
    def of(cls, bundle: OpenBundle) -> Self:
        """Those of a bundle.

        Raises:
            DataError: there are none, or they have no embeddings.
        """
        if bundle.known is None or bundle.user_ids is None or bundle.known.embeddings is None:
            raise DataError(
                "this bundle holds no embeddings of users",
                where="match",
                cure="export a model that reads features or histories of users, with match=true",
            )
        table = bundle.known.attributes
        attributes = None if table is None else AttributeIndex(table)
        return cls(bundle.user_ids, bundle.known, bundle.known.embeddings, attributes)

    def passing(self, condition: Filter | str | None) -> Rows | None:
        """Rows of the users whose attributes pass a filter; None: all, because there is no filter.

        Raises:
            ConfigError: the users have no attributes, or the filter does not fit them.
        """
        if condition is None:
            return None
        if self.attributes is None:
            raise ConfigError("the users of this bundle have no attributes; set users.attributes in the data config")
        return passing(condition, self.attributes)

    def not_again(self, items: Ints, exclude: Sequence[Any]) -> list[Ints]:
        """``[M]`` rows of the users that each item row must not get: its takers, and excluded ids."""
        others = self.ids.rows(exclude)
        return [np.union1d(takers(self.known, int(item)), others[others >= 0]) for item in items]


def takers(users: KnownUsers, item: int) -> Ints:
    """Rows of the users to whom an item row is not recommended, because they have taken it."""
    offsets, values = users.exclusions
    return np.unique(np.searchsorted(offsets, np.flatnonzero(np.asarray(values) == item), side="right") - 1)
