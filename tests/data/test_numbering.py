"""Row numbers of sorted ids: the place of an id among the distinct ones, however the ids arrive."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data.numbering import Numbering

INT64 = st.integers(-(2**63), 2**63 - 1)


def test_ids_are_numbered_across_batches_and_nulls_have_no_row() -> None:
    numbering = Numbering()
    assert numbering.ids.to_pylist() == []
    assert numbering.rows(pa.array([-5, -5, 0])).tolist() == [0, 0, 1]
    assert numbering.rows(pa.array([0, 0])).tolist() == [1, 1]
    assert numbering.rows(pa.array([], pa.int64())).tolist() == []
    assert numbering.rows(pa.array([7, None, None])).tolist() == [2, -1, -1]
    assert numbering.rows(pa.array([None], pa.int64())).tolist() == [-1]
    assert numbering.ids.to_pylist() == [-5, 0, 7]


def test_ids_taken_early_stay_as_they_were_while_more_arrive() -> None:
    numbering, taken = Numbering(), []
    for start in range(0, 5_000, 700):
        numbering.rows(pa.array(np.arange(start, start + 700)))
        taken.append(numbering.ids)
    assert [ids.to_pylist() for ids in taken] == [list(range(700 * k)) for k in range(1, 9)]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.one_of(INT64, st.integers(-3, 3)), max_size=40), st.integers(0, 3), st.lists(st.integers(0, 43)))
def test_rows_are_those_of_numpy_wherever_the_batches_are_cut(ids: list[int], nulls: int, cuts: list[int]) -> None:
    column = pa.array([*sorted(ids), *[None] * nulls], pa.int64())
    ends = [*sorted(min(cut, len(column)) for cut in cuts), len(column)]
    numbering = Numbering()
    starts = [0, *ends[:-1]]
    found = [numbering.rows(column.slice(a, b - a)) for a, b in zip(starts, ends, strict=True)]
    distinct, rows = np.unique(np.array(sorted(ids), np.int64), return_inverse=True)
    assert np.concatenate(found).tolist() == [*rows.tolist(), *[-1] * nulls]
    assert numbering.ids.to_pylist() == distinct.tolist()
