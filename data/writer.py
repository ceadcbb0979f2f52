"""Writing a prepared dataset: bucketed parts, and the hashes of all files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.features import columns as c

# Users of one bucket share a part. New users are numbered after the old ones, so that newer logs add
# buckets and generations and rewrite none.
USERS_PER_BUCKET = 1 << 18
FORMAT_VERSION = 3
_ROW_GROUP = 1 << 19  # rows
_SCATTERED = {c.ITEM_ROW, c.TIME}  # within a user: compression finds nothing in them
_RISING = {c.HISTORY_END}
_BEHIND = 2  # row groups that may wait for the writing thread


class Parts:
    """Rows sorted by user → ``FOLDER/BUCKET-GENERATION.parquet``, or one file of a given name.

    A thread of its own encodes and writes, while the caller already works on the next rows.
    """

    def __init__(
        self,
        root: Path,
        folder: str,
        generation: int = 0,
        name: str | None = None,
        users_per_bucket: int | None = None,
    ) -> None:
        self._root, self._folder, self._generation, self._name = root, folder, generation, name
        self._users = users_per_bucket or USERS_PER_BUCKET
        self._bucket = -1
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.Table] = []  # rows that do not fill a row group yet
        self._pool = ThreadPoolExecutor(max_workers=1)  # one, hence everything happens in order
        self._pending: deque[Future[None]] = deque()
        self.files: dict[str, int] = {}  # name → rows
        self.rows = 0

    def write(self, user: NDArray[np.int32], table: pa.Table) -> None:
        """Append rows; ``user`` are their user rows, not before those of earlier calls."""
        if not len(user):
            return
        buckets = user // self._users
        cuts = np.append(np.flatnonzero(np.diff(buckets, prepend=-1)), len(user))
        for start, stop in pairwise(cuts):
            self._append(int(buckets[start]), table.slice(start, stop - start))

    def _append(self, bucket: int, table: pa.Table) -> None:
        part = self._name or f"{bucket:05d}-{self._generation:05d}"
        name = f"{self._folder}/{part}.parquet"
        if self._writer is None or (bucket != self._bucket and not self._name):
            self._close_part()
            (self._root / self._folder).mkdir(parents=True, exist_ok=True)
            self._bucket = bucket
            names = table.column_names
            # ids do not repeat enough for a dictionary to pay; LZ4 takes a third of the time of zstd
            self._writer = pq.ParquetWriter(
                self._root / name,
                table.schema,
                compression={n: "none" if n in _SCATTERED else "lz4" for n in names},
                column_encoding={n: "DELTA_BINARY_PACKED" for n in names if n in _RISING} or None,
                use_dictionary=False,
                write_statistics=[c.SPLIT] if c.SPLIT in names else False,
            )
        self._held.append(table)
        self.files[name] = self.files.get(name, 0) + len(table)
        self.rows += len(table)
        if sum(map(len, self._held)) >= _ROW_GROUP:
            self._flush(whole_groups=True)

    def _flush(self, whole_groups: bool) -> None:
        """Write row groups of one size, so that the bytes do not depend on how the rows arrived."""
        if self._writer is None or not self._held:
            return
        table = pa.concat_tables(self._held)
        n = len(table) // _ROW_GROUP * _ROW_GROUP if whole_groups else len(table)
        for start in range(0, n, _ROW_GROUP):
            size = min(_ROW_GROUP, n - start)
            self._later(_write_group, self._writer, table.slice(start, size))
        self._held = [table.slice(n)] if n < len(table) else []

    def _later(self, f: Callable[..., None], *args: Any) -> None:
        """Hand work to the thread; wait while it is too far behind, so that memory stays bounded."""
        self._pending.append(self._pool.submit(f, *args))
        while len(self._pending) > _BEHIND:
            self._pending.popleft().result()

    def _close_part(self) -> None:
        self._flush(whole_groups=False)
        if self._writer is not None:
            self._later(self._writer.close)
            self._writer = None

    def close(self) -> None:
        """Finish all files."""
        self._close_part()
        while self._pending:
            self._pending.popleft().result()
        self._pool.shutdown()


def _write_group(writer: pq.ParquetWriter, rows: pa.Table) -> None:
    writer.write_table(rows.combine_chunks(), row_group_size=_ROW_GROUP)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def describe_files(
    root: Path, rows: Mapping[str, int], known: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Every file below ``root`` with its size, SHA-256 and, where known, rows.

    Args:
        root: the folder.
        rows: of some files, by name.
        known: what is known of files that are as they were: they are not read again.
    """
    out = dict(known or {})
    paths = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
    new = [name for name in paths if name not in out]
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(sha256, [paths[name] for name in new]))
    for name, digest in zip(new, hashes, strict=True):
        out[name] = {"bytes": paths[name].stat().st_size, "sha256": digest}
        if name in rows:
            out[name]["rows"] = rows[name]
    return {name: out[name] for name in paths}


def generation_of(part: str | Path) -> int:
    """The generation of ``FOLDER/BUCKET-GENERATION.parquet``."""
    return int(Path(part).stem.rsplit("-", 1)[1])


def keep_file(source: Path, target: Path) -> None:
    """Let a file have a second name; where the filesystem has no hard links, a copy with its time of change."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside the final name and rename it into place."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)
