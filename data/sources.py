"""Readers: Parquet, CSV and JSON Lines → table expressions for DuckDB.

Values are never cast in silence: CSV columns arrive as text, JSON strings stay strings even where they
look like dates, and all files of a table must agree in the types of their columns.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from data.damage import READ_ERRORS, unreadable
from data.files import SUFFIXES, File, register, resolve
from towers.errors import ConfigError, DataError

# A first line says which of these separates the columns; the first that occurs in it wins.
_DELIMITERS = (",", ";", "\t", "|")
_DATE_LIKE = re.compile(r"\b(TIMESTAMP WITH TIME ZONE|TIMESTAMP\w*|TIME WITH TIME ZONE|TIME|DATE|UUID)\b")


@dataclass(frozen=True)
class Source:
    """Some files of one format, as a table expression for SQL.

    Attributes:
        files: the files, in order.
        reader: DuckDB function that reads them.
        options: its options.
        columns: column name → DuckDB type name.
        mixed: columns whose values are of several types, with a description.
    """

    files: tuple[File, ...]
    reader: str
    options: str
    columns: Mapping[str, str]
    mixed: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> bool:
        """Whether the columns are untyped text (CSV)."""
        return self.reader == "read_csv"

    @property
    def shown(self) -> str:
        """The files, for errors."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return self.files[0].shown + more

    @property
    def sql(self) -> str:
        """What follows FROM; its columns are the files' columns."""
        return scan(self.reader, self.files, self.options)

    def positioned(self) -> str:
        """The same table with ``_file`` and ``_row`` (from 0), for naming a faulty row. Slower to scan."""
        row = "file_row_number" if self.reader == "read_parquet" else "row_number() OVER () - 1"
        options = self.options + (", file_row_number=true" if self.reader == "read_parquet" else "")
        drop = " EXCLUDE (file_row_number)" if self.reader == "read_parquet" else ""
        one = (
            f"SELECT *{drop}, {literal(f.shown)} AS _file, {row} AS _row FROM {scan(self.reader, [f], options)}"
            for f in self.files
        )
        return f"({' UNION ALL '.join(one)})"

    def locate(self, con: duckdb.DuckDBPyConnection, condition: str, column: str) -> tuple[str, object]:
        """Where the first row is for which a condition holds, in words, and its value in ``column``."""
        found = con.execute(
            f"SELECT _file, _row, {quote(column)}::VARCHAR FROM {self.positioned()} WHERE {condition} "
            "ORDER BY _file, _row LIMIT 1"
        ).fetchall()
        file, row, value = found[0] if found else (self.shown, "unknown", None)
        return f"{file}, column {column!r}, row {row} (counted from 0)", value

    def require(self, names: Sequence[str], setting: str) -> None:
        """Stop unless all these columns exist and hold values of one type.

        Raises:
            DataError: naming the column, the file and the setting to correct.
        """
        if missing := [n for n in names if n not in self.columns]:
            raise DataError(
                f"no column {missing[0]!r}; there are {sorted(self.columns)}",
                where=self.shown,
                cure=f"correct {setting} in the data config",
            )
        for name in names:
            if name in self.mixed:
                raise DataError(
                    f"column {name!r} holds values of several types: {self.mixed[name]}",
                    where=f"{self.shown}, column {name!r}",
                    cure="write one type throughout",
                )


def scan(reader: str, files: Sequence[File], options: str) -> str:
    """A call of one of DuckDB's readers. Names are given literally: ``[`` would start a pattern.

    Args:
        reader: a table function, ``read_parquet`` say.
        files: what it reads.
        options: its other arguments, each after a comma.
    """
    names = ", ".join(literal(re.sub(r"[\[*?]", r"[\g<0>]", f.name)) for f in files)
    return f"{reader}([{names}]{options})"


def quote(name: str) -> str:
    """A column name, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string, quoted for SQL."""
    return "'" + text.replace("'", "''") + "'"


def open_source(con: duckdb.DuckDBPyConnection, paths: Sequence[str], base: str = "") -> Source:
    """Resolve paths (relative ones against ``base``) and describe what is there.

    Raises:
        ConfigError: an unknown format, or several.
        DataError: nothing is there, a file is empty or corrupt, or the files disagree in their columns.
    """
    files = resolve(paths, base)
    for f in files:
        if f.format is None:
            raise ConfigError(f"{f.shown}: unknown format; expected a name that ends in one of {', '.join(SUFFIXES)}")
        if f.size == 0:
            raise DataError("the file is empty (0 bytes)", where=f.shown, cure="write it again, or remove it")
    formats = sorted({str(f.format) for f in files})
    if len(formats) > 1:
        raise ConfigError(f"files of several formats {formats} in one source {list(paths)}; name those of one format")
    register(con, files)
    return {"parquet": _parquet, "csv": _csv, "json": _json}[formats[0]](con, files)


def _parquet(con: duckdb.DuckDBPyConnection, files: tuple[File, ...]) -> Source:
    """Open every footer: a truncated file is named, and so is one whose columns differ from the first's."""
    first: pa.Schema | None = None
    for f in files:
        try:
            schema = pq.read_schema(f.path, filesystem=f.filesystem)
        except (pa.ArrowInvalid, OSError) as e:
            raise DataError(
                f"not a readable Parquet file: {e}", where=f.shown, cure="write the file again; it may be truncated"
            ) from e
        first = first or schema
        for name in first.names:
            there = str(schema.field(name).type) if name in schema.names else "absent"
            if there != str(first.field(name).type):
                raise DataError(
                    f"column {name!r} is {there}, but {first.field(name).type} in {files[0].shown}",
                    where=f"{f.shown}, column {name!r}",
                    cure="write all files of a table with the same columns and types",
                )
    return _described(con, files, "read_parquet", ", union_by_name=false, hive_types_autocast=false")


def _csv(con: duckdb.DuckDBPyConnection, files: tuple[File, ...]) -> Source:
    """Text, quoted by ``"``; an empty field is null, whether quoted or not.

    Nothing is left to detection, which would take lines that begin with ``#`` for comments.
    """
    delimiter, names = _header(files[0])
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise DataError(f"several columns are named {twice[0]!r}", where=files[0].shown, cure="rename one of them")
    for f in files[1:]:
        if (there := _header(f)) != (delimiter, names):
            raise DataError(
                f"columns {there[1]} separated by {there[0]!r}; expected {names} separated by {delimiter!r}",
                where=f"{f.shown}, line 1",
                cure=f"write all files of a table with the columns of {files[0].shown}, in the same order",
            )
    columns = ", ".join(f"{literal(n)}: 'VARCHAR'" for n in names)
    dialect = f"""delim={literal(delimiter)}, quote='"', escape='"', comment='', strict_mode=true, null_padding=false"""
    options = f", auto_detect=false, header=true, columns={{{columns}}}, {dialect}, hive_types_autocast=false"
    return _described(con, files, "read_csv", options)


def _header(file: File) -> tuple[str, list[str]]:
    """The delimiter and the column names of a CSV file; a column without a name is called by its number."""
    try:
        with file.filesystem.open_input_stream(file.path) as stream:
            line = io.BufferedReader(stream).readline().decode("utf-8-sig").strip("\r\n")
        delimiter = next((d for d in _DELIMITERS if d in line), ",")
        names = next(csv.reader([line], delimiter=delimiter), [])
    except (UnicodeDecodeError, OSError, csv.Error) as e:
        raise DataError(
            f"not readable as text: {e}",
            where=f"{file.shown}, line 1",
            cure="write UTF-8, and compress as the name says",
        ) from e
    return delimiter, [name or f"column{i}" for i, name in enumerate(names)]


def _json(con: duckdb.DuckDBPyConnection, files: tuple[File, ...]) -> Source:
    """One object a line. Every line is looked at for the types; strings that look like dates stay strings."""
    guess = scan("read_json", files, ", format='newline_delimited', sample_size=-1, hive_types_autocast=false")
    columns = {n: _DATE_LIKE.sub("VARCHAR", t) for n, t in _describe(con, files, guess).items()}
    # a column is JSON where its values are of several types, or all null
    unclear = [n for n, t in columns.items() if t == "JSON"]
    columns |= dict.fromkeys((n for n in unclear if not _any(con, guess, n)), "VARCHAR")
    # … and HUGEINT where some are negative, as others are taken for unsigned
    columns |= dict.fromkeys((n for n, t in columns.items() if t == "HUGEINT" and _fits(con, guess, n)), "BIGINT")
    types = ", ".join(f"{literal(n)}: {literal(t)}" for n, t in columns.items())
    s = _described(con, files, "read_json", f", format='newline_delimited', columns={{{types}}}")
    mixed = {n: _several_types(con, s, n) for n in unclear if columns[n] == "JSON"}
    return Source(s.files, s.reader, s.options, s.columns, mixed)


def _any(con: duckdb.DuckDBPyConnection, table: str, column: str) -> bool:
    return bool(con.execute(f"SELECT count({quote(column)}) FROM {table}").fetchall()[0][0])


def _fits(con: duckdb.DuckDBPyConnection, table: str, column: str) -> bool:
    """Whether all integers of a column are of 64 bits."""
    query = f"SELECT bool_and({quote(column)} BETWEEN {-(2**63)} AND {2**63 - 1}) FROM {table}"
    return bool(con.execute(query).fetchall()[0][0])


def _several_types(con: duckdb.DuckDBPyConnection, s: Source, column: str) -> str:
    """The types of a column of mixed values, each with the first row where it occurs."""
    found = con.execute(
        f"SELECT json_type({quote(column)}) AS t, arg_min(_file, _row), min(_row) FROM {s.positioned()} "
        f"WHERE {quote(column)} IS NOT NULL GROUP BY t ORDER BY t"
    ).fetchall()
    return ", ".join(f"{kind} ({file}, row {row})" for kind, file, row in found)


def _described(con: duckdb.DuckDBPyConnection, files: tuple[File, ...], reader: str, options: str) -> Source:
    return Source(files, reader, options, _describe(con, files, scan(reader, files, options)))


def _describe(con: duckdb.DuckDBPyConnection, files: Sequence[File], table: str) -> dict[str, str]:
    try:
        return {str(r[0]): str(r[1]) for r in con.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()}
    except READ_ERRORS as e:
        raise unreadable(e, files) from e
