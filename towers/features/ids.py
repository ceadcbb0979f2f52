"""External ids and row numbers: the one place where they meet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers.errors import DataError

ID_TYPES = {"int64": pa.int64(), "string": pa.string()}


def id_type(arrow: pa.DataType, where: str = "") -> pa.DataType:
    """The type in which ids of this Arrow type are kept: int64 or string.

    Raises:
        DataError: floats, dates and the like cannot be ids; unsigned 64-bit integers might not fit.
    """
    if pa.types.is_dictionary(arrow):
        arrow = arrow.value_type
    if pa.types.is_integer(arrow):
        return pa.int64()
    if pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow):
        return pa.string()
    raise DataError(
        f"ids of type {arrow}; expected integers or strings", where=where, cure="cast the id column to int64 or string"
    )


class IdMap:
    """External ids ↔ row numbers. Row ``i`` is the ``i``-th id given; ids keep their type.

    Args:
        ids: unique, non-null ids, int64 or string.

    Raises:
        DataError: on null or duplicate ids.
    """

    def __init__(self, ids: pa.Array | pa.ChunkedArray, name: str = "id") -> None:
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        self.name = name
        self.ids: pa.Array = ids.cast(id_type(ids.type, name))
        if self.ids.null_count:
            row = int(np.flatnonzero(pc.is_null(self.ids).to_numpy(zero_copy_only=False))[0])
            raise DataError(f"{self.ids.null_count} null ids", where=f"{name}, row {row}", cure="remove those rows")
        if pc.count_distinct(self.ids).as_py() != len(self.ids):
            counts = pc.value_counts(self.ids)
            twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
            raise DataError(f"id {twice!r} occurs more than once", where=name, cure="keep one row for each id")

    def __len__(self) -> int:
        """Number of ids."""
        return len(self.ids)

    def __contains__(self, external: object) -> bool:
        """Whether this external id has a row."""
        try:
            return bool(self.rows([external])[0] >= 0)
        except DataError:
            return False

    def rows(self, external: Iterable[Any] | pa.Array) -> NDArray[np.int64]:
        """Row numbers of external ids, ``-1`` for the unknown.

        Raises:
            DataError: the ids are of another type than this map's.
        """
        if not isinstance(external, pa.Array | pa.ChunkedArray):
            external = list(external)
        try:
            wanted = pa.array(external, self.ids.type) if isinstance(external, list) else external.cast(self.ids.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as e:
            raise DataError(
                f"ids that are not {self.ids.type}: {e}", where=self.name, cure=f"pass {self.ids.type} ids"
            ) from e
        found = pc.index_in(wanted, value_set=self.ids)
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def external(self, rows: NDArray[np.int64]) -> pa.Array:
        """External ids of row numbers; ``-1`` becomes null."""
        return self.ids.take(pa.array(rows, mask=np.asarray(rows) < 0))
