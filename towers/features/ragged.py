"""Lists of different lengths, end to end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Ragged(NamedTuple):
    """Lists of different lengths, end to end (a CSR layout).

    ``values[offsets[i]:offsets[i + 1]]`` is the list of row ``i``. The arrays are numpy arrays or, once on a device,
    torch tensors; what makes and takes lists here is for numpy.
    """

    offsets: Any  # [rows + 1] int64
    values: Any  # [total]

    @classmethod
    def empty(cls, n: int) -> Self:
        """``n`` lists without entries."""
        return cls(np.zeros(n + 1, np.int64), np.zeros(0, np.int64))

    @classmethod
    def of(cls, lists: Sequence[NDArray[np.int64]]) -> Self:
        """``[n]`` lists of ``n`` arrays."""
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return cls(offsets, np.concatenate(lists) if lists else np.zeros(0, np.int64))

    @classmethod
    def of_slices(cls, values: NDArray[Any], starts: Ints, ends: Ints) -> Self:
        """``[n]`` lists ``values[starts[i]:ends[i]]``, as int64.

        >>> Ragged.of_slices(np.array([7, 8, 9]), np.array([1, 0]), np.array([3, 1])).values.tolist()
        [8, 9, 7]
        """
        lengths = ends - starts
        offsets = np.zeros(len(starts) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return cls(offsets, values[index].astype(np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Self:
        """The lists of the first part, then those of the second, and so on; at least one part."""
        before = np.cumsum([0, *(len(p.values) for p in parts)])
        offsets = [p.offsets[:-1] + b for p, b in zip(parts, before, strict=False)]
        return cls(np.concatenate([*offsets, before[-1:]]), np.concatenate([p.values for p in parts]))

    def take(self, rows: NDArray[Any]) -> Ragged:
        """``[n]`` the lists of these ``n`` rows, as int64."""
        return Ragged.of_slices(self.values, self.offsets[rows], self.offsets[rows + 1])
