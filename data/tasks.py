"""Task declarations → the arrays that an evaluation works on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.batches import Collator, QueryBatches
from data.histories import stage
from data.prepared import Examples, PreparedDataset
from data.spec import TaskSpec
from towers.errors import DataError
from towers.evaluation.task import Task
from towers.features import Ragged

Ints = NDArray[np.int64]


def build_task(data: PreparedDataset, name: str, *, history_length: int, batch_size: int = 1024) -> Task:
    """The queries, targets, candidates and exclusions of a task.

    A query by user sees the history up to its split; a query by event sees everything strictly earlier. Where the data
    have a context, what a user asks in different contexts are different queries.

    Raises:
        ConfigError: no such task.
        DataError: no target is left among the candidates.
    """
    spec = data.task(name)
    e = data.examples(*spec.targets)
    e = e.take(e.weight > 0)
    query, first = _queries(e, spec)
    candidates = _candidates(data, name, spec, e)
    reachable = np.isin(e.item, candidates)
    if not reachable.any():
        raise DataError(
            "no target is among the candidates", where=f"task {name!r} of {data.name}", cure="correct tasks.candidates"
        )
    # a query all of whose targets are unreachable stays, and counts as a miss
    queries = e.take(first)
    ends = queries.history_end
    if spec.unit == "user":
        before = min(stage(np.array([data.splits.index(t)], np.int8))[0] for t in spec.targets)
        ends = data.history.stage_ends[queries.user, before - 1] if before else data.history.offsets[queries.user]
    n = len(first)
    blank = replace(queries, item=np.full(n, -1, np.int32), weight=np.zeros(n, np.float32), history_end=ends)
    collate = Collator(data.history, data.schema.clock, history_length)
    posted, expires = data.item_times() if spec.candidates == "live" else (None, None)
    return Task(
        name=name,
        user=queries.user.astype(np.int64),
        batches=QueryBatches(blank, collate, batch_size),
        targets=_group_lists(query, e.item.astype(np.int64), n),
        candidates=candidates,
        exclude=_exclusions(data, name, spec, queries.user.astype(np.int64)),
        time=queries.time if data.schema.clock == "time" else None,
        posted=None if posted is None else posted[candidates],
        expires=None if expires is None else expires[candidates],
    )


def _queries(e: Examples, spec: TaskSpec) -> tuple[Ints, Ints]:
    """``[n]`` query number of each example, and ``[Q]`` the first example of each query (earliest in time)."""
    time = np.zeros(len(e), np.int64) if e.time is None else e.time
    asked = np.zeros(len(e), np.int32) if e.context is None else e.context
    keys: list[NDArray[Any]] = [e.user, time, asked] if spec.unit == "event" else [e.user, asked]
    order = np.lexsort((time, *keys[::-1]))
    new = np.ones(len(e), bool)
    new[1:] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    query = np.empty(len(e), np.int64)
    query[order] = np.cumsum(new) - 1
    return query, order[new]


def _group_lists(owner: Ints, values: Ints, n: int) -> Ragged:
    """``[n]`` lists of the distinct values of each owner, sorted."""
    pairs = np.unique(np.stack([owner, values], axis=1), axis=0)
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(pairs[:, 0], minlength=n), out=offsets[1:])
    return Ragged(offsets, pairs[:, 1])


def _candidates(data: PreparedDataset, name: str, spec: TaskSpec, targets: Examples) -> Ints:
    path = data.folder / "tasks" / f"{name}.candidates.parquet"
    if path.exists():
        return np.asarray(pq.read_table(path)["item_row"].to_numpy(), np.int64)
    if spec.candidates == "trained":
        return np.flatnonzero(data.events("item") > 0)
    if spec.candidates == "held_out":
        return np.unique(targets.item).astype(np.int64)
    return np.arange(len(data.items))


def _exclusions(data: PreparedDataset, name: str, spec: TaskSpec, users: Ints) -> Ragged:
    """``[Q]`` lists of item rows that a query's user must not be shown."""
    path = data.folder / "tasks" / f"{name}.exclude.parquet"
    if path.exists():
        table = pq.read_table(path)
        user, item = table["user_row"].to_numpy(), table["item_row"].to_numpy()
    elif isinstance(spec.exclude, tuple) and spec.exclude:
        known = tuple(s for s in spec.exclude if s in data.splits)
        e = data.examples(*known)
        seen = e.weight > 0
        user, item = e.user[seen].astype(np.int64), e.item[seen].astype(np.int64)
    else:
        return Ragged(np.zeros(len(users) + 1, np.int64), np.zeros(0, np.int64))
    if spec.exclude_groups and "group" in data.items.column_names:
        user, item = _with_groups(user, item, data.items["group"].to_numpy())
    lists = _group_lists(np.asarray(user, np.int64), np.asarray(item, np.int64), len(data.users))
    lengths = np.diff(lists.offsets)[users]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    index = np.arange(offsets[-1]) + np.repeat(lists.offsets[users] - offsets[:-1], lengths)
    return Ragged(offsets, lists.values[index])


def _with_groups(user: Ints, item: Ints, group: Ints) -> tuple[Ints, Ints]:
    """Every (user, item) pair, widened to all items of the item's group."""
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    starts = np.cumsum(counts) - counts
    sizes = counts[group[item]]
    at = np.repeat(starts[group[item]], sizes)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(user, sizes), order[at + within]
