"""What is wrong with a file that cannot be read: the line or the column, beyond what the reader's error says."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from data.files import File
from towers.errors import DataError

# As what a damaged file surfaces, depending on the reader and on how far the stream was …
READ_ERRORS = (duckdb.Error, pa.ArrowInvalid, OSError)
# … and what it never is: a query that cannot run is a defect of ours.
_DEFECTS = (duckdb.ProgrammingError, duckdb.InternalError, duckdb.NotSupportedError)


def unreadable(error: Exception, files: Sequence[File]) -> DataError:
    """What a reader's error says: the file, the line or the column, and what to do. Other errors are raised again."""
    if isinstance(error, _DEFECTS) and not isinstance(error, duckdb.InvalidInputException):
        raise error
    if isinstance(error, OSError) and error.errno is not None:  # the disk is full, say
        raise error
    message = str(error)
    named = [f for f in files if re.search(rf"(?<![\w/]){re.escape(f.name)}(?!\w)", message)]
    # a message does not always say which file it is about
    suspects = sorted(named, key=lambda f: -len(f.name))[:1] or files
    line = re.search(r"CSV Error on Line: (\d+)", message)
    found = f", line {line[1]}" if line and len(suspects) == 1 else ""
    places = [f.shown + p for f in suspects if (p := found or _damage(f))] or [f.shown for f in suspects]
    what = [x.strip() for x in message.splitlines() if x.strip()]
    said = next((x for x in what[1:4] if line and not x.startswith(("Original", "CSV Error"))), "")
    for f in files:
        what[0] = what[0].replace(f.name, f.shown)
    return DataError(
        "; ".join(filter(None, (what[0], said))), where="; ".join(places), cure="repair or remove the file"
    )


def _damage(file: File) -> str:
    return {"parquet": _damaged_column, "json": _damaged_line}.get(str(file.format), lambda f: "")(file)


def _damaged_line(file: File) -> str:
    """The first line of a JSON Lines file that is no JSON."""
    number = 0
    try:
        with file.filesystem.open_input_stream(file.path) as stream:
            for number, line in enumerate(io.BufferedReader(stream), start=1):  # noqa: B007
                if line.strip():
                    json.loads(line)
    except (ValueError, OSError):
        return f", line {number}"
    return ""


def _damaged_column(file: File) -> str:
    """The first column chunk of a Parquet file that cannot be read."""
    try:
        parquet = pq.ParquetFile(file.filesystem.open_input_file(file.path))
        start = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            for name in parquet.schema_arrow.names:
                try:
                    parquet.read_row_group(group, columns=[name])
                except (pa.ArrowException, OSError):
                    return f", column {name!r}, rows {start} to {start + rows - 1}"
            start += rows
    except (pa.ArrowException, OSError):
        pass
    return ""
