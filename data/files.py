"""Paths → files: single files, folders and globs, local or on any filesystem that pyarrow opens by URI.

DuckDB reads a local file by its path and every other one through the pyarrow filesystem, which is
registered under an alias of its own (``register``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from zlib import crc32

import duckdb
import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.implementations.arrow import ArrowFSWrapper  # type: ignore[import-untyped]

from towers.errors import DataError

_FORMATS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
}  # fmt: skip
_COMPRESSED = (".gz", ".zst")
SUFFIXES = (*_FORMATS, *(s + z for s, form in _FORMATS.items() if form != "parquet" for z in _COMPRESSED))


@dataclass(frozen=True)
class File:
    """A file that is there.

    Attributes:
        path: its path inside ``filesystem``.
        prefix: what stands before that path in its URI; empty for a local path.
        filesystem: where it is.
        size: bytes.
        changed_ns: time of the last change, where the filesystem knows it.
    """

    path: str
    prefix: str
    filesystem: pafs.FileSystem
    size: int
    changed_ns: int | None

    @property
    def shown(self) -> str:
        """The file as the user knows it."""
        return self.prefix + self.path

    @property
    def name(self) -> str:
        """The file as DuckDB knows it."""
        return f"{alias(self.prefix)}://{self.path}" if self.prefix else self.path

    @property
    def format(self) -> str | None:
        """``parquet``, ``csv`` or ``json`` by the name's ending, or None."""
        return _format(self.path)


def _format(path: str) -> str | None:
    suffixes = PurePosixPath(path).suffixes[-2:]
    if suffixes and suffixes[-1] in _FORMATS:
        return _FORMATS[suffixes[-1]]
    inner = _FORMATS.get(suffixes[0]) if len(suffixes) == 2 and suffixes[1] in _COMPRESSED else None
    return None if inner == "parquet" else inner


def resolve(paths: Sequence[str], base: str = "") -> tuple[File, ...]:
    """The files that these paths name, each once, in the order of the paths and then by name.

    Args:
        paths: files, folders (every file of a known format below them) or globs (``**`` for any depth), as
            local paths or URIs. Names that begin with a dot or an underscore are passed over, as everywhere.
        base: what relative paths are relative to; a path or a URI.

    Raises:
        DataError: nothing is there.
    """
    found: dict[str, File] = {}
    for path in paths:
        absolute = "://" in path or Path(path).is_absolute() or not base
        for file in _expand(path if absolute else f"{base.rstrip('/')}/{path}"):
            found.setdefault(file.shown, file)
    return tuple(found.values())


def _expand(path: str) -> list[File]:
    nothing = DataError(
        "no such file", where=path, cure="correct files, or the `source` setting, in the data config"
    )  # fmt: skip
    try:
        filesystem, inner, prefix = _filesystem(path)
        info = filesystem.get_file_info(inner)
        if info.type == pafs.FileType.NotFound and any(ch in inner for ch in "*?["):
            parts = PurePosixPath(inner).parts
            infos = list(_glob(filesystem, parts[0] if inner.startswith("/") else ".", parts[inner.startswith("/") :]))
        else:
            infos = [info]
        files = [f for i in infos for f in (_below(filesystem, i.path) if i.type == pafs.FileType.Directory else [i])]
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(str(e).splitlines()[0], where=path, cure=nothing.cure) from e
    out = [File(i.path, prefix, filesystem, i.size, i.mtime_ns) for i in files if i.type == pafs.FileType.File]
    if not out:
        raise nothing
    return sorted(out, key=lambda f: f.path)


def _filesystem(path: str) -> tuple[pafs.FileSystem, str, str]:
    """Filesystem, path inside it, and what stands before that path in the URI."""
    if "://" not in path:
        return pafs.LocalFileSystem(), path, ""
    # a glob is no valid URI, so only the part before it is parsed
    steps = path.split("/")
    first = next((i for i, step in enumerate(steps) if any(ch in step for ch in "*?[") and i > 2), len(steps))
    stem = "/".join(steps[:first])
    filesystem, inner = pafs.FileSystem.from_uri(stem)
    prefix = stem[: stem.rindex(inner)] if inner and inner in stem else stem.split("://")[0] + "://"
    return filesystem, "/".join([inner.rstrip("/"), *steps[first:]]) if first < len(steps) else inner, prefix


def _children(filesystem: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    selector = pafs.FileSelector(folder, allow_not_found=True)
    return sorted(filesystem.get_file_info(selector), key=lambda i: i.path)


def _hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _glob(filesystem: pafs.FileSystem, folder: str, pattern: Sequence[str]) -> Iterator[pafs.FileInfo]:
    head, rest = pattern[0], pattern[1:]
    if head == "**" and rest:
        yield from _glob(filesystem, folder, rest)
    for child in _children(filesystem, folder):
        if not fnmatchcase(child.base_name, head) or (_hidden(child.base_name) and not _hidden(head)):
            continue
        if not rest:
            yield child
        elif child.type == pafs.FileType.Directory:
            yield from _glob(filesystem, child.path, pattern if head == "**" else rest)


def _below(filesystem: pafs.FileSystem, folder: str) -> Iterator[pafs.FileInfo]:
    """Every file of a known format below a folder."""
    for child in _children(filesystem, folder):
        if _hidden(child.base_name):
            continue
        if child.type == pafs.FileType.Directory:
            yield from _below(filesystem, child.path)
        elif _format(child.path):
            yield child


class _Bridge(ArrowFSWrapper):  # type: ignore[misc]
    """A pyarrow filesystem under an alias that DuckDB can be told about; paths stay as they are."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return path.split("://", 1)[-1] if isinstance(path, str) else path


def alias(prefix: str) -> str:
    """The name under which DuckDB knows the filesystem of a URI."""
    return f"arrow{crc32(prefix.encode()):08x}"


def register(con: duckdb.DuckDBPyConnection, files: Sequence[File]) -> None:
    """Let DuckDB read files that are not local."""
    for prefix, filesystem in {f.prefix: f.filesystem for f in files if f.prefix}.items():
        name = alias(prefix)
        if name not in con.list_filesystems():
            bridge = type("Bridge", (_Bridge,), {"protocol": name, "root_marker": "/"})
            con.register_filesystem(bridge(filesystem, skip_instance_cache=True))


def unregister(con: duckdb.DuckDBPyConnection) -> None:
    """Take back what ``register`` did; without it DuckDB keeps the connection alive."""
    for name in con.list_filesystems():
        if name.startswith("arrow"):
            con.unregister_filesystem(name)
