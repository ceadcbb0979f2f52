"""Filters against an evaluator that looks at one item at a time, with None for "unknown"."""

from __future__ import annotations

import datetime as dt
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import ConfigError
from towers.index.attributes import AttributeIndex
from towers.index.filter_text import parse
from towers.index.filters import Attribute, Filter

UTC = dt.UTC
ROWS: list[dict[str, Any]] = [
    {"place": "Berlin", "salary": 10, "score": 0.5, "remote": True, "skills": ["python", "sql"]},
    {"place": "Paris", "salary": 20, "score": float("nan"), "remote": False, "skills": ["sql"]},
    {"place": None, "salary": 30, "score": -1.5, "remote": None, "skills": []},
    {"place": "Berlin", "salary": None, "score": 2.0, "remote": True, "skills": None},
    {"place": "", "salary": -5, "score": None, "remote": False, "skills": ["python", None]},
]
TYPES = pa.schema(
    [("place", pa.string()), ("salary", pa.int64()), ("score", pa.float64()), ("remote", pa.bool_()),
     ("skills", pa.list_(pa.string()))]
)  # fmt: skip
TABLE = pa.Table.from_pylist(ROWS, TYPES)


def mask(condition: Filter | str, table: pa.Table) -> list[bool]:
    """Which rows pass."""
    rows = (parse(condition) if isinstance(condition, str) else condition).rows(AttributeIndex(table))
    return [i in rows for i in range(table.num_rows)]


def passing(condition: Filter | str) -> list[int]:
    return np.flatnonzero(mask(condition, TABLE)).tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('place == "Berlin"', [0, 3]),
        ('"Berlin" == place', [0, 3]),
        ('place != "Berlin"', [1, 4]),
        ('not place == "Berlin"', [1, 4]),
        ("place is None", [2]),
        ("place is not None", [0, 1, 3, 4]),
        ('place != "Berlin" or place is None', [1, 2, 4]),
        ('place in ["Paris", ""]', [1, 4]),
        ('place not in ["Paris", ""]', [0, 3]),
        ("place in []", []),
        ("place not in []", [0, 1, 3, 4]),
        ('place >= "C"', [1]),
        ("salary >= 20", [1, 2]),
        ("20 <= salary", [1, 2]),
        ("10 < salary <= 30", [1, 2]),
        ("salary == 10.0", [0]),
        ("salary > 19.5", [1, 2]),
        ("salary == -5", [4]),
        ("score > 0", [0, 3]),
        ("not score > 0", [2]),
        ("remote", [0, 3]),
        ("not remote", [1, 4]),
        ("remote == False", [1, 4]),
        ('"python" in skills', [0, 4]),
        ('"python" not in skills', [1, 2]),
        ("skills is None", [3]),
        ('skills & ["python", "rust"]', [0, 4]),
        ('["sql", "x"] & skills', [0, 1]),
        ('not skills & ["python", "rust"]', [1, 2]),
        ('skills & ["python"] and place == "Berlin"', [0]),
        ("skills & []", []),
        ("not skills & []", [0, 1, 2, 4]),
        ('place == "Berlin" and (salary > 5 or "sql" in skills)', [0]),
        ('place == "Berlin" or salary > 5', [0, 1, 2, 3]),
    ],
)
def test_the_text_form(text: str, rows: list[int]) -> None:
    assert passing(text) == rows


def test_the_algebra_says_the_same() -> None:
    place, salary = Attribute("place"), Attribute("salary")
    f = ((place == "Berlin") & (salary >= 5)) | ~place.isin(["Berlin", ""]) | Attribute("skills").contains("x")
    assert passing(f) == [0, 1]
    assert passing(place.is_null() | (salary < 0)) == [2, 4]
    assert passing(Attribute("skills").overlaps(["python", "rust"])) == [0, 4]
    assert passing(~Attribute("skills").overlaps(["python", "rust"])) == [1, 2]
    assert passing((place != "Berlin") & (salary <= 20) & (salary > -9)) == [1, 4]


def test_times_compare_with_iso_texts_and_datetimes() -> None:
    days = [dt.datetime(2024, 1, d, 12, tzinfo=UTC) for d in (1, 2, 3)]
    table = pa.table(
        {
            "posted": pa.array([*days, None], pa.timestamp("us", "UTC")),
            "naive": pa.array([*(d.replace(tzinfo=None) for d in days), None], pa.timestamp("ms")),
            "day": pa.array([*(d.date() for d in days), None], pa.date32()),
        }
    )
    for name in ("posted", "naive"):
        for bound in ("2024-01-02T12:00:00", "2024-01-02T14:00:00+02:00", "2024-01-02T12:00:00Z"):
            assert mask(f"{name} >= '{bound}'", table) == [False, True, True, False]
            assert mask(f"not {name} >= '{bound}'", table) == [True, False, False, False]
        assert mask(Attribute(name) < days[1], table) == [True, False, False, False]
    assert mask("day == '2024-01-02'", table) == [False, True, False, False]
    assert mask("posted < '2024-01-02'", table) == [True, False, False, False]


def test_other_column_types() -> None:
    table = pa.table(
        {
            "d": pa.array(["a", "b", None]).dictionary_encode(),
            "f": pa.array([0.1, 0.2, None], pa.float32()),
            "i": pa.array([1, 2, None], pa.int8()),
            "n": pa.array([[1, 2], [3], None], pa.large_list(pa.int32())),
            "l": pa.array(["a", "b", None], pa.large_string()),
        }
    )
    for text in ("d == 'a'", "f == 0.1", "i < 1.5", "2 in n", "l == 'a'", "i < 300 and i != 2", "d in ['a', 'z']"):
        assert mask(text, table) == [True, False, False], text
    assert mask("i > 300", table) == [False] * 3
    assert mask("d == 'b'", table.slice(1)) == [True, False]
    assert mask("3 in n", table.slice(1)) == [True, False]
    assert mask("3 in n", pa.concat_tables([table, table])) == [False, True, False] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('city == "Berlin"', "no attribute 'city'; there are place, salary, score, remote, skills"),
        ("place == 3", "place is string"),
        ('salary == "3"', "salary is int64"),
        ("salary == True", "salary is int64"),
        ("place == Berlin", "quote it"),
        ("place == None", "is None"),
        ("remote < True", "boolean"),
        ("remote == 1", "remote is bool"),
        ("skills == 'x'", "is a list"),
        ("'x' in place", "not a list"),
        ("3 in skills", "string"),
        ("place in ['a', 3]", "place is string"),
        ("place", "place is string"),
        ("3 == 3", "one side must be a column"),
        ("", "write for example"),
        ("place ==", "write for example"),
        ("place == 'a' garbage", "write for example"),
        ("__import__('os').system('true')", "not part of a filter"),
        ("place == (lambda: 1)()", "not part of a filter"),
        ("place.upper == 'X'", "compared with a value"),
        ("place[0] == 'X'", "compared with a value"),
        ("place & ['x']", "place is string, not a list"),
        ("skills & [3]", "skills is list<.*> of|string"),
        ("remote & remote", "join conditions with `and`"),
        ("['a'] & ['b']", "between a column of lists and a list of values"),
        ("skills & 'python'", "between a column of lists and a list of values"),
        ("skills | ['a']", "not part of a filter"),
        ("salary + 1 == 2", "compared with a value"),
        ("salary == -'x'", "not part of a filter"),
        ("salary == 2 ** 10", "not part of a filter"),
        ("place == b'x'", "not part of a filter"),
        ("place is 3", "None only"),
        ("salary == 99999999999999999999", "salary is int64"),
        ("place == f'{1}'", "not part of a filter"),
        ("(" * 1000 + "remote" + ")" * 1000, "write for example"),
        ("not " * 200 + "remote", "nested too deeply|write for example"),
        ("place == 'x' or " * 8000 + "remote", "characters"),
        ("\0", "write for example"),
    ],
)
def test_what_is_no_filter_is_refused_with_a_cure(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mask(text, TABLE)


def test_a_thousand_alternatives_do_not_nest_a_thousand_deep() -> None:
    assert passing(" or ".join(f"salary == {i}" for i in range(1000))) == [0, 1, 2]


def test_python_operators_that_cannot_work_say_so() -> None:
    with pytest.raises(TypeError, match=r"& \| ~"):
        bool(Attribute("salary") > 3)
    with pytest.raises(ConfigError, match="list of values"):
        Attribute("place").isin("Berlin")
    with pytest.raises(ConfigError, match="list of values"):
        Attribute("skills").overlaps("python")


# Random filters over random tables.

values = {
    "place": st.sampled_from(["Berlin", "Paris", "", "München"]),
    "salary": st.integers(-3, 3),
    "score": st.sampled_from([-1.5, 0.0, 0.5, 2.0]),
    "remote": st.booleans(),
}
row = st.fixed_dictionaries(
    {k: st.none() | v for k, v in values.items()}
    | {"skills": st.none() | st.lists(st.none() | st.sampled_from(["python", "sql"]), max_size=3)}
)
OPS = ["==", "!=", "<", "<=", ">", ">="]


@st.composite
def comparison(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from([*values, "skills"]))
    if name == "skills":
        return draw(
            st.sampled_from(
                ['"sql" in skills', '"sql" not in skills', 'skills & ["sql", "c"]', "skills is None", '"c" in skills']
            )
        )
    kind = draw(st.sampled_from(["op", "in", "not in", "is None", "is not None"]))
    if kind == "op":
        op = draw(st.sampled_from(OPS[:2] if name == "remote" else OPS))
        left, right = name, repr(draw(values[name]))
        return f"{left} {op} {right}" if draw(st.booleans()) else f"{right} {op} {left}"
    if kind in ("in", "not in"):
        return f"{name} {kind} {draw(st.lists(values[name], max_size=3))!r}"
    return f"{name} {kind}"


filters = st.recursive(
    comparison(),
    lambda inner: (
        st.builds("({} and {})".format, inner, inner)
        | st.builds("({} or {})".format, inner, inner)
        | st.builds("(not {})".format, inner)
    ),
    max_leaves=6,
)


def truth(text: str, item: dict[str, Any]) -> bool | None:
    """Three-valued logic the slow way: replace each unknown comparison by both answers."""
    import ast

    def go(node: ast.expr) -> bool | None:
        if isinstance(node, ast.BoolOp):
            parts = [go(v) for v in node.values]
            decisive = isinstance(node.op, ast.Or)
            if decisive in parts:
                return decisive
            return None if None in parts else not decisive
        if isinstance(node, ast.UnaryOp):
            inner = go(node.operand)
            return None if inner is None else not inner
        if isinstance(node, ast.BinOp):
            return None if item["skills"] is None else bool({"sql", "c"} & set(item["skills"]))
        assert isinstance(node, ast.Compare)
        names = [n.id for n in (node.left, *node.comparators) if isinstance(n, ast.Name)]
        if not isinstance(node.ops[0], ast.Is | ast.IsNot) and item[names[0]] is None:
            return None
        return bool(eval(ast.unparse(node), {}, dict(item)))

    return go(ast.parse(text, mode="eval").body)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(filters, st.lists(row, min_size=1, max_size=8))
def test_random_filters_agree_with_one_item_at_a_time(text: str, rows: list[dict[str, Any]]) -> None:
    assert mask(text, pa.Table.from_pylist(rows, TYPES)) == [truth(text, r) is True for r in rows]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.text(max_size=30))
def test_any_text_is_a_filter_or_an_error_of_ours(text: str) -> None:
    with suppress(ConfigError):
        mask(text, TABLE)
