"""Row numbers for ids that arrive in order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Numbering:
    """Numbers sorted ids as they pass: the first distinct one is row 0, the next one row 1, and so on.

    Where users are just the integer ids of the log, this stands in for a scan that collects the distinct ids and a join
    that numbers them, since the log is sorted by user anyway. The rows are the same: an id's place in their order.
    """

    def __init__(self) -> None:
        self._ids = np.empty(1 << 10, np.int64)  # with room to grow: ``ids`` is asked for batch by batch
        self._n = 0

    def rows(self, ids: pa.Array) -> NDArray[np.int32]:
        """``[n]`` rows of the next ``[n]`` ids, -1 for nulls.

        Args:
            ids: int64, ascending, none before those of earlier calls, nulls last.
        """
        rows = np.full(len(ids), -1, np.int32)
        known = ids.slice(0, len(ids) - ids.null_count).to_numpy()
        if len(known):
            new = np.empty(len(known), bool)
            new[0] = not self._n or known[0] != self._ids[self._n - 1]
            np.not_equal(known[1:], known[:-1], out=new[1:])
            np.cumsum(new, out=rows[: len(known)])
            rows[: len(known)] += self._n - 1
            self._append(known[new])
        return rows

    def _append(self, ids: NDArray[np.int64]) -> None:
        n = self._n + len(ids)
        if n > len(self._ids):
            grown = np.empty(max(n, 2 * len(self._ids)), np.int64)
            grown[: self._n] = self._ids[: self._n]
            self._ids = grown
        self._ids[self._n : n] = ids
        self._n = n

    @property
    def ids(self) -> pa.Array:
        """Int64: the ids met so far, by row; nothing is copied."""
        return pa.array(self._ids[: self._n])
