"""External ids and rows: the one place where they meet, in training and in serving.

Row ``i`` of a user or item table belongs to the ``i``-th id; ids keep their type, int64 or string, from the log to the
answer. A serving process asks for a few ids at a time, a thousand times a second, hence the table that is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.errors import DataError


class IdMap:
    """External ids ↔ rows; row ``i`` is the ``i``-th id.

    Args:
        ids: ``[N]`` unique ids, int64 or string.
        what: said in errors ("item", "user").

    Raises:
        DataError: null or duplicate ids, or another type.
    """

    def __init__(self, ids: pa.Array, what: str) -> None:
        if ids.type not in (pa.int64(), pa.string()) or ids.null_count:
            raise DataError(f"{what} ids are {ids.type} with {ids.null_count} nulls; expected int64 or string")
        self.ids, self.what = ids, what
        self._rows: dict[str, int] | None = None
        if ids.type == pa.string():
            self._rows = {v: i for i, v in enumerate(ids.to_pylist())}
            distinct = len(self._rows)
        else:
            self._values = ids.to_numpy()
            self._order = np.argsort(self._values, kind="stable")
            self._sorted = self._values[self._order]
            distinct = len(ids) - int(np.count_nonzero(self._sorted[1:] == self._sorted[:-1]))
        if distinct != len(ids):
            raise DataError(f"{len(ids) - distinct} {what} ids occur more than once")

    def __len__(self) -> int:
        """Number of ids."""
        return len(self.ids)

    def __contains__(self, external: object) -> bool:
        """Whether this id has a row."""
        try:
            return bool(self.rows([external])[0] >= 0)
        except DataError:
            return False

    def rows(self, external: Iterable[Any]) -> NDArray[np.int64]:
        """``[n]`` rows of ``n`` external ids, ``-1`` for the unknown.

        Raises:
            DataError: ids of another type than these.
        """
        if isinstance(external, pa.Array | pa.ChunkedArray):
            external = external.to_pylist()
        if self._rows is not None:
            wanted = list(external)
            if odd := next((v for v in wanted if not isinstance(v, str)), None):
                raise self._wrong(odd)
            return np.fromiter((self._rows.get(v, -1) for v in wanted), np.int64, len(wanted))
        if not isinstance(external, np.ndarray) or external.dtype.kind not in "iu":
            external = list(external)
            for v in external:
                if isinstance(v, bool) or not isinstance(v, int | np.integer) or not -(1 << 63) <= v < 1 << 63:
                    raise self._wrong(v)
        values = np.asarray(external, np.int64)
        if not len(self.ids):
            return np.full(len(values), -1, np.int64)
        place = np.minimum(np.searchsorted(self._sorted, values), len(self.ids) - 1)
        return np.where(self._sorted[place] == values, self._order[place], -1)

    def external(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """External ids of rows, in the same shape: int64, or objects of type str.

        Row ``-1`` becomes ``-1`` or None.
        """
        if self._rows is None:
            return np.where(rows >= 0, self._values[rows], -1)
        taken = self.ids.take(pa.array(rows.ravel(), mask=rows.ravel() < 0))
        return np.asarray(taken.to_numpy(zero_copy_only=False), dtype=object).reshape(rows.shape)

    def _wrong(self, value: object) -> DataError:
        return DataError(
            f"{value!r} ({type(value).__name__}) as {self.what} id; the {self.what} ids here are {self.ids.type}",
            cure=f"pass {self.ids.type} ids",
        )
