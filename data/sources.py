"""Readers: files, folders, globs and URIs of Parquet, CSV or JSON Lines → a DuckDB relation.

Local files are scanned by DuckDB itself; anything with a URI goes through ``pyarrow.dataset`` and the
filesystem that the URI names. Values are never cast in silence: CSV columns arrive as text, and ids
become integers only where every one of them reads back the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from towers.errors import ConfigError, DataError

_FORMATS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Some files of one format, as a table expression for SQL.

    Attributes:
        sql: what follows FROM; its columns are the files' columns.
        columns: column name → DuckDB type name.
        files: the resolved files, in order.
        text: whether the columns are untyped text (CSV).
    """

    sql: str
    columns: Mapping[str, str]
    files: tuple[str, ...]
    text: bool

    def positioned(self) -> str:
        """The same table with ``_file`` and ``_row`` (from 0), for naming a faulty row. Slower to scan."""
        if self.sql.startswith("read_parquet"):
            scan = f"{self.sql[:-1]}, filename=true, file_row_number=true)"
            return f"(SELECT *, filename AS _file, file_row_number AS _row FROM {scan})"
        if not self.sql.startswith("read_"):
            return f"(SELECT *, {literal(self.files[0])} AS _file, row_number() OVER () - 1 AS _row FROM {self.sql})"
        names = self.sql[self.sql.index("[") : self.sql.index("]") + 1]
        one = (
            f"SELECT *, {literal(f)} AS _file, row_number() OVER () - 1 AS _row FROM "
            + self.sql.replace(names, f"[{literal(f)}]", 1)
            for f in self.files
        )
        return f"({' UNION ALL '.join(one)})"

    def require(self, names: Sequence[str], setting: str) -> None:
        """Stop unless all these columns exist.

        Raises:
            DataError: naming the missing columns, the file and the setting to correct.
        """
        if missing := [n for n in names if n not in self.columns]:
            raise DataError(
                f"no column {missing[0]!r}; there are {sorted(self.columns)}",
                where=self.files[0] + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""),
                cure=f"correct {setting} in the data config",
            )


def quote(name: str) -> str:
    """A column name, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string, quoted for SQL."""
    return "'" + text.replace("'", "''") + "'"


def open_source(con: duckdb.DuckDBPyConnection, paths: Sequence[str], base: str, types: Mapping[str, str]) -> Source:
    """Resolve paths (relative ones against ``base``) and describe what is there.

    Raises:
        DataError: nothing is there, a file is corrupt, or the files disagree in their columns.
    """
    resolved = [p if "://" in p or Path(p).is_absolute() or not base else f"{base.rstrip('/')}/{p}" for p in paths]
    if any("://" in p for p in resolved):
        return _open_uri(con, resolved)
    files = [f for p in resolved for f in _expand(p)]
    formats = {_format(f) for f in files}
    if len(formats) > 1:
        raise ConfigError(f"files of several formats {sorted(formats)} in one source {list(paths)}; give one format")
    form = formats.pop()
    names = "[" + ", ".join(literal(f) for f in files) + "]"
    if form == "parquet":
        _check_parquet(files)
        sql = f"read_parquet({names}, union_by_name=false)"
    elif form == "csv":
        sql = f"read_csv({names}, all_varchar=true, header=true, null_padding=false, strict_mode=true)"
    else:
        sql = _json_sql(con, names)
    try:
        columns = {str(r[0]): str(r[1]) for r in con.execute(f"DESCRIBE SELECT * FROM {sql}").fetchall()}
    except duckdb.Error as e:
        raise DataError(str(e).splitlines()[0], where=", ".join(files[:3]), cure="repair or remove the file") from e
    return Source(sql, columns, tuple(files), form == "csv")


def _json_sql(con: duckdb.DuckDBPyConnection, names: str) -> str:
    """JSON keeps its own types, but strings that look like dates must stay strings (they may be naive)."""
    sql = f"read_json({names}, format='newline_delimited', convert_strings_to_integers=false)"
    try:
        described = con.execute(f"DESCRIBE SELECT * FROM {sql}").fetchall()
    except duckdb.Error as e:
        raise DataError(str(e).splitlines()[0], where=names, cure="repair or remove the file") from e
    columns = ", ".join(
        f"{literal(str(r[0]))}: {literal('VARCHAR' if str(r[1]).startswith(('DATE', 'TIME', 'UUID')) else str(r[1]))}"
        for r in described
    )
    return f"read_json({names}, format='newline_delimited', columns={{{columns}}})"


def _expand(path: str) -> list[str]:
    p = Path(path)
    if p.is_dir():
        found = sorted(f for f in p.rglob("*") if f.is_file() and _suffix(f) and not f.name.startswith((".", "_")))
    elif any(ch in path for ch in "*?["):
        root = Path(p.anchor) if p.is_absolute() else Path()
        found = sorted(f for f in root.glob(str(p.relative_to(root) if p.is_absolute() else p)) if f.is_file())
    else:
        found = [p] if p.is_file() else []
    if not found:
        raise DataError("no such file", where=path, cure="correct files, or the `source` setting, in the data config")
    return [str(f) for f in found]


def _suffix(path: Path) -> str | None:
    """Format by name; ``.csv.gz`` and the like count as what they compress."""
    for suffix in reversed(path.suffixes[-2:]):
        if suffix in _FORMATS:
            return _FORMATS[suffix]
    return None


def _format(file: str) -> str:
    form = _suffix(Path(file))
    if form is None:
        raise ConfigError(f"{file}: unknown format; expected a name that ends in {sorted(_FORMATS)} (or + .gz)")
    return form


def _check_parquet(files: Sequence[str]) -> None:
    """Open every footer: a truncated file is named, and so is one whose columns differ from the first's."""
    first: pa.Schema | None = None
    for f in files:
        try:
            schema = pq.read_schema(f)
        except (pa.ArrowInvalid, OSError) as e:
            raise DataError(
                f"not a readable Parquet file: {e}", where=f, cure="write the file again; it may be truncated"
            ) from e
        if first is None:
            first = schema
        for name in first.names:
            if name not in schema.names or schema.field(name).type != first.field(name).type:
                there = schema.field(name).type if name in schema.names else "absent"
                raise DataError(
                    f"column {name!r} is {there}, but {first.field(name).type} in {files[0]}",
                    where=f,
                    cure="write all files of a table with the same columns and types",
                )


def _open_uri(con: duckdb.DuckDBPyConnection, uris: Sequence[str]) -> Source:
    parts = []
    for uri in uris:
        filesystem, path = pafs.FileSystem.from_uri(uri)
        form = _suffix(Path(path)) or "parquet"
        options = {"format": form}
        if form == "csv":
            header = pads.dataset(path, filesystem=filesystem, format="csv").schema.names
            convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True)
            options = {"format": pads.CsvFileFormat(convert_options=convert)}
        try:
            parts.append(pads.dataset(path, filesystem=filesystem, **options))
        except (pa.ArrowInvalid, FileNotFoundError) as e:
            raise DataError(str(e).splitlines()[0], where=uri, cure="correct files in the data config") from e
    whole = parts[0] if len(parts) == 1 else pads.dataset(parts)
    name = f"uri_{len(con.execute('SHOW TABLES').fetchall())}"
    con.register(name, whole)
    columns = {str(r[0]): str(r[1]) for r in con.execute(f"DESCRIBE SELECT * FROM {name}").fetchall()}
    return Source(name, columns, tuple(f for p in parts for f in p.files), form == "csv")
