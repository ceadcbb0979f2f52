"""Filters over item attributes: a small algebra over bitmaps; ``filter_text`` reads the same from text.

    Attribute("place") == "Berlin"
    (Attribute("salary") >= 50_000) & ~Attribute("employer").isin(["X", "Y"])
    Attribute("skills").contains("python") | Attribute("skills").overlaps(["sql", "dbt"])
    Attribute("posted") >= "2026-11-01"

Null is SQL's null: a comparison with it is unknown, ``not`` of unknown is unknown, and only items for which
the whole filter is *known to be true* pass. So ``not employer in ["X"]`` drops items without an employer;
``employer is None or …`` takes them in. NaN counts as null; nulls inside a list are ignored. Times compare
with ISO 8601 strings (without an offset they mean UTC) or aware datetimes.

A filter says of itself where it is known to be true, and where it is known to be false: ``not`` swaps the two, ``and``
and ``or`` follow de Morgan, and no third set is needed for what is unknown.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from towers.errors import ConfigError
from towers.index.attributes import AttributeIndex, Column
from towers.index.bitmaps import Rows


class Filter(ABC):
    """A condition on items. Combine with ``&``, ``|`` and ``~`` (not with ``and``, ``or``, ``not``)."""

    def __and__(self, other: Filter) -> Filter:
        return _Both("and", self, other)

    def __or__(self, other: Filter) -> Filter:
        return _Both("or", self, other)

    def __invert__(self) -> Filter:
        return _Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a filter has no truth value; combine with & | ~ instead of and, or, not, a < x < b")

    @abstractmethod
    def rows(self, index: AttributeIndex, *, known: bool = True) -> Rows:
        """The items of which the filter is known to be true, or known to be false.

        Args:
            index: over the attributes.
            known: which of the two; in neither are the items of which it is unknown.

        Raises:
            ConfigError: an unknown attribute (the attributes are listed), or a value of the wrong type.
        """


@dataclass(frozen=True)
class _Both(Filter):
    op: str
    left: Filter
    right: Filter

    def rows(self, index: AttributeIndex, *, known: bool = True) -> Rows:
        left, right = self.left.rows(index, known=known), self.right.rows(index, known=known)
        return left & right if (self.op == "and") is known else left | right


@dataclass(frozen=True)
class _Not(Filter):
    inner: Filter

    def rows(self, index: AttributeIndex, *, known: bool = True) -> Rows:
        return self.inner.rows(index, known=not known)


@dataclass(frozen=True)
class _Compare(Filter):
    name: str
    op: str
    value: Any

    def rows(self, index: AttributeIndex, *, known: bool = True) -> Rows:
        column = index.column(self.name)
        key = column.key(self.value)
        if isinstance(key, bool) and self.op not in ("==", "!="):
            raise ConfigError(f"filter: {self.name} is boolean; compare it with == or !=, not {self.op}")
        if self.op == "!=":
            return _said(column, column.where("==", key), not known)
        return _said(column, column.where(self.op, key), known)


@dataclass(frozen=True)
class _OneOf(Filter):
    """The value, or one of the values of a list, is one of these."""

    name: str
    values: tuple[Any, ...]
    lists: bool

    def rows(self, index: AttributeIndex, *, known: bool = True) -> Rows:
        column = index.column(self.name, lists=self.lists)
        hits = [column.where("==", column.key(v)) for v in self.values]
        return _said(column, Rows.union(*hits) if hits else Rows(), known)


@dataclass(frozen=True)
class _IsNull(Filter):
    name: str

    def rows(self, index: AttributeIndex, *, known: bool = True) -> Rows:
        valid = index.column(self.name, lists=None).valid
        return index.everything - valid if known else valid


def _said(column: Column, true: Rows, known: bool) -> Rows:
    """Where a comparison is known to be true, or false: items without a value are in neither."""
    return true if known else column.valid - true


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
        return _OneOf(self.name, _listed(self.name, "isin", values), lists=False)

    def contains(self, value: Any) -> Filter:
        """The list (a column of lists) has this value in it."""
        return _OneOf(self.name, (value,), lists=True)

    def overlaps(self, values: Sequence[Any]) -> Filter:
        """The list (a column of lists) has one of these values in it, or more of them."""
        return _OneOf(self.name, _listed(self.name, "overlaps", values), lists=True)

    def is_null(self) -> Filter:
        """The item has no value."""
        return _IsNull(self.name)


def _listed(name: str, method: str, values: Sequence[Any]) -> tuple[Any, ...]:
    if isinstance(values, str):
        raise ConfigError(f"filter: {name}.{method} wants a list of values, not the string {values!r}")
    return tuple(values)
