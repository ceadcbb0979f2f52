"""Filters as text, in Python's expression syntax.

place == "Berlin" and salary >= 50000 and not employer in ["X", "Y"] and "python" in skills
posted >= "2026-11-01" and skills & ["sql", "dbt"] and (remote or 40000 < salary <= 60000)
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from typing import Any

from towers.errors import ConfigError
from towers.index.attributes import AttributeIndex
from towers.index.bitmaps import Rows
from towers.index.filters import Attribute, Filter

_MAX_DEPTH = 100  # nested deeper is a mistake or an attack, not a filter
_MAX_TEXT = 100_000  # characters


def parse(text: str) -> Filter:
    """A filter from its text form, which is Python's expression syntax. Nothing is evaluated.

    Comparisons (chained too), ``in``, ``not in``, ``is None``, ``and``, ``or``, ``not``, brackets; a name
    alone is a boolean column; ``"value" in column`` asks a column of lists for one value,
    ``column & ["value", "value"]`` for any of several.

    Raises:
        ConfigError: says which part is not part of the language.
    """
    if len(text) > _MAX_TEXT:
        raise ConfigError(f"filter: {len(text)} characters; at most {_MAX_TEXT}")
    try:
        return _parse(ast.parse(text.strip(), mode="eval").body, text, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise ConfigError(f"filter {text!r}: {e}; write for example: place == 'Berlin' and salary >= 50000") from e


def passing(condition: Filter | str | None, attributes: AttributeIndex) -> Rows | None:
    """Rows that pass a filter, given as such or as text; None: all, because there is no filter.

    Raises:
        ConfigError: a filter that does not fit the attributes.
    """
    if condition is None:
        return None
    return (parse(condition) if isinstance(condition, str) else condition).rows(attributes)


_OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], Filter]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip


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
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        return _overlap(node, text)
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
    compare = _OPERATORS[type(op)]
    if isinstance(left, ast.Name):
        return compare(Attribute(left.id), _value(right, text))
    if isinstance(right, ast.Name):
        return compare(_value(left, text), Attribute(right.id))  # Python mirrors it
    raise ConfigError(f"filter {text!r}: {ast.unparse(left)!r} is compared with a value; one side must be a column")


def _overlap(node: ast.BinOp, text: str) -> Filter:
    names = [side.id for side in (node.left, node.right) if isinstance(side, ast.Name)]
    lists = [side.elts for side in (node.left, node.right) if isinstance(side, ast.List | ast.Tuple | ast.Set)]
    if len(names) != 1 or len(lists) != 1:
        raise ConfigError(
            f"filter {text!r}: {ast.unparse(node)!r}: `&` stands between a column of lists and a list of values; "
            "join conditions with `and`"
        )
    return Attribute(names[0]).overlaps([_value(v, text) for v in lists[0]])


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
        "use == != < <= > >=, in, &, is None, and, or, not"
    )


def _fold(parts: Sequence[Filter], op: Callable[[Filter, Filter], Filter]) -> Filter:
    """A balanced tree, so that a thousand `or`s do not nest a thousand deep."""
    while len(parts) > 1:
        parts = [op(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
    return parts[0]
