"""Attribute values as keys that sort and compare exactly: numbers, texts, booleans and times, of any Arrow type.

A column's keys are its distinct values as Arrow or numpy holds them; the value of a filter becomes a Python number or
text in the column's own unit. Python compares the two without rounding: 2⁵³ + 1 is not 2⁵³, and half a second is not
zero in a column of seconds.
"""

from __future__ import annotations

import datetime as dt
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.features.raw import is_text

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
Key = int | float | str | Fraction


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists, each of any length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def comparable(column: pa.Array) -> pa.Array:
    """The column as plain values: no dictionary, no decimals, null for NaN."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column


def sortable(kind: pa.DataType) -> bool:
    """Whether values of this type can be compared."""
    t = pa.types
    return bool(
        is_text(kind) or t.is_boolean(kind) or t.is_floating(kind) or t.is_integer(kind) or t.is_timestamp(kind)
        or t.is_date(kind)
    )  # fmt: skip


def distinct(values: pa.Array) -> tuple[pa.Array | NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """The keys of a column, and where each occurs.

    Args:
        values: ``[M]`` of a comparable type, no nulls.

    Returns:
        keys ``[V]``, ascending; ``[M]`` positions in the order of their keys, ascending for each key; and ``[V + 1]``
        where in them each key begins.
    """
    if is_text(values.type):
        encoded = values.dictionary_encode()
        order = pc.sort_indices(encoded.dictionary).to_numpy()
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        places = place[encoded.indices.to_numpy()]
        starts = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=len(order)))])
        return encoded.dictionary.take(pa.array(order)), np.argsort(places, kind="stable"), starts
    kind = values.type
    if pa.types.is_date32(kind):
        values = values.cast(pa.int32())
    elif pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        values = values.cast(pa.int64())
    numbers = values.to_numpy(zero_copy_only=False)
    positions = np.argsort(numbers, kind="stable")
    ascending = numbers[positions]
    new = np.ones(len(numbers) + 1, np.bool_)  # the end begins the key behind the last
    np.not_equal(ascending[1:], ascending[:-1], out=new[1:-1])
    starts = np.flatnonzero(new) if len(numbers) else np.zeros(1, np.int64)
    return ascending[starts[:-1]], positions, starts


def key(kind: pa.DataType, value: Any, name: str) -> Key:
    """A filter's value as what the column's keys can be compared with.

    Args:
        kind: of the column.
        value: text, number, boolean, or a time: ISO 8601 (without an offset it means UTC) or a datetime.
        name: of the column, said in the error.

    Raises:
        ConfigError: a value that cannot be compared with such a column.
    """
    t = pa.types
    if isinstance(value, np.generic):
        value = value.item()
    if t.is_dictionary(kind):
        kind = kind.value_type
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    try:
        if is_text(kind) and isinstance(value, str):
            return str(pa.scalar(value, kind).as_py())
        if t.is_boolean(kind) and isinstance(value, bool):
            return value
        if (t.is_floating(kind) or t.is_decimal(kind)) and number:
            return float(pa.scalar(float(value), pa.float64() if t.is_decimal(kind) else kind).as_py())
        if t.is_integer(kind) and number:
            whole = int(value) if float(value).is_integer() else value
            pa.scalar(whole)  # refuses what no column can hold
            return whole
        if (t.is_timestamp(kind) or t.is_date(kind)) and isinstance(value, str | dt.date):
            return _moment(kind, value)
    except (pa.ArrowInvalid, OverflowError, ValueError) as e:
        raise ConfigError(f"filter: {name} is {kind}; {value!r} cannot be compared with it: {e}") from e
    raise ConfigError(f"filter: {name} is {kind}; {value!r} ({type(value).__name__}) cannot be compared with it")


def _moment(kind: pa.DataType, value: str | dt.date) -> Key:
    """A time in the unit of the column: days, milliseconds (date64), or the timestamp's own."""
    when = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
    if pa.types.is_date(kind):
        day = when.date() if isinstance(when, dt.datetime) else when
        return int(pa.scalar(day, kind).value)
    if not isinstance(when, dt.datetime):
        when = dt.datetime(when.year, when.month, when.day)
    when = when.replace(tzinfo=dt.UTC) if when.tzinfo is None else when.astimezone(dt.UTC)
    micros = (when - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
    return moment_key(kind, micros)


def moment_key(kind: pa.DataType, micros: int) -> Key:
    """Microseconds UTC in the unit of a timestamp column."""
    moment = Fraction(micros * _PER_SECOND[kind.unit], 10**6)
    return int(moment) if moment.denominator == 1 else moment
