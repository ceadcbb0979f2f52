"""Split rules, as array functions over whole users.

Every rule receives rows sorted by (user, time) and returns a split code for each: 0 train, 1 valid,
2 test, and ``LEFT_OUT`` for what no split may see (a later view of a held-out job, say). ``G`` is the
number of groups: jobs, or families of reposts.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from data.spec import SplitSpec
from towers.errors import ConfigError

TRAIN, VALID, TEST, LEFT_OUT = 0, 1, 2, -1
Codes = NDArray[np.int8]
Ints = NDArray[np.int64]
_DAY_US = 86_400_000_000


def _mix(x: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """SplitMix64: a fixed pseudo-random number for each (x, seed), so that a split does not depend on row order."""
    z = x + np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def global_time(time: Ints, valid_from: int, test_from: int) -> Codes:
    """Train before ``valid_from``, test from ``test_from`` on (microseconds UTC)."""
    return np.where(time >= test_from, TEST, np.where(time >= valid_from, VALID, TRAIN)).astype(np.int8)


def cold_items(item: Ints, valid: float, test: float, seed: int) -> Codes:
    """Whole items held out: every event of theirs goes with them."""
    u = _mix(item.astype(np.uint64), seed).astype(np.float64) / 2**64
    return np.where(u < test, TEST, np.where(u < test + valid, VALID, TRAIN)).astype(np.int8)


def leave_last_out(user: Ints, group: Ints, positive: NDArray[np.bool_], min_items: int) -> Codes:
    """A user's last group by first event is test, the one before it valid.

    The target is the first event of that group. Whatever the user did from the valid target on, and
    other events of the two groups, is left out, so that nothing in training lies after a target.
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
    begin[np.searchsorted(starts, valid, side="right") - 1] = valid
    later = np.arange(len(user)) >= np.repeat(begin, np.diff(np.append(starts, len(user))))
    split[later] = LEFT_OUT
    # earlier events of the two held-out groups cannot exist: their first event is the target itself
    split[valid], split[test] = VALID, TEST
    return split


def random_per_user(
    user: Ints, group: Ints, positive: NDArray[np.bool_], valid: float, test: float, min_items: int, seed: int
) -> Codes:
    """A random share of each user's groups: test ``max(1, floor(test·n + ½))``, valid ``floor(valid·n + ½)``."""
    split = np.full(len(user), TRAIN, np.int8)
    rows = np.flatnonzero(positive)
    first, owner, count = _distinct(user[rows], group[rows])
    key = _mix(group[rows][first].astype(np.uint64) + (user[rows][first].astype(np.uint64) << np.uint64(32)), seed)
    place = np.empty(len(first), np.int64)
    order = np.lexsort((key, owner))
    place[order] = np.arange(len(first)) - (np.cumsum(count) - count)[owner[order]]
    n = count[owner]
    n_test = np.maximum(1, np.floor(test * n + 0.5)) * (n >= min_items)
    n_valid = np.floor(valid * n + 0.5) * (n >= min_items)
    code = np.where(place < n_test, TEST, np.where(place < n_test + n_valid, VALID, TRAIN)).astype(np.int8)
    # the pair's other events follow it, impressions of a held-out job included
    width = int(group.max(initial=0)) + 1
    pair = user * width + group
    known = pair[rows][first]
    sorter = np.argsort(known)
    at = np.searchsorted(known, pair, sorter=sorter).clip(max=max(len(known) - 1, 0))
    if len(known):
        hit = known[sorter[at]] == pair
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


def boundaries(spec: SplitSpec, first: int, last: int, quantile: dict[float, int]) -> tuple[int, int]:
    """``global_time``: microseconds at which valid and test begin.

    Args:
        spec: ``valid`` and ``test`` as ISO instants, as days (``"7d"``, valid counted back from test), or as shares.
        first: earliest event.
        last: latest event.
        quantile: time below which a share of the events lies, for the shares that ``shares(spec)`` names.
    """

    def at(value: float | str, end: int, before: float) -> int:
        if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?d", value):
            return end - int(float(value[:-1]) * _DAY_US)
        if isinstance(value, str):
            when = datetime.fromisoformat(value)
            return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1_000_000)
        return quantile[round(1 - value - before, 9)]

    test_from = at(spec.test, last + 1, 0.0)
    valid_from = at(spec.valid, test_from, spec.test if not isinstance(spec.test, str) else 0.0)
    if not first < valid_from < test_from <= last:
        raise ConfigError(
            f"split global_time: train {first} … valid {valid_from} … test {test_from} … {last} (µs) leaves a split "
            "empty; correct split.valid and split.test"
        )
    return valid_from, test_from


def shares(spec: SplitSpec) -> list[float]:
    """The quantiles that ``boundaries`` will ask for."""
    test = 0.0 if isinstance(spec.test, str) else spec.test
    out = [] if isinstance(spec.test, str) else [round(1 - test, 9)]
    return out if isinstance(spec.valid, str) else [*out, round(1 - spec.valid - test, 9)]
