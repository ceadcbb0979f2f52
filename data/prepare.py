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

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from data import entities, faults, growth, splits, writer
from data.consumer import Repeated, Rules, is_random
from data.damage import READ_ERRORS, unreadable
from data.duckdb_engine import DuckDBEngine
from data.engines import Engine, Progress, boundaries
from data.events import Log
from data.files import File, unregister
from data.fingerprint import all_files, fingerprint, log_files
from data.folders import atomic_folder
from data.growth import Base
from data.numbering import Numbering
from data.settings import byte_size
from data.sides import write_sides
from data.spec import DatasetSpec
from data.task_files import write_task
from data.writer import FORMAT_VERSION, describe_files, write_json
from towers.errors import ConfigError
from towers.features import Encoders, Schema, open_encoder


def prepare(
    spec: DatasetSpec,
    target: Path,
    *,
    progress: Progress = lambda what, share: None,
    threads: int = 2,
    memory: int | str = "2GB",
    encoders: Encoders = open_encoder,
    whole: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Prepare a dataset, or add what is newer to it (``spec.incremental``; see ``data.growth``).

    Args:
        spec: the data config.
        target: folder to write; it appears only when it is complete, and until then the older one stays.
        progress: called with (what, share done).
        threads: of DuckDB.
        memory: bytes, or ``500MB``: two thirds of it are DuckDB's, which spills to disk beyond them; the rest is for
            the tables of users and items and for what is being written.
        encoders: what opens the encoder of a sentence by its name (``text_vectors.kept`` remembers its vectors).
        whole: prepare everything, also where newer files could be added.
        say: told why everything is prepared where newer files were to be added.

    Raises:
        DataError: the data are not what the config says, beyond the limits of ``faults``.
    """
    # before anything is read: a file that changes meanwhile makes the result outdated
    mark, files = fingerprint(spec), log_files(spec)
    with atomic_folder(target) as out, tempfile.TemporaryDirectory(prefix=".spill", dir=out.parent) as spill:
        limit = f"{byte_size(memory, 'memory') * 2 // 3}B"
        con = duckdb.connect(config={"threads": threads, "memory_limit": limit, "temp_directory": spill})
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
    write_sides(out, schema, sides, encoders, base)
    progress("writing tasks", 0.95)
    tasks = {n: t for n, t in spec.tasks if not (spec.refit and "valid" in t.targets)}
    for name, task in tasks.items():
        write_task(con, out, name, task, spec, log)
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
