"""Requests → query vectors: known ids or raw users, what they ask, and the user tower.

``Q`` requests, ``D`` dimensions.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.errors import ConfigError, DataError
from towers.features import columns as c
from towers.index.golden import User
from towers.index.opening import OpenBundle
from towers.index.requests import (
    Gathered,
    Ids,
    check_fields,
    encode_raw,
    history_inputs,
    moment,
    pad_histories,
    raw_events,
)

Users: TypeAlias = User | Sequence[User] | NDArray[Any] | pa.Array
When: TypeAlias = dt.datetime | str | int
Context: TypeAlias = Mapping[str, Any]
Contexts: TypeAlias = Context | Sequence[Context]


def many(users: Users) -> tuple[Sequence[User], bool]:
    """The users (or items) of a request as a list, and whether just one was asked for."""
    if isinstance(users, str | int | np.integer | Mapping):
        return [users if not isinstance(users, np.integer) else int(users)], True
    if isinstance(users, pa.Array | pa.ChunkedArray):
        return users.to_pylist(), False
    if isinstance(users, np.ndarray):
        return users.tolist(), False
    return list(users), False


def moment_of(bundle: OpenBundle, at: When | None) -> int:
    """Microseconds UTC of a request: now by default, or the end of the bundle's data (``"export"``).

    Raises:
        DataError: what is no time.
        ConfigError: ``"export"``, and the bundle does not know when its data end.
    """
    if at == "export":
        end = bundle.manifest["data"].get("end")
        if end is None and {c.POSTED, c.EXPIRES} & set(bundle.attributes.column_names):
            raise ConfigError("at='export', but the bundle does not know when its data end; pass a time")
        return int(end or 0)
    return moment(dt.datetime.now(dt.UTC) if at is None else at, "at")


def contexts(bundle: OpenBundle, users: Sequence[User], given: Contexts | None, *, one: bool) -> list[Context]:
    """``[Q]`` mappings that hold the context fields of each request.

    Raises:
        DataError: a context beside raw users, another number of contexts than of users, or an unknown field.
    """
    if users and isinstance(users[0], Mapping):
        if given is not None:
            raise DataError("a context beside raw users", where="request", cure="put it into their own fields")
        return [u if isinstance(u, Mapping) else {} for u in users]
    if given is None:
        return [{}] * len(users)
    each = [given] if isinstance(given, Mapping) else list(given)
    if len(each) != len(users) or one != isinstance(given, Mapping):
        raise DataError(f"{len(each)} contexts for {len(users)} users", where="request, context", cure="give one each")
    check_fields(each, bundle.context.columns, histories=False)
    return each


def user_rows(bundle: OpenBundle, users: Sequence[Any]) -> NDArray[np.int64]:
    """``[Q]`` rows of known users.

    Raises:
        DataError: an unknown id, or a bundle without users.
    """
    if bundle.user_ids is None:
        raise DataError("this bundle has no known users", where="request", cure="send raw features instead of ids")
    rows = bundle.user_ids.rows(users)
    if (rows < 0).any():
        absent = [users[i] for i in np.flatnonzero(rows < 0)[:5]]
        raise DataError(
            f"{int((rows < 0).sum())} unknown users, {absent} among them",
            where="request",
            cure="send raw features for users that were not exported",
        )
    return rows


def query_vectors(
    bundle: OpenBundle,
    users: Sequence[User],
    at: int,
    context: Sequence[Context],
    *,
    items: Ids | None = None,
    inputs_of: Gathered | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Run the user tower.

    Args:
        bundle: the tower, the featurizers, the known users.
        users: ids of known users, or raw users.
        at: moment of the request, microseconds UTC.
        context: ``[Q]`` context fields.
        items: what finds the items of a raw history; None: those of the bundle.
        inputs_of: ``[N, H]`` what items contribute to a history; None: as the bundle has it.

    Returns:
        ``[Q, D]`` vectors, and ``[Q]`` how many items of a raw history are not known.

    Raises:
        DataError: an unknown id, or a field that cannot be encoded; names it.
    """
    b = bundle
    unknown = np.zeros(len(users), np.int64)
    if not users:
        return np.zeros((0, b.manifest["dim"]), np.float32), unknown
    if isinstance(users[0], Mapping):
        raws: list[Any] = list(users)
        if not all(isinstance(u, Mapping) for u in raws):
            raise DataError("ids and raw users in one request", where="request", cure="send them separately")
        check_fields(raws, (*b.users.columns, *b.context.columns))
        inputs = encode_raw(b.users, raws, "user") | encode_raw(b.context, raws, "context")
        pairs = [raw_events(u, b.items if items is None else items, b.schema) for u in raws]
        events, unknown = [e for e, _ in pairs], np.asarray([n for _, n in pairs], np.int64)
    else:
        rows = user_rows(b, users)
        assert b.known is not None  # `user_rows` has refused ids otherwise
        inputs = {f"user.{name}": np.asarray(a[rows]) for name, a in b.known.features.items()}
        inputs |= encode_raw(b.context, context, "context")
        events = [b.known.events(int(r)) for r in rows]
    table = b.history_inputs if inputs_of is None else inputs_of
    if table is not None:
        inputs |= history_inputs(pad_histories(events, b.schema, at), table)
    vectors = np.asarray(b.user_tower.run(inputs)["embedding"], np.float32)
    if vectors.shape != (len(users), b.manifest["dim"]) or not np.isfinite(vectors).all():
        raise DataError(
            f"the user tower gave {list(vectors.shape)}, finite: {bool(np.isfinite(vectors).all())}",
            where="request",
            cure="check the numbers in the request",
        )
    return vectors, unknown
