"""Raw logs → prepared dataset: the plan of ``prepare.py``.

::

    log ──DuckDB: scan, join ids, sort by user──▶ stream of whole users
          ├─ faults set aside, duplicates dropped          rejected/
          ├─ split rule, order within the split            examples/BUCKET-GENERATION.parquet
          └─ history-eligible events                       history/BUCKET-GENERATION.parquet
    users, items ──vocabularies fitted on train──▶ encoded  users.parquet items.parquet vocab/
    tasks ──▶ candidate and exclusion rows                  tasks/
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data import entities
from data.events import Log
from data.sources import open_source, quote
from data.spec import DatasetSpec, TaskSpec
from data.stream import Progress, Stream
from data.writer import FORMAT_VERSION, atomic_folder, describe_files, write_json
from towers.errors import DataError
from towers.features import Featurizer, Schema
from towers.features import columns as c

KEYWORD_CANDIDATES = ("all", "trained", "live", "held_out")


def fingerprint(spec: DatasetSpec) -> str:
    """Hash of the config and of the sizes and times of the local files it names: equal means up to date."""
    files = [f for _, paths in spec.events.files for f in paths]
    for side in (spec.users, spec.items):
        files += [*side.files, *(f for _, long in side.lists for f in long.files)]
    files += [f for _, t in spec.tasks for f in (t.candidates, t.exclude) if isinstance(f, str)]
    stats = []
    for f in sorted(set(files)):
        path = Path(f) if Path(f).is_absolute() or not spec.source else Path(spec.source) / f
        found = (
            sorted(path.rglob("*"))
            if path.is_dir()
            else [path]
            if path.exists()
            else sorted(path.parent.glob(path.name))
        )
        stats += [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in found]
    text = json.dumps([FORMAT_VERSION, asdict(spec), stats], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def prepare(
    spec: DatasetSpec,
    target: Path,
    *,
    progress: Progress = lambda what, share: None,
    threads: int = 2,
    memory: str = "1500MB",
) -> Path:
    """Prepare a dataset.

    Args:
        spec: the data config.
        target: folder to write; it appears only when it is complete.
        progress: called with (what, share done).
        threads: of DuckDB.
        memory: DuckDB's limit; beyond it, it spills to disk.

    Raises:
        DataError: the data are not what the config says, beyond the limits of ``faults``.
    """
    with atomic_folder(target) as out:
        con = duckdb.connect(config={"threads": threads, "memory_limit": memory, "temp_directory": str(out / ".spill")})
        con.execute("SET TimeZone='UTC'; SET preserve_insertion_order=true")
        try:
            _prepare(con, spec, out, progress)
        except duckdb.Error as e:
            raise DataError(
                str(e).splitlines()[0], where="; ".join(f for _, fs in spec.events.files for f in fs),
                cure="repair or remove the file that the message names",
            ) from e  # fmt: skip
        finally:
            con.close()
    return target


def _prepare(con: duckdb.DuckDBPyConnection, spec: DatasetSpec, out: Path, progress: Progress) -> None:
    names = split_names(spec)
    progress("reading users and items", 0.0)
    log = Log(con, spec, names)
    zone = spec.events.time.timezone if spec.events.time else None
    users, items = (
        entities.read(con, side, spec.source, name, kind, spec.faults, zone)
        if side.files
        else entities.from_log(con, name)
        for name, side, kind in (("user", spec.users, log.user_type), ("item", spec.items, log.item_type))
    )
    _number(con, "user", users)
    _number(con, "item", items)
    progress("sorting the log", 0.1)
    stream = Stream(con, spec, log, users, items, out)
    stream.run(progress)
    counts, rejected = stream.check()

    progress("encoding features", 0.8)
    schema = _schema(spec, log)
    for side, ents, events in (("user", users, stream.user_events), ("item", items, stream.item_events)):
        _write_side(out, side, schema, ents, events)
    progress("writing tasks", 0.95)
    tasks = {n: t for n, t in spec.tasks if not (spec.refit and "valid" in t.targets)}
    for name, task in tasks.items():
        _write_task(con, out, name, task, spec, users.ids, items.ids)
    for path in (out / ".spill",):
        if path.exists():
            path.rmdir()
    write_json(
        out / "dataset.json",
        {
            "format_version": FORMAT_VERSION,
            "name": spec.name,
            "refit": spec.refit,
            "fingerprint": fingerprint(spec),
            "schema": schema.to_json(),
            "schema_hash": schema.hash,
            "splits": list(names),
            "split": {**asdict(spec.split), "boundaries_us": stream.bounds},
            "select": spec.select,
            "tasks": {n: asdict(t) for n, t in tasks.items()},
            "attributes": {"users": list(spec.users.attributes), "items": list(spec.items.attributes)},
            "counts": {"users": len(users.ids), "items": len(items.ids), **counts},
            "rejected": rejected,
            "time_us": [stream.first, stream.last] if spec.events.clock == "time" else None,
            "files": describe_files(out, {**stream.examples.files, **stream.history.files}),
        },
    )
    progress("done", 1.0)


def split_names(spec: DatasetSpec) -> tuple[str, ...]:
    """Names by code: train, valid, then every test split."""
    named = [n for n, _ in spec.events.files if n] or [t for _, task in spec.tasks for t in task.targets]
    tests = tuple(dict.fromkeys(n for n in named if n not in ("train", "valid")))
    return ("train", "valid", *(tests or ("test",)))


def _number(con: duckdb.DuckDBPyConnection, side: str, ents: entities.Entities) -> None:
    n = len(ents.ids)
    expires = ents.expires if ents.expires is not None else pa.nulls(n, pa.int64())
    con.register("_numbered", pa.table({side: ents.ids, "row": np.arange(n, dtype=np.int32), "expires": expires}))
    con.execute(f"CREATE OR REPLACE TEMP TABLE {side}_ids AS SELECT * FROM _numbered")
    con.unregister("_numbered")


def _schema(spec: DatasetSpec, log: Log) -> Schema:
    return Schema(
        users=spec.users.features,
        items=spec.items.features,
        actions=spec.actions,
        clock=spec.events.clock,
        user_id=log.user_type,
        item_id=log.item_type,
        history_length=spec.history_length,
    )


def _write_side(out: Path, side: str, schema: Schema, ents: entities.Entities, events: NDArray[np.int64]) -> None:
    """Fit on what training saw, encode, and write ``users.parquet`` or ``items.parquet``."""
    key = c.USER if side == "user" else c.ITEM
    features = schema.users if side == "user" else schema.items
    featurizer = Featurizer.fit(features, ents.table, events, key)
    featurizer.save(out / "vocab", side)
    columns: dict[str, Any] = {key: ents.ids, "events": events}
    when = pa.timestamp("us", "UTC")
    for name, value in ((c.POSTED, ents.posted), (c.EXPIRES, ents.expires)):
        if value is not None:
            columns[name] = value.cast(pa.timestamp("us")).cast(when)
    if ents.group is not None:
        columns[c.GROUP] = ents.group
    for name, encoded in featurizer.encode(ents.table, f"{side}s").items():
        flat = pa.array(encoded.reshape(-1))
        column = flat if encoded.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, encoded.shape[1])
        columns[c.FEATURE_PREFIX + name] = column
    # every raw column travels: attributes for filters and display, features for serving parity checks
    for name in ents.table.column_names:
        columns[c.ATTRIBUTE_PREFIX + name] = ents.table[name]
    pq.write_table(pa.table(columns), out / f"{side}s.parquet", compression="zstd")


def _write_task(
    con: duckdb.DuckDBPyConnection,
    out: Path,
    name: str,
    task: TaskSpec,
    spec: DatasetSpec,
    users: pa.Array,
    items: pa.Array,
) -> None:
    """Candidate and exclusion files of a task, as row numbers."""
    folder = out / "tasks"
    folder.mkdir(exist_ok=True)
    for what, path, sides in (
        ("candidates", task.candidates, ("item",)),
        ("exclude", task.exclude, ("user", "item")),
    ):
        if not isinstance(path, str) or (what == "candidates" and path in KEYWORD_CANDIDATES):
            continue
        s = open_source(con, [path], spec.source, {})
        s.require(sides, f"tasks.{name}.{what} (expected columns {list(sides)})")
        table = con.sql(f"SELECT DISTINCT {', '.join(map(quote, sides))} FROM {s.sql}").to_arrow_table()
        rows = {}
        for side, ids in (("user", users), ("item", items)):
            if side in sides:
                found = pc.index_in(table[side].cast(ids.type).combine_chunks(), value_set=ids)
                if found.null_count:
                    bad = table[side].filter(pc.is_null(found))[0].as_py()
                    raise DataError(
                        f"{found.null_count} {side}s that the dataset lacks, the first {bad!r}",
                        where=f"{path}, column {side!r}",
                        cure=f"correct tasks.{name}.{what}",
                    )
                rows[f"{side}_row"] = found.cast(pa.int64())
        pq.write_table(pa.table(rows).sort_by([(k, "ascending") for k in rows]), folder / f"{name}.{what}.parquet")


def is_current(spec: DatasetSpec, target: Path) -> bool:
    """Whether ``target`` holds this dataset, prepared from these files with this config."""
    try:
        return bool(json.loads((target / "dataset.json").read_text())["fingerprint"] == fingerprint(spec))
    except (OSError, ValueError, KeyError):
        return False
