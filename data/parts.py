"""Rows of several Parquet files as one run, read from any row on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.writer import generation_of
from towers.features import columns as c

_ROWS = 1 << 16  # of a batch
_BUFFER = 1 << 20  # bytes read at once, of each column


@dataclass(frozen=True)
class RowGroups:
    """Row groups of files that follow each other; ``G`` of them.

    Attributes:
        where: ``[G]`` file and number of each group.
        starts: ``[G + 1]`` rows before each group, and all of them.
        names: columns.
        generation: ``[G]`` the preparation that wrote each group; they ascend, and within one users do.
    """

    where: tuple[tuple[Path, int], ...]
    starts: NDArray[np.int64]
    names: tuple[str, ...]
    generation: NDArray[np.int64]

    @classmethod
    def of(cls, files: Sequence[Path]) -> Self:
        """Those of some parts, whose footers are read."""
        files = sorted(files, key=lambda f: (generation_of(f), f.name))
        where: list[tuple[Path, int]] = []
        rows, names = [0], dict[str, None]()
        for path in files:
            footer = pq.read_metadata(path)
            names |= dict.fromkeys(footer.schema.names)
            where += [(path, g) for g in range(footer.num_row_groups)]
            rows += [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]
        generation = np.array([generation_of(path) for path, _ in where], np.int64)
        return cls(tuple(where), np.cumsum(np.array(rows, np.int64)), tuple(names), generation)

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.where)

    def read(self, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of one group, in small batches: what is decoded stays in the caches, and takes little."""
        path, number = self.where[group]
        with pq.ParquetFile(path, buffer_size=_BUFFER) as file:
            yield from file.iter_batches(_ROWS, row_groups=[number], columns=list(columns), use_threads=False)

    @cached_property
    def users(self) -> NDArray[np.int64]:
        """``[G, 2]`` the first user of each group and the one after its last."""
        spans = [
            [batch[c.USER_ROW].to_numpy()[[0, -1]] for batch in self.read(g, [c.USER_ROW])] for g in range(len(self))
        ]
        return np.array([(some[0][0], some[-1][1] + 1) for some in spans], np.int64).reshape(-1, 2)

    def of_users(self, first: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows of users ``first`` to ``stop``, generation by generation; only the groups that hold some are read.

        Args:
            first: user row.
            stop: the one after the last.
            columns: user rows among them.
        """
        begin, end = self.users.T
        for group in np.flatnonzero((begin < stop) & (end > first)).tolist():
            for batch in self.read(group, columns):
                low, high = np.searchsorted(batch[c.USER_ROW].to_numpy(), [first, stop]).tolist()
                if low < high:
                    yield batch.slice(low, high - low)

    def slices(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows ``start`` to ``stop``, in small batches; only the groups that hold some are read."""
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        for group in range(first, len(self)):
            begin = int(self.starts[group])
            if begin >= stop:
                return
            for batch in self.read(group, columns):
                low, high = max(start - begin, 0), min(stop - begin, len(batch))
                if low < high:
                    yield batch.slice(low, high - low)
                begin += len(batch)


def times(rows: pa.Table | pa.RecordBatch) -> NDArray[np.int64]:
    """``[n]`` the column of times: microseconds, or the plain order."""
    return np.asarray(rows[c.TIME].cast(pa.int64()).to_numpy(), np.int64)
