"""Which items a request may be given: live at its moment, passing its filter, not excluded.

``N`` items, ``Q`` requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.errors import DataError
from towers.features import IdMap, Ragged
from towers.features import columns as c
from towers.index.encoding import user_rows
from towers.index.filters import Filter, passing
from towers.index.golden import User
from towers.index.opening import OpenBundle


class Liveness:
    """When the items of a bundle may be recommended.

    Args:
        attributes: ``[N]`` item attributes, with the columns ``posted`` and ``expires`` where there are any.
    """

    def __init__(self, attributes: pa.Table) -> None:
        self._attributes = attributes
        self._posted = _micros(attributes, c.POSTED, np.iinfo(np.int64).min)
        self._expires = _micros(attributes, c.EXPIRES, np.iinfo(np.int64).max)

    def allowed(self, condition: Filter | str | None, at: int) -> NDArray[np.bool_] | None:
        """``[N]`` items that pass a filter and are live; None: all.

        Args:
            condition: on the attributes; None: none.
            at: microseconds UTC.

        Raises:
            ConfigError: a filter that does not fit the attributes.
        """
        allowed = passing(condition, self._attributes)
        for bound, live in ((self._posted, np.less_equal), (self._expires, np.greater)):
            if bound is not None:
                there = live(bound, at)
                if not there.all():
                    allowed = there if allowed is None else allowed & there
        return allowed


def exclusions(bundle: OpenBundle, users: Sequence[User], given: Ragged | None) -> Ragged | None:
    """``[Q]`` lists of item rows: those given and, of known users, what they have taken."""
    if bundle.known is None or not users or isinstance(users[0], Mapping):
        return given
    o, v = bundle.known.exclusions
    own = [np.asarray(v[o[r] : o[r + 1]]) for r in user_rows(bundle, users)]
    if given is not None:
        own = [np.union1d(a, given.values[given.offsets[i] : given.offsets[i + 1]]) for i, a in enumerate(own)]
    return _ragged(own)


def exclude_lists(items: IdMap, exclude: Sequence[Any] | None, queries: int, *, one: bool) -> Ragged | None:
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
    return _ragged(lists if nested else lists * queries)


def _ragged(lists: Sequence[NDArray[np.int64]]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in lists])]).astype(np.int64)
    return Ragged(offsets, np.concatenate(lists) if lists else np.zeros(0, np.int64))


def _micros(table: pa.Table, name: str, null: int) -> NDArray[np.int64] | None:
    """``[N]`` microseconds of a time column with nulls filled; None if there is no such column."""
    if name not in table.column_names:
        return None
    return np.asarray(table[name].combine_chunks().cast(pa.int64()).fill_null(null).to_numpy(), np.int64)
