"""Split rules, as array functions over whole users.

Every rule receives rows sorted by (user, time) and returns a split code for each: 0 train, 1 valid,
2 test, and ``LEFT_OUT`` for what no split may see (a later view of a held-out job, say). A group is a job, or a
family of reposts. What is random depends on hashes of external ids and the seed alone: rows may come in any order,
and new users and items leave earlier choices as they were.
"""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.blocks import SplitSpec
from data.instants import DAY_US, DAYS, instant, iso
from towers.errors import ConfigError
from towers.features.hashing import mixed

TRAIN, VALID, TEST, LEFT_OUT = 0, 1, 2, -1
Codes = NDArray[np.int8]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]


def id_hashes(con: duckdb.DuckDBPyConnection, ids: pa.Array) -> Hashes:
    """``[n]`` the first 64 bits of each id's MD5, as text: they depend on nothing else, no row and no version."""
    with con.cursor() as cursor:  # one of its own: the sorted log may be open
        cursor.register("ids", pa.table({"id": ids}))
        found = cursor.sql("SELECT ('0x' || md5(id::VARCHAR)[:16])::UBIGINT AS hash FROM ids").to_arrow_table()
    return np.asarray(found["hash"].to_numpy(), np.uint64)


def pair_hash(user: Hashes, item: Hashes) -> Hashes:
    """``[n]`` a fixed pseudo-random number for each pair of a user's hash and an item's."""
    return mixed(user ^ mixed(item, 0), 0)


def global_time(time: Ints, valid_from: int, test_from: int) -> Codes:
    """``[n]``: train before ``valid_from``, test from ``test_from`` on (microseconds UTC)."""
    return (time >= valid_from).astype(np.int8) + (time >= test_from)  # a code is the number of boundaries passed


def refitted(split: Codes) -> Codes:
    """``[n]``: validation moved into training."""
    return np.where(split == VALID, TRAIN, split).astype(np.int8)


def cold_items(item: Hashes, valid: float, test: float, seed: int) -> Codes:
    """``[n]``: whole items, or families, held out by their hash: every event of theirs goes with them."""
    u = mixed(item, seed).astype(np.float64) / 2**64
    return np.where(u < test, TEST, np.where(u < test + valid, VALID, TRAIN)).astype(np.int8)


def leave_last_out(user: Ints, group: Ints, positive: NDArray[np.bool_], min_items: int) -> Codes:
    """A user's last group by first event is test, the one before it valid.

    The target is the first event of that group. Whatever else the user did from the valid target on is left
    out, and with it the other events of the two groups, so that nothing in training lies after a target.

    Args:
        user: ``[n]`` user rows, sorted by (user, time).
        group: ``[n]`` the family of each row's item.
        positive: ``[n]`` whether a row can be a target.
        min_items: users with fewer groups stay in train.

    Returns:
        ``[n]`` codes.
    """
    split = np.full(len(user), TRAIN, np.int8)
    rows = np.flatnonzero(positive)
    first, owner, count = _distinct(user[rows], group[rows])
    # `first` is ordered by (user, time of first event); the place from the end of the user's list
    from_end = np.cumsum(count)[owner] - 1 - np.arange(len(first))
    enough = count[owner] >= min_items
    test, valid = rows[first[enough & (from_end == 0)]], rows[first[enough & (from_end == 1)]]
    # everything from a user's valid target on
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    begin = np.full(len(starts), len(user))
    for held_out in (test, valid):  # a user with a single group has no valid target
        begin[np.searchsorted(starts, held_out, side="right") - 1] = held_out
    later = np.arange(len(user)) >= np.repeat(begin, np.diff(np.append(starts, len(user))))
    split[later] = LEFT_OUT
    # earlier positives of the two groups cannot exist; a job that was merely shown stays shown
    split[valid], split[test] = VALID, TEST
    return split


def random_per_user(
    user: Ints,
    group: Ints,
    positive: NDArray[np.bool_],
    pair: Hashes,
    valid: float,
    test: float,
    min_items: int,
    seed: int,
) -> Codes:
    """A random share of each user's groups: test ``max(1, floor(test·n + ½))``, valid ``floor(valid·n + ½)``.

    Args:
        user: ``[n]`` user rows, sorted by (user, time).
        group: ``[n]`` the family of each row's item.
        positive: ``[n]`` whether a row can be a target.
        pair: ``[n]`` the hash of each row's (user, group), which orders a user's groups.
        valid: share of the groups.
        test: likewise.
        min_items: users with fewer groups stay in train.
        seed: of the order.

    Returns:
        ``[n]`` codes.
    """
    split = np.full(len(user), TRAIN, np.int8)
    rows = np.flatnonzero(positive)
    first, owner, count = _distinct(user[rows], group[rows])
    key = mixed(pair[rows][first], seed)
    place = np.empty(len(first), np.int64)
    order = np.lexsort((key, owner))
    place[order] = np.arange(len(first)) - (np.cumsum(count) - count)[owner[order]]
    n = count[owner]
    n_test = np.maximum(1, np.floor(test * n + 0.5)) * (n >= min_items)
    n_valid = np.floor(valid * n + 0.5) * (n >= min_items)
    code = np.where(place < n_test, TEST, np.where(place < n_test + n_valid, VALID, TRAIN)).astype(np.int8)
    # the pair's other events follow it, impressions of a held-out job included
    width = int(group.max(initial=0)) + 1
    number = user * width + group
    known = number[rows][first]
    sorter = np.argsort(known)
    at = np.searchsorted(known, number, sorter=sorter).clip(max=max(len(known) - 1, 0))
    if len(known):
        hit = known[sorter[at]] == number
        split[hit] = code[sorter[at[hit]]]
        split[hit & ~positive & (split > 0)] = LEFT_OUT
    return split


def _distinct(user: Ints, group: Ints) -> tuple[Ints, Ints, Ints]:
    """First row of each (user, group), in row order; the number (from 0) of its user; groups of each user."""
    width = int(group.max(initial=0)) + 1
    _, first = np.unique(user * width + group, return_index=True)
    first = np.sort(first)
    owner = np.cumsum(np.diff(user[first], prepend=user[first[0]] if len(first) else 0) != 0)
    return first, owner, np.bincount(owner).astype(np.int64)


def boundaries(spec: SplitSpec, first: int, last: int, begin: Callable[[float, int], int]) -> tuple[int, int]:
    """``global_time``: microseconds at which valid and test begin.

    Args:
        spec: ``valid`` and ``test`` as ISO instants (UTC unless they say otherwise), as days counted back
            from the end of the split (``"7d"``), or as shares of all events.
        first: earliest event.
        last: latest event.
        begin: of (share, end): the instant from which on, and before ``end``, that share of all events lies.

    Raises:
        ConfigError: a split would be empty.
    """

    def start(value: float | str, end: int) -> int:
        if isinstance(value, float | int):
            return begin(value, end)
        days = DAYS.fullmatch(value)
        return end - round(float(days[1]) * DAY_US) if days else instant(value)

    test_from = start(spec.test, last + 1)
    valid_from = start(spec.valid, test_from)
    if not first < valid_from < test_from <= last:
        raise ConfigError(
            "split global_time leaves a split empty: the log runs from "
            f"{iso(first)} to {iso(last)}, valid from {iso(valid_from)}, test from {iso(test_from)}; "
            "correct split.valid and split.test"
        )
    return valid_from, test_from
