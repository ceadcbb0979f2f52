"""Sets of rows and their forms, against boolean arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.index.bitmaps import Rows, mask_of, packed, row_numbers, rows_where, to_rows


def test_by_hand() -> None:
    rows = to_rows(np.array([0, 3, 9]))
    assert packed(rows, 11).tolist() == [0b0000_1001, 0b0000_0010]
    assert mask_of(rows, 4).tolist() == [True, False, False, True]
    assert row_numbers(rows).tolist() == [0, 3, 9]
    assert packed(Rows(), 9).tolist() == [0, 0]
    assert to_rows(np.array([9, 0, 3, 3])) == rows


@st.composite
def stretches(draw: st.DrawFn) -> np.ndarray:
    """``[N]`` booleans over up to five containers, each of them empty, sparse, dense, full or in runs."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    parts = []
    for _ in range(draw(st.integers(1, 5))):
        share = draw(st.sampled_from([0.0, 0.0005, 0.05, 0.4, 1.0]))
        part = rng.random(65536) < share
        if draw(st.booleans()):
            part[rng.integers(0, 60000) :][:5000] = draw(st.booleans())
        parts.append(part)
    whole = np.concatenate(parts)
    return whole[: len(whole) - draw(st.integers(0, 65535))]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(stretches(), st.integers(0, 100_000), st.integers(1, 200_000))
def test_every_kind_of_container_is_read(mask: np.ndarray, start: int, length: int) -> None:
    run = Rows(range(min(start, len(mask)), min(start + length, len(mask))))  # stored as a run
    for rows in (rows_where(mask), rows_where(mask) | run, rows_where(mask) - run, run):
        truth = np.zeros(len(mask), bool)
        truth[list(rows)] = True
        np.testing.assert_array_equal(packed(rows, len(mask)), np.packbits(truth, bitorder="little"))
        np.testing.assert_array_equal(mask_of(rows, len(mask)), truth)
        np.testing.assert_array_equal(row_numbers(rows), np.flatnonzero(truth))


@pytest.mark.parametrize("n", [1, 7, 8, 65535, 65536, 65537])
def test_all_rows_and_the_last_row(n: int) -> None:
    assert mask_of(Rows(range(n)), n).all()
    assert np.flatnonzero(mask_of(to_rows(np.array([n - 1])), n)).tolist() == [n - 1]
    assert len(packed(Rows(), n)) == (n + 7) // 8
