"""Ragged lists, beside lists of Python."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.features import Ragged

LISTS = st.lists(st.lists(st.integers(-(2**40), 2**40), max_size=4), max_size=6)
many = settings(derandomize=True, deadline=None, max_examples=60)


def ragged(lists: list[list[int]]) -> Ragged:
    return Ragged.of([np.array(x, np.int64) for x in lists])


def plain(lists: Ragged) -> list[list[int]]:
    assert lists.offsets.dtype == lists.values.dtype == np.int64
    return [lists.values[a:b].tolist() for a, b in zip(lists.offsets[:-1], lists.offsets[1:], strict=True)]


@many
@given(LISTS)
def test_what_is_put_in_comes_out(lists: list[list[int]]) -> None:
    assert plain(ragged(lists)) == lists


def test_empty_lists_have_no_entries() -> None:
    assert plain(Ragged.empty(2)) == [[], []]
    assert plain(Ragged.empty(0)) == []


@many
@given(LISTS.filter(len), st.data())
def test_rows_are_taken_in_the_order_asked_for_with_repetitions(lists: list[list[int]], data: Any) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8))
    assert plain(ragged(lists).take(np.array(rows, np.int64))) == [lists[r] for r in rows]


@many
@given(st.lists(LISTS, min_size=1, max_size=3))
def test_joined_lists_follow_each_other(parts: list[list[list[int]]]) -> None:
    assert plain(Ragged.joined([ragged(p) for p in parts])) == [x for p in parts for x in p]


def test_slices_may_overlap_and_be_empty() -> None:
    values = np.array([5, 6, 7, 8], np.int32)
    assert plain(Ragged.of_slices(values, np.array([1, 0, 2, 4]), np.array([3, 3, 2, 4]))) == [
        [6, 7],
        [5, 6, 7],
        [],
        [],
    ]
