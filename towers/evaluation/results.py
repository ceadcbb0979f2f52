"""What an evaluation found, in memory and on disk.

Shapes: ``Q`` queries, ``P`` queries of a part, ``K`` places.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.evaluation.intervals import Interval, bootstrap
from towers.evaluation.ranking import Ranking
from towers.evaluation.task import Task
from towers.features import columns as c

DEPTH = 100  # places kept for every query, and written to predictions.parquet
_QUERIES = 10_000  # of a row group: what is held as external ids at once


@dataclass(frozen=True)
class Scores:
    """Metrics of all queries, or of a part of them.

    Attributes:
        queries: ``[P]`` which queries, ascending.
        targets: number of their targets that count.
        per_query: metric → ``[P]`` values.
        totals: metrics that no single query has (coverage).
        users: ``[P]`` user rows where some users have several queries, else None.
    """

    queries: NDArray[np.int64]
    targets: int
    per_query: dict[str, NDArray[np.float64]]
    totals: dict[str, float]
    users: NDArray[np.int64] | None = None

    @cached_property
    def values(self) -> dict[str, float]:
        """Metric → mean over queries, or total."""
        return {name: float(x.mean()) for name, x in self.per_query.items()} | self.totals

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Metric → mean and 95 % bootstrap bounds; worked out when first asked for."""
        if not self.per_query:
            return {}
        found = bootstrap(np.stack(list(self.per_query.values()), axis=1), self.users)
        return dict(zip(self.per_query, found, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Counts, and metric → value with bounds where it has any."""
        bounds = {name: {"low": i.low, "high": i.high} for name, i in self.intervals.items()}
        values = {name: {"value": value} | bounds.get(name, {}) for name, value in self.values.items()}
        return {"queries": len(self.queries), "targets": self.targets, "metrics": values}


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one task.

    Attributes:
        task: what was asked.
        ranking: what was answered; at least ``DEPTH`` places.
        scores: metrics over all queries.
        slices: slice → part → metrics, without the parts that are empty.
        ks: the cut-offs.
        seconds: for embedding queries on the fly, ranking and measuring.
    """

    task: Task
    ranking: Ranking
    scores: Scores
    slices: dict[str, dict[str, Scores]]
    ks: tuple[int, ...]
    seconds: float

    @property
    def values(self) -> dict[str, float]:
        """Metric → value over all queries."""
        return self.scores.values

    @property
    def intervals(self) -> dict[str, Interval]:
        """Metric → value and bounds over all queries."""
        return self.scores.intervals

    @property
    def per_query(self) -> dict[str, NDArray[np.float64]]:
        """Metric → ``[Q]`` values, for paired comparisons."""
        return self.scores.per_query

    def flat(self, prefix: str | None = None) -> dict[str, float]:
        """``{"test/recall@20": 0.134, …}`` for loggers; the prefix is the task's name by default."""
        prefix = self.task.name if prefix is None else prefix
        return {f"{prefix}/{name}" if prefix else name: value for name, value in self.values.items()}

    def to_json(self) -> dict[str, Any]:
        """All but the arrays."""
        slices = {name: {label: s.to_json() for label, s in parts.items()} for name, parts in self.slices.items()}
        head = {"task": self.task.name, "candidates": len(self.task.candidates), "seconds": round(self.seconds, 3)}
        return head | self.scores.to_json() | {"slices": slices}

    def save(
        self, folder: Path, query_ids: pa.Array, answer_ids: pa.Array, extra: Mapping[str, Any] | None = None
    ) -> None:
        """Write ``metrics.json``, ``predictions.parquet`` and ``per_query.parquet``, each whole or not at all.

        ``predictions.parquet`` has the columns ``user``, ``rank`` (from 1), ``item`` and ``score`` (``item``, ``rank``,
        ``user`` and ``score`` where users are retrieved): the top 100 of every query. Where users have several queries,
        a column tells them apart: ``time``, or ``query`` (a running number) where the task has no clock.

        Args:
            folder: made if absent.
            query_ids: ``[Q]`` external ids of the queries.
            answer_ids: external ids of what is retrieved, by row.
            extra: more facts for ``metrics.json``, such as whether the run was refitted.

        Raises:
            ValueError: ids of the wrong number, or ``extra`` says something that is measured here.
        """
        facts = self.to_json()
        if both := facts.keys() & (extra or {}).keys():
            raise ValueError(f"extra repeats {sorted(both)}")
        if len(query_ids) != len(self.task):
            raise ValueError(f"{len(query_ids)} ids for {len(self.task)} queries")
        folder.mkdir(parents=True, exist_ok=True)
        keys = self._keys(query_ids)
        found = c.ITEM if self.task.retrieve == "items" else c.USER
        with replacing(folder / "predictions.parquet") as path:
            _write_predictions(path, keys, self.ranking, found, answer_ids)
        with replacing(folder / "per_query.parquet") as path:
            counts = np.diff(self.task.targets.offsets)
            pq.write_table(pa.table({**keys, "targets": counts, **self.per_query}), path)
        with replacing(folder / "metrics.json") as path:  # the last: where it is, the others are
            path.write_text(json.dumps(facts | dict(extra or {}), indent=1, allow_nan=False) + "\n")

    def _keys(self, ids: pa.Array) -> dict[str, pa.Array]:
        """Columns of ``[Q]`` rows that tell queries apart."""
        who = {c.USER if self.task.retrieve == "items" else c.ITEM: ids}
        if self.scores.users is None:
            return who
        if self.task.time is None:
            return {**who, "query": pa.array(np.arange(len(self.task)))}
        return {**who, c.TIME: pa.array(self.task.time).cast(pa.timestamp("us", tz="UTC"))}


def _write_predictions(path: Path, keys: Mapping[str, pa.Array], ranking: Ranking, found: str, ids: pa.Array) -> None:
    types = {c.RANK: pa.int32(), found: ids.type, c.SCORE: pa.float32()}
    schema = pa.schema({**{name: column.type for name, column in keys.items()}, **types})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(ranking.items), _QUERIES):
            rows = ranking.items[start : start + _QUERIES, :DEPTH]
            query, place = np.nonzero(rows >= 0)
            columns = [column.take(pa.array(query + start)) for column in keys.values()]
            columns.append(pa.array(place + 1, pa.int32()))
            columns.append(ids.take(pa.array(rows[query, place])))
            columns.append(pa.array(ranking.scores[start : start + _QUERIES, :DEPTH][query, place]))
            writer.write_table(pa.table(columns, schema=schema))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to ``path`` once that has worked."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
