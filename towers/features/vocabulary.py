"""Values ↔ embedding rows.

Every vocabulary starts with three rows of its own, so that padding, absence and novelty are never
mixed up: ``PAD`` (fills lists up; its embedding is zero and never trained), ``MISSING`` (the value is
null, or the list is empty) and ``OOV`` (a value that the training data did not hold often enough).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.errors import DataError
from towers.features import columns as c
from towers.features.hashing import mixed
from towers.features.raw import is_text, plain

PAD, MISSING, OOV, FIRST = 0, 1, 2, 3
KEYS = 2**31 - 1  # keys of values lie below


class Vocabulary:
    """An ordered set of values with their training counts; value ``i`` has id ``FIRST + i``.

    Args:
        values: ``[V]`` unique values.
        counts: ``[V]`` how often each was seen in training.
    """

    def __init__(self, values: pa.Array, counts: NDArray[np.int64]) -> None:
        self._values, self._counts = values, counts

    @property
    def values(self) -> pa.Array:
        """``[V]`` values, in the order of their ids."""
        return self._values

    @property
    def counts(self) -> NDArray[np.int64]:
        """``[V]`` how often each was seen in training."""
        return self._counts

    @classmethod
    def fit(
        cls,
        column: pa.Array | pa.ChunkedArray,
        weights: NDArray[np.int64] | None = None,
        *,
        min_count: int = 1,
        max_size: int | None = None,
    ) -> Vocabulary:
        """The values of a column, the most frequent first (ties by value, so that order is stable).

        Args:
            column: ``[n]`` values, nulls allowed.
            weights: ``[n]`` how often each row counts; 0 leaves it out. By default once.
            min_count: rarer values are out of vocabulary.
            max_size: keep at most this many.
        """
        column = plain(column)
        weights = np.ones(len(column), np.int64) if weights is None else np.asarray(weights, np.int64)
        table = pa.table({c.VALUE: column, c.COUNT: weights}).filter(pc.is_valid(pc.field(c.VALUE)))
        table = table.group_by(c.VALUE).aggregate([(c.COUNT, "sum")]).rename_columns([c.VALUE, c.COUNT])
        table = table.filter(pc.field(c.COUNT) >= max(1, min_count))
        table = table.sort_by([(c.COUNT, "descending"), (c.VALUE, "ascending")])
        if max_size is not None:
            table = table.slice(0, max_size)
        values = table[c.VALUE].combine_chunks()
        return cls(values, table[c.COUNT].to_numpy().astype(np.int64))

    @classmethod
    def union(cls, parts: Sequence[Vocabulary]) -> Vocabulary:
        """All values of several vocabularies, with the sums of their counts.

        Raises:
            DataError: their values are of different types.
        """
        if len({str(p.values.type) for p in parts if len(p.values)}) > 1:
            raise DataError(
                f"one vocabulary for values of types {[str(p.values.type) for p in parts]}",
                cure="write one type on both sides, or drop the feature's `vocabulary` from the data config",
            )
        filled = [p for p in parts if len(p.values)] or list(parts[:1])
        return cls.fit(pa.chunked_array([p.values for p in filled]), np.concatenate([p.counts for p in filled]))

    def grown(self, newer: Vocabulary, max_size: int | None = None) -> Vocabulary:
        """The same values with the same ids, then those that only a newer vocabulary has, with its counts.

        A value that the newer one has dropped keeps its id and its count.

        Args:
            newer: fitted on later data.
            max_size: new values are added up to this many in all.

        Raises:
            DataError: their values cannot be compared.
        """
        if not len(newer.values) or not len(self.values):
            return self if len(self.values) else newer
        theirs, mine = _as_one_type(newer.values, self.values, "vocabulary")
        place = pc.fill_null(pc.index_in(theirs, value_set=mine), -1).to_numpy(zero_copy_only=False)
        new = np.flatnonzero(place < 0)[: None if max_size is None else max(0, max_size - len(mine))]
        counts = np.concatenate([self.counts, newer.counts[new]])
        counts[place[place >= 0]] = newer.counts[place >= 0]
        return Vocabulary(pa.concat_arrays([mine, theirs.take(pa.array(new))]), counts)

    def __len__(self) -> int:
        """Number of embedding rows, the three special ones included."""
        return FIRST + len(self.values)

    def encode(self, column: pa.Array | pa.ChunkedArray, where: str = "") -> NDArray[np.int32]:
        """``[n]`` ids of ``[n]`` values: null is MISSING, an unknown value is OOV.

        Raises:
            DataError: the column's type cannot be compared with the vocabulary's.
        """
        column = plain(column)
        column, values = _as_one_type(column, self.values, where)
        found = pc.fill_null(pc.index_in(column, value_set=values), -1).to_numpy(zero_copy_only=False)
        ids = np.where(found >= 0, found + FIRST, OOV).astype(np.int32)
        if column.null_count:
            ids[pc.is_null(column).to_numpy(zero_copy_only=False)] = MISSING
        return ids

    @cached_property
    def keys(self) -> NDArray[np.int32]:
        """``[len(self), 2]`` two numbers below ``KEYS`` for each id, which its value alone decides.

        Ids are ranks by count and change from one preparation to the next; what is hashed by keys does not. The
        special ids have 0.
        """
        values, out = self.values, np.zeros((len(self), 2), np.int32)
        if pa.types.is_integer(values.type) or pa.types.is_boolean(values.type):
            random = mixed(values.cast(pa.int64()).to_numpy(zero_copy_only=False).astype(np.uint64))
        else:
            digests = (blake2b(str(v).encode(), digest_size=8).digest() for v in values.to_pylist())
            random = np.frombuffer(b"".join(digests), "<u8")
        out[FIRST:, 0] = (random & np.uint64(0xFFFFFFFF)) % np.uint64(KEYS)
        out[FIRST:, 1] = (random >> np.uint64(32)) % np.uint64(KEYS)
        return out

    def all_counts(self) -> NDArray[np.int64]:
        """``[len(self)]`` counts by id; 0 for the three special rows."""
        return np.concatenate([np.zeros(FIRST, np.int64), self.counts])

    def save(self, path: Path) -> None:
        """Write ``value, id, count``."""
        ids = np.arange(FIRST, len(self), dtype=np.int32)
        pq.write_table(pa.table({c.VALUE: self.values, c.ID: ids, c.COUNT: self.counts}), path)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what ``save`` wrote."""
        table = pq.read_table(path, columns=[c.VALUE, c.COUNT])
        return cls(table[c.VALUE].combine_chunks(), np.array(table[c.COUNT], np.int64))


class StoredVocabulary(Vocabulary):
    """A vocabulary in its file: what is asked for is read, and nobody keeps it.

    Args:
        path: what ``save`` wrote; of it the footer is read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size: int = pq.read_metadata(path).num_rows

    @property
    def values(self) -> pa.Array:
        """``[V]``, read now."""
        return pq.read_table(self._path, columns=[c.VALUE])[c.VALUE].combine_chunks()

    @property
    def counts(self) -> NDArray[np.int64]:
        """``[V]``, read now."""
        return np.array(pq.read_table(self._path, columns=[c.COUNT])[c.COUNT], np.int64)

    def __len__(self) -> int:
        """Number of embedding rows."""
        return FIRST + self._size


def _as_one_type(column: pa.Array, values: pa.Array, where: str) -> tuple[pa.Array, pa.Array]:
    """Both in a type in which equal means equal: text only with text, numbers only with numbers.

    A cast alone would not do: it writes 3.0 as "3" or "3.0", which is then silently out of vocabulary.
    """
    t = pa.types
    if column.type == values.type:
        return column, values
    if t.is_null(column.type):
        return pa.nulls(len(column), values.type), values
    if t.is_null(values.type) and not t.is_nested(column.type):  # training saw no value: every one is new
        return column, pa.array([], column.type)
    kinds = (is_text, _is_number, t.is_boolean)
    if any(kind(column.type) and kind(values.type) for kind in kinds):
        whole = t.is_integer(column.type) and t.is_integer(values.type)
        wanted = pa.int64() if whole else values.type  # 70,000 is a new value, whatever the width of the known ones
        try:
            return column.cast(wanted), values.cast(wanted)
        except pa.ArrowInvalid:  # 1.5 beside whole numbers
            pass
    raise DataError(
        f"values of type {column.type}; this feature was fitted on {values.type}",
        where=where,
        cure=f"give values of type {values.type}, or correct the data config and prepare again",
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
