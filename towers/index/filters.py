"""Filters over item attributes: a small algebra, and the same as text.

    Attribute("place") == "Berlin"
    (Attribute("salary") >= 50_000) & ~Attribute("employer").isin(["X", "Y"])
    Attribute("skills").contains("python")

    parse('place == "Berlin" and salary >= 50000 and not employer in ["X", "Y"] and "python" in skills')

Null is SQL's null: a comparison with it is unknown, ``not`` of unknown is unknown, and only items for which
the whole filter is *known to be true* pass. So ``not employer in ["X"]`` drops items without an employer;
``employer is None or …`` takes them in. NaN counts as null; nulls inside a list are ignored. Times compare
with ISO 8601 strings (without an offset they mean UTC) or aware datetimes.
"""

from __future__ import annotations

import ast
import datetime as dt
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers.errors import ConfigError

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip
_MAX_DEPTH = 100  # nested deeper is a mistake or an attack, not a filter
_MAX_TEXT = 100_000  # characters


class Filter:
    """A condition on items. Combine with ``&``, ``|`` and ``~`` (not with ``and``, ``or``, ``not``)."""

    def __and__(self, other: Filter) -> Filter:
        return _Both("and", self, other)

    def __or__(self, other: Filter) -> Filter:
        return _Both("or", self, other)

    def __invert__(self) -> Filter:
        return _Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a filter has no truth value; combine with & | ~ instead of and, or, not, a < x < b")

    def evaluate(self, table: pa.Table) -> pa.Array:
        """``[N]`` booleans, null where the answer is unknown."""
        raise NotImplementedError

    def mask(self, table: pa.Table) -> NDArray[np.bool_]:
        """``[N]``: which items pass.

        Args:
            table: attributes, a row for each item.

        Raises:
            ConfigError: an unknown column (the columns are listed), or a value of the wrong type.
        """
        known = pc.fill_null(self.evaluate(table), False)
        return np.asarray(known.to_numpy(zero_copy_only=False), dtype=np.bool_)


@dataclass(frozen=True)
class _Both(Filter):
    op: str
    left: Filter
    right: Filter

    def evaluate(self, table: pa.Table) -> pa.Array:
        f = pc.and_kleene if self.op == "and" else pc.or_kleene
        return f(self.left.evaluate(table), self.right.evaluate(table))


@dataclass(frozen=True)
class _Not(Filter):
    inner: Filter

    def evaluate(self, table: pa.Table) -> pa.Array:
        return pc.invert(self.inner.evaluate(table))


@dataclass(frozen=True)
class _Compare(Filter):
    name: str
    op: str
    value: Any

    def evaluate(self, table: pa.Table) -> pa.Array:
        column = _column(table, self.name)
        if pa.types.is_boolean(column.type) and self.op not in ("==", "!="):
            raise ConfigError(f"filter: {self.name} is boolean; compare it with == or !=, not {self.op}")
        return _COMPARE[self.op](column, _scalar(column.type, self.value, self.name))


@dataclass(frozen=True)
class _IsIn(Filter):
    name: str
    values: tuple[Any, ...]

    def evaluate(self, table: pa.Table) -> pa.Array:
        column = _column(table, self.name)
        wanted = [_scalar(column.type, v, self.name) for v in self.values]
        out = pa.array(np.zeros(len(column), np.bool_))
        for scalar in wanted:  # equality, not `is_in`: one rule for numbers of different types
            out = pc.or_(out, pc.fill_null(pc.equal(column, scalar), False))
        return pc.if_else(pc.is_valid(column), out, pa.scalar(None, pa.bool_()))


@dataclass(frozen=True)
class _Contains(Filter):
    name: str
    value: Any

    def evaluate(self, table: pa.Table) -> pa.Array:
        column = _column(table, self.name, lists=True)
        scalar = _scalar(column.type.value_type, self.value, self.name)
        hit = pc.fill_null(pc.equal(_comparable(pc.list_flatten(column)), scalar), False)
        rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
        out = np.zeros(len(column), np.bool_)
        out[rows[hit.to_numpy(zero_copy_only=False)]] = True
        return pc.if_else(pc.is_valid(column), pa.array(out), pa.scalar(None, pa.bool_()))


@dataclass(frozen=True)
class _IsNull(Filter):
    name: str

    def evaluate(self, table: pa.Table) -> pa.Array:
        return pc.is_null(_column(table, self.name, lists=None))


@dataclass(frozen=True, eq=False)
class Attribute:
    """A column of the item attributes, to be compared with a value."""

    name: str

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        return _Compare(self.name, "==", value)

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        return _Compare(self.name, "!=", value)

    def __lt__(self, value: Any) -> Filter:
        return _Compare(self.name, "<", value)

    def __le__(self, value: Any) -> Filter:
        return _Compare(self.name, "<=", value)

    def __gt__(self, value: Any) -> Filter:
        return _Compare(self.name, ">", value)

    def __ge__(self, value: Any) -> Filter:
        return _Compare(self.name, ">=", value)

    __hash__ = None  # type: ignore[assignment]

    def isin(self, values: Sequence[Any]) -> Filter:
        """The value is one of these."""
        if isinstance(values, str):
            raise ConfigError(f"filter: {self.name}.isin wants a list of values, not the string {values!r}")
        return _IsIn(self.name, tuple(values))

    def contains(self, value: Any) -> Filter:
        """The list (a column of lists) has this value in it."""
        return _Contains(self.name, value)

    def is_null(self) -> Filter:
        """The item has no value."""
        return _IsNull(self.name)


def parse(text: str) -> Filter:
    """A filter from its text form, which is Python's expression syntax. Nothing is evaluated.

    Comparisons (chained too), ``in``, ``not in``, ``is None``, ``and``, ``or``, ``not``, brackets; a name
    alone is a boolean column; ``"value" in column`` asks a column of lists.

    Raises:
        ConfigError: says which part is not part of the language.
    """
    if len(text) > _MAX_TEXT:
        raise ConfigError(f"filter: {len(text)} characters; at most {_MAX_TEXT}")
    try:
        return _parse(ast.parse(text.strip(), mode="eval").body, text, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise ConfigError(f"filter {text!r}: {e}; write for example: place == 'Berlin' and salary >= 50000") from e


def passing(condition: Filter | str | None, attributes: pa.Table) -> NDArray[np.bool_] | None:
    """Rows that pass a filter, given as such or as text; None: all, because there is no filter.

    Raises:
        ConfigError: a filter that does not fit the attributes.
    """
    if condition is None:
        return None
    return (parse(condition) if isinstance(condition, str) else condition).mask(attributes)


_OPERATORS = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
_MIRROR = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _parse(node: ast.expr, text: str, depth: int) -> Filter:
    if depth > _MAX_DEPTH:
        raise ConfigError("filter: nested too deeply")
    if isinstance(node, ast.BoolOp):
        parts = [_parse(v, text, depth + 1) for v in node.values]
        return _fold(parts, operator.and_ if isinstance(node.op, ast.And) else operator.or_)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_parse(node.operand, text, depth + 1)
    if isinstance(node, ast.Name):
        return Attribute(node.id) == True  # noqa: E712 - builds a filter
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        parts = [_comparison(a, op, b, text) for a, op, b in zip(sides[:-1], node.ops, sides[1:], strict=True)]
        return _fold(parts, operator.and_)
    raise _unknown(node, text)


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, text: str) -> Filter:
    if isinstance(op, ast.In | ast.NotIn):
        if isinstance(left, ast.Name) and isinstance(right, ast.List | ast.Tuple | ast.Set):
            inside = Attribute(left.id).isin([_value(v, text) for v in right.elts])
        elif isinstance(right, ast.Name):
            inside = Attribute(right.id).contains(_value(left, text))
        else:
            raise _unknown(right, text)
        return inside if isinstance(op, ast.In) else ~inside
    if isinstance(op, ast.Is | ast.IsNot):
        if not (isinstance(left, ast.Name) and isinstance(right, ast.Constant) and right.value is None):
            raise ConfigError(f"filter {text!r}: `is` compares a column with None only")
        null = Attribute(left.id).is_null()
        return null if isinstance(op, ast.Is) else ~null
    symbol = _OPERATORS[type(op)]
    if isinstance(left, ast.Name):
        return _Compare(left.id, symbol, _value(right, text))
    if isinstance(right, ast.Name):
        return _Compare(right.id, _MIRROR[symbol], _value(left, text))
    raise ConfigError(f"filter {text!r}: {ast.unparse(left)!r} is compared with a value; one side must be a column")


def _value(node: ast.expr, text: str) -> Any:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        sign, node = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
        if not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
            raise _unknown(node, text)
        return sign * node.value  # type: ignore[operator]
    if isinstance(node, ast.Constant) and type(node.value) in (str, int, float, bool):
        return node.value
    if isinstance(node, ast.Constant) and node.value is None:
        raise ConfigError(f"filter {text!r}: nothing equals None; write `is None` or `is not None`")
    if isinstance(node, ast.Name):
        raise ConfigError(f"filter {text!r}: {node.id} stands where a value should; quote it if it is a text")
    raise _unknown(node, text)


def _unknown(node: ast.AST, text: str) -> ConfigError:
    return ConfigError(
        f"filter {text!r}: {ast.unparse(node)!r} is not part of a filter; "
        "use == != < <= > >=, in, is None, and, or, not"
    )


def _fold(parts: Sequence[Filter], op: Callable[[Filter, Filter], Filter]) -> Filter:
    """A balanced tree, so that a thousand `or`s do not nest a thousand deep."""
    while len(parts) > 1:
        parts = [op(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
    return parts[0]


def _column(table: pa.Table, name: str, *, lists: bool | None = False) -> pa.Array:
    """A column as one array; ``lists``: whether it must hold lists (None: may)."""
    if name not in table.column_names:
        raise ConfigError(f"filter: no attribute {name!r}; there are {', '.join(table.column_names) or 'none'}")
    column = table[name]
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if lists and not is_list:
        raise ConfigError(f"filter: {name} is {column.type}, not a list; write {name} == value")
    if lists is False and is_list:
        raise ConfigError(f"filter: {name} is a list; write 'value' in {name}, or .contains(value)")
    return column if is_list else _comparable(column)


def _comparable(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column


def _scalar(kind: pa.DataType, value: Any, name: str) -> pa.Scalar:
    """The value as what the column can be compared with."""
    t = pa.types
    if isinstance(value, np.generic):
        value = value.item()
    if t.is_dictionary(kind):
        kind = kind.value_type
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    try:
        if (t.is_string(kind) or t.is_large_string(kind)) and isinstance(value, str):
            return pa.scalar(value, kind)
        if t.is_boolean(kind) and isinstance(value, bool):
            return pa.scalar(value)
        if (t.is_floating(kind) or t.is_decimal(kind)) and number:
            return pa.scalar(float(value), pa.float64() if t.is_decimal(kind) else kind)
        if t.is_integer(kind) and number:
            return pa.scalar(int(value) if float(value).is_integer() else value)
        if (t.is_timestamp(kind) or t.is_date(kind)) and isinstance(value, str | dt.date):
            return _moment(kind, value)
    except (pa.ArrowInvalid, OverflowError, ValueError) as e:
        raise ConfigError(f"filter: {name} is {kind}; {value!r} cannot be compared with it: {e}") from e
    raise ConfigError(f"filter: {name} is {kind}; {value!r} ({type(value).__name__}) cannot be compared with it")


def _moment(kind: pa.DataType, value: str | dt.date) -> pa.Scalar:
    when = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
    if pa.types.is_date(kind):
        return pa.scalar(when.date() if isinstance(when, dt.datetime) else when, kind)
    if not isinstance(when, dt.datetime):
        when = dt.datetime(when.year, when.month, when.day)
    when = when.replace(tzinfo=dt.UTC) if when.tzinfo is None else when.astimezone(dt.UTC)
    return pa.scalar(when if kind.tz else when.replace(tzinfo=None), pa.timestamp("us", kind.tz))
