"""Task declarations → the arrays that an evaluation works on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.blocks import TaskSpec
from data.examples import Examples
from data.histories import stage
from data.prepared import PreparedDataset
from data.queries import query_batches
from towers.errors import DataError
from towers.evaluation.task import Task
from towers.features import Ragged
from towers.features import columns as c

Ints = NDArray[np.int64]


def build_task(
    data: PreparedDataset, name: str, *, history_length: int, batch_size: int = 1024, window: int | None = None
) -> Task:
    """The queries, targets, candidates and exclusions of a task.

    A query by user sees the history up to its split; a query by event sees everything strictly earlier. Where the data
    have a context, what a user asks in different contexts are different queries. Where items ask for users, a user is
    as she was at the moment of the first target of all, with her history up to the split, and asks nothing.

    Args:
        data: the prepared dataset.
        name: of the task.
        history_length: the newest events of a history that a query holds.
        batch_size: queries in a batch.
        window: bytes of histories held at once; None: the whole log's. Targets, and what these users are not to be
            given, are in memory in any case.

    Raises:
        ConfigError: no such task.
        DataError: no target is left among the candidates.
    """
    spec = data.task(name)
    e = data.examples(*spec.targets)
    e = e.take(e.weight > 0)
    candidates = _candidates(data, name, spec, e)
    found, asking = (e.user, e.item) if spec.retrieve == "users" else (e.item, e.user)
    if not np.isin(found, candidates).any():
        raise DataError(
            "no target is among the candidates", where=f"task {name!r} of {data.name}", cure="correct tasks.candidates"
        )
    # a query all of whose targets are unreachable stays, and counts as a miss
    if spec.retrieve == "users":
        asked, query = np.unique(asking, return_inverse=True)
        users, time = _at_once(data, spec, candidates, e), None
    else:
        query, first = _queries(e, spec)
        users, asked = e.take(first), asking[first]
        time = users.time if data.schema.clock == "time" else None
        if spec.unit == "user":
            users = replace(users, history_end=_ends(data, spec, users.user))
    n = len(users)
    blank = replace(users, item=np.full(n, -1, np.int32), weight=np.zeros(n, np.float32))
    posted, expires = data.item_times() if spec.candidates == "live" else (None, None)
    return Task(
        name=name,
        query=asked.astype(np.int64),
        batches=query_batches(data, blank, history_length, batch_size, window),
        targets=_group_lists(query, found.astype(np.int64), len(asked)),
        candidates=candidates,
        exclude=_exclusions(data, name, spec, asked.astype(np.int64)),
        time=time,
        posted=None if posted is None else posted[candidates],
        expires=None if expires is None else expires[candidates],
        retrieve=spec.retrieve,
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


def _at_once(data: PreparedDataset, spec: TaskSpec, users: Ints, targets: Examples) -> Examples:
    """Users as they were at the moment of the earliest target, whatever they did later."""
    at = None if targets.time is None else int(targets.time.min())
    nothing = np.zeros(len(users), np.int32) if data.schema.context else None
    return Examples.queries(users, _ends(data, spec, users), at, nothing)


def _ends(data: PreparedDataset, spec: TaskSpec, users: NDArray[Any]) -> Ints:
    """Where the histories of users end that hold what came before the splits of the targets."""
    before = min(stage(np.array([data.splits.index(t)], np.int8))[0] for t in spec.targets)
    offsets, stage_ends = data.history_bounds
    ends: Ints = stage_ends[users, before - 1] if before else offsets[users]
    return ends


def _group_lists(owner: Ints, values: Ints, n: int) -> Ragged:
    """``[n]`` lists of the distinct values of each owner, sorted."""
    many = int(values.max(initial=0)) + 1
    owners, found = np.divmod(np.unique(owner * many + values), many)
    return Ragged(np.searchsorted(owners, np.arange(n + 1)), found)


def _candidates(data: PreparedDataset, name: str, spec: TaskSpec, targets: Examples) -> Ints:
    """``[N]`` sorted rows of the side that is retrieved."""
    path = data.folder / "tasks" / f"{name}.candidates.parquet"
    side = spec.retrieve.removesuffix("s")
    if path.exists():
        return np.asarray(pq.read_table(path)[f"{side}_row"].to_numpy(), np.int64)
    if spec.candidates == "trained":
        return np.flatnonzero(data.events(side) > 0)
    if spec.candidates == "held_out":
        return np.unique(targets.user if side == "user" else targets.item).astype(np.int64)
    return np.arange(len(data.side(side)))


def _exclusions(data: PreparedDataset, name: str, spec: TaskSpec, asked: Ints) -> Ragged:
    """``[Q]`` lists of rows that a query must not be given: what the user took, or who took the item."""
    path = data.folder / "tasks" / f"{name}.exclude.parquet"
    if path.exists():
        table = pq.read_table(path)
        user, item = table[c.USER_ROW].to_numpy(), table[c.ITEM_ROW].to_numpy()
    elif isinstance(spec.exclude, tuple) and spec.exclude:
        known = tuple(s for s in spec.exclude if s in data.splits)
        users, items = _asked(data, spec, asked)
        user, item = data.positives(known, users=users, items=items)
    else:
        return Ragged.empty(len(asked))
    if spec.exclude_groups and c.GROUP in data.items.column_names:
        user, item = _with_groups(user, item, data.items[c.GROUP].to_numpy())
    owner, value, owners = (user, item, len(data.users)) if spec.retrieve == "items" else (item, user, len(data.items))
    return _group_lists(np.asarray(owner, np.int64), np.asarray(value, np.int64), owners).take(asked)


def _asked(
    data: PreparedDataset, spec: TaskSpec, asked: Ints
) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
    """The users, or the items, whose events exclude anything from these queries: the others' need not be held."""
    mask = np.zeros(len(data.users if spec.retrieve == "items" else data.items), bool)
    mask[asked] = True
    if spec.retrieve == "items":
        return mask, None
    if spec.exclude_groups and (group := data.groups) is not None:
        mask = np.isin(group, group[asked])
    return None, mask


def _with_groups(user: Ints, item: Ints, group: Ints) -> tuple[Ints, Ints]:
    """Every (user, item) pair, widened to all items of the item's group."""
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    starts = np.cumsum(counts) - counts
    sizes = counts[group[item]]
    at = np.repeat(starts[group[item]], sizes)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(user, sizes), order[at + within]
