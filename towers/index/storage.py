"""Embeddings kept in fewer bytes, and read as if they were whole.

``N`` items, ``D`` dimensions.

=========  ============  ======================================================================
storage    bytes         what is kept
=========  ============  ======================================================================
float32    4 D           all
float16    2 D           11 bits of each entry
int8       D + 4         each entry as one of 255 steps, and the length of each vector
=========  ============  ======================================================================

The steps of a vector are those of its largest entry, and its scale is such that its length stays what it was: what is
normalised stays so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STORAGES = ("float32", "float16", "int8")
CODES: dict[str, type] = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
_BLOCK = 1 << 16  # vectors compressed at a time


@dataclass(frozen=True)
class StoredVectors:
    """Stands where a float32 array ``[N, D]`` is asked for; only what is read of it is made.

    Attributes:
        codes: ``[N, D]`` float16 or int8, possibly memory-mapped.
        scales: ``[N]`` float32 with int8; None otherwise.
    """

    codes: NDArray[Any]
    scales: NDArray[np.float32] | None = None
    dtype = np.dtype(np.float32)
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, D)``."""
        n, dim = self.codes.shape
        return n, dim

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        """Vectors by row: a number, a slice, or an array of rows of any shape."""
        out: NDArray[np.float32] = self.codes[rows].astype(np.float32)
        if self.scales is not None:
            out *= np.asarray(self.scales[rows])[..., None]
        return out

    @property
    def T(self) -> NDArray[np.float32]:  # noqa: N802 - numpy's name
        """``[D, N]``; all of it is made."""
        return self[:].T

    def take(self, rows: NDArray[np.int64], axis: int = 0) -> NDArray[np.float32]:
        """``self[rows]``."""
        return self[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.float32, copy=False)


def stored(vectors: NDArray[np.float32], storage: str, path: Path | None = None) -> Any:
    """Vectors in fewer bytes; themselves with ``float32``.

    Args:
        vectors: ``[N, D]``, possibly memory-mapped.
        storage: one of ``STORAGES``.
        path: a new ``.npy`` file, in which the codes are to lie, memory-mapped; None: they are in memory.
    """
    if storage == "float32":
        return vectors
    n, dim = vectors.shape
    codes: NDArray[Any] = (
        np.empty((n, dim), CODES[storage])
        if path is None
        else np.lib.format.open_memmap(path, "w+", CODES[storage], (n, dim))
    )
    scales = np.empty(n, np.float32) if storage == "int8" else None
    for start in range(0, n, _BLOCK):
        part = slice(start, start + _BLOCK)
        block = np.asarray(vectors[part])
        if scales is None:
            codes[part] = block
            continue
        largest = np.abs(block).max(1, keepdims=True)
        steps = np.rint(block * (127 / np.maximum(largest, 1e-30)))
        codes[part] = steps
        scales[part] = np.linalg.norm(block, axis=1) / np.maximum(np.linalg.norm(steps, axis=1), 1e-30)
    return StoredVectors(codes, scales)


def coded(vectors: Any) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """What is kept of vectors, whole or stored: codes ``[N, D]`` and, with ``int8``, scales ``[N]``."""
    return (vectors.codes, vectors.scales) if isinstance(vectors, StoredVectors) else (vectors, None)
