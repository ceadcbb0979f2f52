"""Vectors of a pretrained sentence encoder, computed once for each text and kept.

::

    FOLDER/ENCODER-HASH/PART.parquet    text (BLAKE2 of it), vector

A part is written after every few thousand texts and never changed: a preparation that was stopped goes on where it was,
one that has nothing new to encode opens no batch, and two at a time disturb each other no more than by doing some work
twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.features.sentences import Encoders, TextEncoder, open_encoder

_CHUNK = 4096  # texts between two parts
_KEY = 16  # bytes: two of 10⁹ texts get the same key with a probability of 10⁻²¹
_TEXT, _VECTOR = "text", "vector"

Progress = Callable[[str, float], None]  # what is being done, share done


def kept(folder: Path, progress: Progress = lambda what, share: None, opened: Encoders = open_encoder) -> Encoders:
    """Encoders that remember their vectors in ``folder``.

    Args:
        folder: shared by all datasets.
        progress: told how many texts there are, and the share of them that is done.
        opened: what opens an encoder.
    """
    return lambda name: KeptEncoder(opened(name), folder, progress)


class KeptEncoder:
    """A ``TextEncoder`` that encodes no text twice.

    Memory is bounded by the answer, the keys of what is asked, and one part at a time.
    """

    def __init__(self, encoder: TextEncoder, folder: Path, progress: Progress = lambda what, share: None) -> None:
        self.dim, self.hash = encoder.dim, encoder.hash
        self._encoder, self._folder, self._progress = encoder, folder / encoder.hash[:16], progress

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``[N, dim]``."""
        keys = pa.array([blake2b(t.encode(), digest_size=_KEY).digest() for t in texts], pa.binary(_KEY))
        distinct = pc.unique(keys)
        code = pc.index_in(keys, value_set=distinct).to_numpy(zero_copy_only=False)
        first = np.unique(code, return_index=True)[1]
        out = np.zeros((len(distinct), self.dim), np.float32)
        there = np.zeros(len(distinct), bool)
        for table in self._parts():
            place = pc.index_in(table[_TEXT], value_set=distinct).combine_chunks()
            rows = pc.is_valid(place).to_numpy(zero_copy_only=False)
            vectors = table[_VECTOR].combine_chunks().flatten().to_numpy().reshape(-1, self.dim)
            wanted = pc.drop_null(place).to_numpy()
            out[wanted], there[wanted] = vectors[rows], True
        # texts of one length share a batch, in which the shorter ones are filled up
        missing = np.array(sorted(np.flatnonzero(~there), key=lambda r: (len(texts[int(first[r])]), r)), np.int64)
        for start in range(0, len(missing), _CHUNK):
            self._progress(f"encoding {len(missing):,} texts", start / len(missing))
            rows = missing[start : start + _CHUNK]
            out[rows] = self._encoder.encode([texts[first[r]] for r in rows])
            self._write(distinct.take(pa.array(rows)), out[rows])
        every: NDArray[np.float32] = out[code]
        return every

    def _parts(self) -> Iterator[pa.Table]:
        for path in sorted(self._folder.glob("*.parquet")):
            yield pq.read_table(path)

    def _write(self, keys: pa.Array, vectors: NDArray[np.float32]) -> None:
        """A part is complete when it has its name, which is that of its contents."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = blake2b(b"".join(keys.to_pylist()), digest_size=_KEY).hexdigest()
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.dim)
        half = self._folder / f".{name}.{os.getpid()}"
        pq.write_table(pa.table({_TEXT: keys, _VECTOR: column}), half)
        half.replace(self._folder / f"{name}.parquet")
