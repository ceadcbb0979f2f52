"""A side's table on disk: a column is in memory only while somebody reads it.

``n`` users or items. What a catalogue's features take, their texts above all, is many times what its ids take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

_ROWS = 1 << 16  # of a batch


class EntityTable:
    """``users.parquet``, ``items.parquet`` or ``contexts.parquet``. It is asked as a ``pa.Table`` is.

    Args:
        path: the file, whose footer is read; None: no columns and no rows.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        footer = None if path is None else pq.read_metadata(path)
        self._schema = pa.schema([]) if footer is None else footer.schema.to_arrow_schema()
        self._rows = 0 if footer is None else footer.num_rows

    def __len__(self) -> int:
        """``n``."""
        return self._rows

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self._schema.names)

    def select(self, names: Sequence[str]) -> pa.Table:
        """Some columns, read now."""
        return pa.table({}) if self._path is None else pq.read_table(self._path, columns=list(names))

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """One column, read now."""
        return self.select([name])[name]

    def array(self, name: str) -> NDArray[Any]:
        """``[n]``, or ``[n, w]`` of lists of one length: a column of numbers without nulls."""
        return _numbers(self[name].combine_chunks())

    def mapped(self, name: str, path: Path) -> NDArray[Any]:
        """The same, written to a ``.npy`` file a few rows at a time and mapped: it takes memory that can be given back.

        Args:
            name: of the column.
            path: of a new file.

        Returns:
            What is changed in it is changed in memory alone.
        """
        kind = self._schema.field(name).type
        wide = pa.types.is_fixed_size_list(kind)
        shape = (self._rows, kind.list_size) if wide else (self._rows,)
        dtype = np.dtype((kind.value_type if wide else kind).to_pandas_dtype())
        if 0 in shape:  # nothing cannot be mapped
            return np.empty(shape, dtype)
        with path.open("xb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            )
            for batch in self._batches(name):
                _numbers(batch[name]).tofile(file)
        out: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
        return out

    def _batches(self, name: str) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self._path) as file:
            yield from file.iter_batches(_ROWS, columns=[name], use_threads=False)


def _numbers(column: pa.Array) -> NDArray[Any]:
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten().to_numpy()).reshape(-1, column.type.list_size)
    return np.asarray(column.to_numpy())
