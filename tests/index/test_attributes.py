"""Columns of the attribute index against looking at each item."""

from __future__ import annotations

import datetime as dt
import operator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from towers.index.attributes import AttributeIndex, Column
from towers.index.bitmaps import row_numbers

N = 5000
OPS = {"==": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def columns() -> dict[str, list[Any]]:
    rng = np.random.default_rng(0)
    words = ["", "a", "b", "ä", "z", "日本", "a b", "B"]
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    out: dict[str, list[Any]] = {
        "few numbers": rng.integers(-3, 4, N).tolist(),
        "many numbers": rng.integers(-(10**6), 10**6, N).tolist(),
        "floats": np.round(rng.standard_normal(N), 2).tolist(),
        "words": rng.choice(words, N).tolist(),
        "names": [f"n{i:05}" for i in rng.permutation(N)],
        "flags": (rng.random(N) < 0.3).tolist(),
        "times": [start + dt.timedelta(seconds=int(s)) for s in rng.integers(0, 10**6, N)],
        "days": [(start + dt.timedelta(days=int(d))).date() for d in rng.integers(0, 50, N)],
        "one": [7] * N,
        "nothing": [None] * N,
    }
    return {name: [None if i % 17 == 3 else v for i, v in enumerate(values)] for name, values in out.items()}


@pytest.mark.parametrize("name", list(columns()))
def test_comparisons_find_the_rows_that_a_loop_finds(name: str) -> None:
    values = columns()[name]
    column = Column(name, pa.array(values, pa.int64() if name == "nothing" else None))
    assert set(column.valid) == {i for i, v in enumerate(values) if v is not None}
    there = [v for v in values if v is not None] or [3]
    asked = [*there[:5], min(there), max(there), *sorted(set(there))[1:-1:997]]
    for value in asked:
        for op in OPS if name != "flags" else ["=="]:
            want = [i for i, v in enumerate(values) if v is not None and OPS[op](v, value)]
            assert row_numbers(column.where(op, column.key(value))).tolist() == want, (op, value)


def test_values_that_no_row_has() -> None:
    column = Column("x", pa.array([1, 3, None, 3]))
    assert [len(column.where(op, column.key(2))) for op in OPS] == [0, 1, 1, 2, 2]
    assert [len(column.where(op, column.key(-9))) for op in OPS] == [0, 0, 0, 3, 3]
    assert [len(column.where(op, column.key(2.5))) for op in OPS] == [0, 1, 1, 2, 2]
    empty = Column("x", pa.array([], pa.string()))
    assert [len(empty.where(op, "a")) for op in OPS] == [0] * 5


def test_numbers_and_times_are_compared_without_rounding() -> None:
    big = 2**53
    column = Column("x", pa.array([big, big + 1]))
    assert list(column.where("==", column.key(big + 1))) == [1]
    assert list(column.where(">", column.key(float(big)))) == [1]
    tenth = Column("x", pa.array([0.1], pa.float32()))
    assert list(tenth.where("==", tenth.key(0.1))) == [0]  # as the column holds it
    for unit, expected in [("s", []), ("ms", []), ("us", [0]), ("ns", [0])]:
        moment = dt.datetime(2026, 1, 1, 0, 0, 0, 500_250, tzinfo=dt.UTC)
        whole = pa.array([moment], pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, "UTC"), safe=False)
        times = Column("t", whole)
        assert list(times.where("==", times.key(moment))) == expected
        assert list(times.where("<=", times.key(moment))) == [0]


def test_lists_find_each_value_once() -> None:
    values = [["a", "b", "a"], [], None, ["b", None], [None]] * 40
    column = Column("tags", pa.array(values))
    assert set(column.valid) == {i for i in range(200) if i % 5 != 2}
    assert set(column.where("==", column.key("a"))) == {i for i in range(200) if i % 5 == 0}
    assert set(column.where("==", column.key("b"))) == {i for i in range(200) if i % 5 in (0, 3)}
    assert not column.where("==", column.key("c"))


def test_a_column_is_indexed_once() -> None:
    index = AttributeIndex(pa.table({"x": [1, 2, 2]}))
    assert index.column("x") is index.column("x")
    assert len(index) == len(index.everything) == 3
    assert "x" in index
    assert "y" not in index


def test_whole_numbers_are_found_where_floats_could_not_tell_them_apart() -> None:
    big = 1 << 53
    values = pa.array([big + 1, big, None, -(1 << 63), (1 << 63) - 1, big + 2, big])
    column = Column("n", values)
    for key in (big, big + 1, big + 0.5, -(1 << 63), (1 << 63) - 1, 1 << 64, -(1 << 64), 1e300):
        for op, holds in OPS.items():
            expected = {i for i, v in enumerate(values.to_pylist()) if v is not None and holds(v, key)}
            assert set(column.where(op, key)) == expected, (op, key)
