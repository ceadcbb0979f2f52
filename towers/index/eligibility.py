"""Which items a request may be given: live at its moment, passing its filter, not excluded.

``N`` items, ``Q`` requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.errors import DataError
from towers.features import Ragged
from towers.features import columns as c
from towers.index.attributes import AttributeIndex
from towers.index.bitmaps import Rows
from towers.index.encoding import user_rows
from towers.index.filter_text import passing
from towers.index.filters import Filter
from towers.index.golden import User
from towers.index.opening import OpenBundle
from towers.index.requests import Ids


class Eligible(NamedTuple):
    """The items that requests of one moment and one filter may get.

    Attributes:
        rows: which; None: all.
        live: how many items are live.
        passing: how many pass the filter, live or not.
    """

    rows: Rows | None
    live: int
    passing: int


class Eligibility:
    """Which items of a bundle may be recommended. Safe in threads.

    Args:
        attributes: ``[N]`` item attributes, with the columns ``posted`` and ``expires`` where there are any.
    """

    def __init__(self, attributes: pa.Table) -> None:
        self._index = AttributeIndex(attributes)
        bounds = ((c.POSTED, ">"), (c.EXPIRES, "<="))  # every request asks for them
        self._bounds = [(self._index.column(name), op) for name, op in bounds if name in self._index]

    @property
    def everything(self) -> Rows:
        """All rows."""
        return self._index.everything

    @property
    def indexed(self) -> AttributeIndex:
        """The attributes."""
        return self._index

    def at(self, at: int, condition: Filter | str | None = None, *, present: Rows | None = None) -> Eligible:
        """Items that pass a filter and are live: posted, and not expired. No request gets others.

        Args:
            at: microseconds UTC.
            condition: on the attributes; None: none.
            present: the items that there are; None: all.

        Raises:
            ConfigError: a filter that does not fit the attributes.
        """
        everything = self._index.everything
        there = everything if present is None else present
        live = there
        for column, not_live in self._bounds:  # an item without the time is live
            live = live - column.where(not_live, at)
        passes = passing(condition, self._index)
        rows = live if passes is None else passes & live
        return Eligible(
            None if len(rows) == len(everything) else rows,
            len(live),
            len(there) if passes is None else len(passes if present is None else passes & there),
        )


def exclusions(
    bundle: OpenBundle,
    users: Sequence[User],
    given: Ragged | None,
    current: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
) -> Ragged | None:
    """``[Q]`` lists of item rows: those given and, of known users, what they have taken.

    Args:
        bundle: which knows what they have taken.
        users: of the requests.
        given: ``[Q]`` lists of other rows.
        current: where the bundle's rows lie now; None: where they lay.
    """
    if bundle.known is None or not users or isinstance(users[0], Mapping):
        return given
    o, v = bundle.known.exclusions
    own = [np.asarray(v[o[r] : o[r + 1]]) for r in user_rows(bundle, users)]
    own = own if current is None else [current(rows) for rows in own]
    if given is not None:
        own = [np.union1d(a, given.values[given.offsets[i] : given.offsets[i + 1]]) for i, a in enumerate(own)]
    return Ragged.of(own)


def exclude_lists(items: Ids, exclude: Sequence[Any] | None, queries: int, *, one: bool) -> Ragged | None:
    """``[Q]`` lists of item rows from ids to exclude; ids that the catalogue does not have cannot come anyway.

    Args:
        items: ids of the catalogue.
        exclude: a list for all requests, or a list for each; None: nothing.
        queries: ``Q``.
        one: whether one request was made, not a list of them.

    Raises:
        DataError: no list, or another number of lists than of requests.
    """
    if exclude is None:
        return None
    if isinstance(exclude, str | bytes):
        raise DataError(f"exclude is {exclude!r}; expected a list of item ids", where="request")
    given = list(exclude)
    nested = bool(given) and all(isinstance(e, list | tuple | set | np.ndarray) for e in given)
    if nested and (one or len(given) != queries):
        raise DataError(f"{len(given)} lists to exclude for {queries} requests", where="request, exclude")
    lists = [items.rows(e) for e in (given if nested else [given])]
    lists = [np.unique(rows[rows >= 0]) for rows in lists]
    return Ragged.of(lists if nested else lists * queries)
