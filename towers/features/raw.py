"""Raw columns, read as a kind of feature needs them, or refused with an error that says what they hold.

``n`` rows of a table, or of the mapping of columns that a request becomes. Everywhere ``f`` is the declaration of the
feature, ``columns`` are the raw columns, and ``where`` is what errors say of their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers.errors import DataError
from towers.features.schema import Feature

Columns: TypeAlias = pa.Table | Mapping[str, pa.Array]


def of_rows(rows: Sequence[Mapping[str, Any]], names: Iterable[str], where: str) -> dict[str, pa.Array]:
    """Columns of ``n`` rows that are given as mappings; an absent value is null.

    Raises:
        DataError: naming the column whose values have no one type of Arrow's.
    """
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as e:
            raise DataError(
                f"values of mixed or unknown type: {e}",
                where=f"{where}, field {name!r}",
                cure="send a number, a string, or a list of either",
            ) from e
    return columns


def column(columns: Columns, name: str, where: str) -> pa.Array:
    """``[n]`` one column.

    Raises:
        DataError: there is no such column.
    """
    names = columns.column_names if isinstance(columns, pa.Table) else columns.keys()
    if name not in names:
        raise DataError(
            f"no column {name!r}; there are {sorted(names)}",
            where=where,
            cure="correct the feature's column in the data config",
        )
    return plain(columns[name])


def plain(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece and without a dictionary."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def texts(f: Feature, columns: Columns, where: str, separator: str) -> list[str]:
    """The columns of a feature as one text for each row, empty where all are missing.

    Raises:
        DataError: a column is absent, or holds no strings.
    """
    parts = []
    for name in f.columns:
        values = column(columns, name, where)
        if not (pa.types.is_null(values.type) or is_text(values.type)):
            raise DataError(f"column {name!r} is {values.type}; text wants strings", where=where, cure="cast it")
        parts.append(values.to_pylist())
    return [separator.join(p for p in row if p) for row in zip(*parts, strict=True)]


def lists(f: Feature, columns: Columns, where: str) -> pa.Array:
    """``[n]`` lists of values, null where there is none.

    Raises:
        DataError: the column is absent, or holds no lists.
    """
    values = column(columns, f.columns[0], where)
    if pa.types.is_null(values.type):
        return values.cast(pa.list_(pa.string()))
    if pa.types.is_fixed_size_list(values.type):
        return values.cast(pa.list_(values.type.value_type))
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        raise DataError(
            f"column {f.columns[0]!r} is {values.type}; categorical_list wants lists",
            where=where,
            cure="use kind categorical for single values, or split the column into lists",
        )
    return values


def numbers(f: Feature, columns: Columns, where: str) -> NDArray[np.float64]:
    """``[n]`` finite numbers, on the scale that the feature asks for (``log``); NaN where there is none.

    Raises:
        DataError: the column is absent, holds no numbers, or an infinite one.
    """
    values = column(columns, f.columns[0], where)
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type)
            or pa.types.is_boolean(values.type) or pa.types.is_null(values.type)):  # fmt: skip
        raise DataError(f"column {f.columns[0]!r} is {values.type}; numeric wants numbers", where=where, cure="cast it")
    x = np.asarray(pc.fill_null(values.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False), np.float64)
    if np.isinf(x).any():
        raise DataError(
            f"column {f.columns[0]!r} is infinite",
            where=f"{where}, row {int(np.flatnonzero(np.isinf(x))[0])}",
            cure="write null for an unknown number",
        )
    return np.sign(x) * np.log1p(np.abs(x)) if f.log else x


def vectors(f: Feature, columns: Columns, where: str) -> NDArray[np.float32]:
    """``[n, dim + 1]``: the vector, then 1 if it is missing.

    Raises:
        DataError: the column is absent, or holds anything but finite vectors of length ``dim``.
    """
    values = column(columns, f.columns[0], where)
    out = np.zeros((len(values), f.dim + 1), np.float32)
    present = pc.is_valid(values).to_numpy(zero_copy_only=False)
    out[~present, f.dim] = 1
    if pa.types.is_null(values.type) or not present.any():
        return out
    if not _is_list_of_numbers(values.type):
        raise DataError(
            f"column {f.columns[0]!r} is {values.type}; vector wants lists of numbers", where=where, cure="cast it"
        )
    kept = values.filter(pa.array(present))
    if not pa.types.is_fixed_size_list(kept.type):
        lengths = pc.list_value_length(kept).to_numpy(zero_copy_only=False)
        if (lengths != f.dim).any():
            bad = int(np.flatnonzero(present)[np.flatnonzero(lengths != f.dim)[0]])
            raise DataError(
                f"a vector of length {int(lengths[lengths != f.dim][0])}; expected dim={f.dim}",
                where=f"{where}, row {bad}",
                cure="correct the feature's dim, or the vector",
            )
    elif kept.type.list_size != f.dim:
        raise DataError(
            f"vectors of length {kept.type.list_size}; expected dim={f.dim}", where=where, cure="correct dim"
        )
    x = kept.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, f.dim)
    if not np.isfinite(x).all():
        bad = int(np.flatnonzero(present)[np.flatnonzero(~np.isfinite(x).all(axis=1))[0]])
        raise DataError("a vector with NaN or infinite entries", where=f"{where}, row {bad}", cure="write null instead")
    out[present, : f.dim] = x
    return out


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))
