"""Raw logs → prepared dataset: the plan of ``prepare.py``.

::

    log ──engine (DuckDB or Spark): scan, join ids, sort by user──▶ whole users
          ├─ faults set aside, duplicates dropped          rejected/
          ├─ split rule, order within the split            examples/BUCKET-GENERATION.parquet
          └─ history-eligible events                       history/BUCKET-GENERATION.parquet
    users, items, contexts ──vocabularies fitted on train──▶ encoded  {users,items,contexts}.parquet vocab/
    tasks ──▶ candidate and exclusion rows                  tasks/
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data import entities, faults, growth, splits, writer
from data.blocks import CANDIDATES, TaskSpec
from data.consumer import Repeated, Rules, is_random
from data.duckdb_engine import DuckDBEngine
from data.engines import Engine, Progress, boundaries
from data.events import Log
from data.files import File, resolve, unregister
from data.growth import Base
from data.numbering import Numbering
from data.sources import READ_ERRORS, open_source, unreadable
from data.spec import DatasetSpec
from data.values import id_sql, id_type
from data.writer import FORMAT_VERSION, atomic_folder, describe_files, write_json
from towers.errors import ConfigError, DataError
from towers.features import Encoders, Featurizer, Schema, open_encoder, share_vocabularies
from towers.features import columns as c


def log_files(spec: DatasetSpec) -> tuple[File, ...]:
    """The files of the log."""
    return resolve([f for _, paths in spec.events.files for f in paths], spec.source)


def all_files(spec: DatasetSpec) -> tuple[File, ...]:
    """Every file that a config names.

    Raises:
        DataError: one of them is not there.
    """
    paths = [f for side in (spec.users, spec.items) for f in side.files]
    paths += [f for side in (spec.users, spec.items) for _, long in side.lists for f in long.files]
    paths += [t.exclude for _, t in spec.tasks if isinstance(t.exclude, str)]
    paths += [t.candidates for _, t in spec.tasks if t.candidates not in CANDIDATES]
    return log_files(spec) + resolve(paths, spec.source)


def fingerprint(spec: DatasetSpec) -> str:
    """Hash of the config and of the sizes and times of the files it names: equal means up to date."""
    stats = [(f.shown, f.size, f.changed_ns) for f in all_files(spec)]
    text = json.dumps([FORMAT_VERSION, spec.content(), stats], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def prepare(
    spec: DatasetSpec,
    target: Path,
    *,
    progress: Progress = lambda what, share: None,
    threads: int = 2,
    memory: str = "1500MB",
    encoders: Encoders = open_encoder,
    whole: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Prepare a dataset, or add what is newer to it (``spec.incremental``; see ``data.growth``).

    Args:
        spec: the data config.
        target: folder to write; it appears only when it is complete.
        progress: called with (what, share done).
        threads: of DuckDB.
        memory: DuckDB's limit; beyond it, it spills to disk.
        encoders: what opens the encoder of a sentence by its name (``text_vectors.kept`` remembers its vectors).
        whole: prepare everything, also where newer files could be added.
        say: told why everything is prepared where newer files were to be added.

    Raises:
        DataError: the data are not what the config says, beyond the limits of ``faults``.
    """
    # before anything is read: a file that changes meanwhile makes the result outdated
    mark, files = fingerprint(spec), log_files(spec)
    with atomic_folder(target) as out, tempfile.TemporaryDirectory(prefix=".spill", dir=out.parent) as spill:
        con = duckdb.connect(config={"threads": threads, "memory_limit": memory, "temp_directory": spill})
        con.execute("SET TimeZone='UTC'; SET preserve_insertion_order=true")
        try:
            log = Log(con, spec, spec.split_names)
            add = spec.incremental and not whole
            base = growth.base(con, spec, target, files, log, say) if add else None
            log = log if base is None else base.log
            with _engine(con, spec, log, Path(spill), base) as engine:
                _prepare(con, spec, log, engine, out, mark, files, progress, encoders, base)
        except duckdb.OutOfMemoryException as e:
            raise ConfigError(f"{memory} of memory do not suffice to prepare {spec.name}; set memory to more") from e
        except READ_ERRORS as e:
            raise unreadable(e, all_files(spec)) from e
        finally:
            unregister(con)
            con.close()
    return target


@contextmanager
def _engine(
    con: duckdb.DuckDBPyConnection, spec: DatasetSpec, log: Log, work: Path, base: Base | None
) -> Iterator[Engine]:
    if spec.engine == "spark":
        from data.spark_engine import spark_engine  # PySpark is an extra

        with spark_engine(con, log, work) as engine:
            yield engine
    else:
        yield DuckDBEngine(con, log, numbered_before=base is not None)


def _prepare(
    con: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    log: Log,
    engine: Engine,
    out: Path,
    mark: str,
    raw: Sequence[File],
    progress: Progress,
    encoders: Encoders,
    base: Base | None,
) -> None:
    progress("reading users and items", 0.0)
    users = engine.numbering or _side(con, "user", spec, log, engine, base)
    items = _side(con, "item", spec, log, engine, base)
    requests = engine.contexts() if spec.context.features else None
    progress("sorting the log", 0.1)
    generation = base.generation if base else 0
    rejected = "rejected" if base is None else f"rejected/{generation:05d}"
    repeated = Repeated(
        spec, out, lambda rows: users.ids.take(pa.array(rows)), lambda rows: items.ids.take(pa.array(rows)), rejected
    )
    bounds = base.bounds if base else boundaries(spec, engine)
    rules = _rules(con, spec, bounds, items, 0 if requests is None else len(requests.ids))
    if base is not None:
        rules = replace(rules, generation=generation, older=base.older_events(len(users.ids)))
    found = engine.run(rules, users, out, repeated, progress)
    repeated.parts.close()
    tally, parts = found.tally, dict(found.files)

    def where(fault: str) -> str:
        if fault != "duplicate":
            return engine.reject(fault, out / rejected)
        assert repeated.first is not None
        return engine.where_repeated(*repeated.first)

    if base is None or tally.rows:  # the newest file may have nothing to say
        faults.check(spec, tally, log.shown, where)
    kept: dict[str, dict[str, Any]] = {}
    if base is not None:
        kept = base.keep_parts(out)
        parts = {name: f["rows"] for name, f in kept.items() if not name.startswith("rejected/")} | parts
        tally = base.counted(tally, out, [n for n in parts if n.startswith("examples/")], len(users.ids), spec.refit)
    faults.check_splits(spec, tally.positives)
    if isinstance(users, Numbering):
        users = entities.only_ids("user", users.ids)
        _number(con, "user", users)
    for side in (users, items):
        tally.faults.update(side.counts or {})

    progress("encoding features", 0.8)
    schema = _schema(spec, log)
    sides = {"item": (items, tally.item_events), "user": (users, tally.of_users(len(users.ids)))}
    if requests is not None:
        sides["context"] = requests, tally.context_events
    _write_sides(out, schema, sides, encoders, base)
    progress("writing tasks", 0.95)
    tasks = {n: t for n, t in spec.tasks if not (spec.refit and "valid" in t.targets)}
    for name, task in tasks.items():
        _write_task(con, out, name, task, spec, log)
    examples = sum(n for name, n in parts.items() if name.startswith("examples/"))
    write_json(
        out / "dataset.json",
        {
            "format_version": FORMAT_VERSION,
            "name": spec.name,
            "refit": spec.refit,
            "fingerprint": mark,
            "generations": generation + 1,
            "log": growth.described(spec, raw),
            "schema": schema.to_json(),
            "schema_hash": schema.hash,
            "splits": list(log.splits),
            "split": {**asdict(spec.split), "boundaries_us": rules.bounds},
            "select": spec.select,
            "tasks": {n: asdict(t) for n, t in tasks.items()},
            "attributes": {"users": list(spec.users.attributes), "items": list(spec.items.attributes)},
            "counts": {
                "users": len(users.ids),
                "items": len(items.ids),
                "log_rows": tally.rows,
                "examples": examples,
                "history": sum(parts.values()) - examples,
                "positives": {name: tally.positives[name] for name in log.splits},
            }
            | ({} if requests is None else {"contexts": len(requests.ids)}),
            "rejected": {name: n for name, n in sorted(tally.faults.items()) if n},
            "time_us": [tally.first, tally.last] if spec.events.clock == "time" else None,
            "files": describe_files(out, {**found.files, **repeated.parts.files}, kept),
        },
    )
    progress("done", 1.0)


def _rules(
    con: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    bounds: tuple[int, int] | None,
    items: entities.Entities,
    contexts: int,
) -> Rules:
    families = items.ids if items.family is None else items.family
    return Rules(
        spec=spec,
        splits=spec.split_names,
        group=np.arange(len(items.ids)) if items.group is None else items.group.to_numpy(),
        family_hashes=splits.id_hashes(con, families) if is_random(spec) else None,
        contexts=contexts,
        bounds=bounds,
        users_per_bucket=writer.USERS_PER_BUCKET,
    )


def _side(
    con: duckdb.DuckDBPyConnection, side: str, spec: DatasetSpec, log: Log, engine: Engine, base: Base | None
) -> entities.Entities:
    """A side's table, or the ids of the log; also as the table ``SIDE_ids``."""
    block, kind = (spec.users, log.user_type) if side == "user" else (spec.items, log.item_type)
    if block.files:
        ents = entities.read(con, block, spec.source, side, kind, spec.faults, spec.events.time)
    else:
        ents = entities.only_ids(side, engine.ids(side))
    if base is not None:
        ents = base.grown(side, ents)
    _number(con, side, ents)
    return ents


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
        context=spec.context.features,
        actions=spec.actions,
        clock=spec.events.clock,
        user_id=log.user_type,
        item_id=log.item_type,
        history_length=spec.history_length,
    )


def _write_sides(
    out: Path,
    schema: Schema,
    sides: Mapping[str, tuple[entities.Entities, NDArray[np.int64]]],
    encoders: Encoders,
    base: Base | None,
) -> None:
    """Fit each side on what training saw; features that share a vocabulary are fitted together."""
    keys = {"user": (schema.users, c.USER), "item": (schema.items, c.ITEM), "context": (schema.context, c.CONTEXT_ROW)}
    fitted = {}
    for side, (ents, events) in sides.items():
        features, key = keys[side]
        fitted[side] = Featurizer.fit(features, ents.table, events, key, encoders)
    share_vocabularies(fitted["item"], [f for side, f in fitted.items() if side != "item"])
    if base is not None:
        for side in fitted:  # items come first
            older, items = base.data.featurizer(side), fitted["item"] if side != "item" else None
            fitted[side] = fitted[side].continuing(older, items)
    for side, (ents, events) in sides.items():
        _write_side(out, side, keys[side][1], fitted[side], ents, events)


def _write_side(
    out: Path, side: str, key: str, featurizer: Featurizer, ents: entities.Entities, events: NDArray[np.int64]
) -> None:
    """Encode, and write ``users.parquet``, ``items.parquet`` or ``contexts.parquet``."""
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
    con: duckdb.DuckDBPyConnection, out: Path, name: str, task: TaskSpec, spec: DatasetSpec, log: Log
) -> None:
    """Candidate and exclusion files of a task, as row numbers."""
    (out / "tasks").mkdir(exist_ok=True)
    for what, path, sides in (
        ("candidates", task.candidates, (c.USER if task.retrieve == "users" else c.ITEM,)),
        ("exclude", task.exclude, (c.USER, c.ITEM)),
    ):
        if isinstance(path, str) and path not in CANDIDATES:
            rows = _rows_of(con, path, sides, spec, log, f"tasks.{name}.{what}")
            pq.write_table(rows, out / "tasks" / f"{name}.{what}.parquet")


def _rows_of(
    con: duckdb.DuckDBPyConnection, path: str, sides: tuple[str, ...], spec: DatasetSpec, log: Log, setting: str
) -> pa.Table:
    """The distinct rows of a file of ids, as sorted row numbers; columns are named as in the log, or user and item."""
    s = open_source(con, [path], spec.source)
    kinds = {c.USER: log.user_type, c.ITEM: log.item_type}
    named = {c.USER: spec.events.user, c.ITEM: spec.events.item}
    columns = {side: named[side] if named[side] in s.columns else side for side in sides}
    s.require(list(columns.values()), f"{setting} (expected columns {[named[side] for side in sides]})")
    for side, column in columns.items():
        text = "string" if s.text and kinds[side] == "string" else None
        if (own := id_type(con, s, column, text) or kinds[side]) != kinds[side]:
            raise DataError(
                f"{side} ids are {own} here and {kinds[side]} in the log",
                where=f"{s.shown}, column {column!r}",
                cure=f"write one type in the file of {setting}",
            )
        known = f"{id_sql(column, kinds[side])} IN (SELECT {side}_ids.{side} FROM {side}_ids)"
        unknown = f"({known}) IS NOT TRUE"
        n = con.execute(f"SELECT count(*) FROM {s.sql} WHERE {unknown}").fetchall()[0][0]
        if n:
            where, value = s.locate(con, unknown, column)
            raise DataError(
                f"{n} {side}s that the dataset lacks, the first {value!r}", where=where, cure=f"correct {setting}"
            )
    ids = ", ".join(f"{id_sql(column, kinds[side])} AS {side}" for side, column in columns.items())
    joins = " ".join(f"JOIN {side}_ids ON {side}_ids.{side} = t.{side}" for side in sides)
    rows = ", ".join(f"{side}_ids.row::BIGINT AS {side}_row" for side in sides)
    return con.sql(f"SELECT DISTINCT {rows} FROM (SELECT {ids} FROM {s.sql}) t {joins} ORDER BY ALL").to_arrow_table()


def is_current(spec: DatasetSpec, target: Path) -> bool:
    """Whether ``target`` holds this dataset, prepared from these files with this config."""
    try:
        return bool(json.loads((target / "dataset.json").read_text())["fingerprint"] == fingerprint(spec))
    except (OSError, ValueError, KeyError, DataError):
        return False
