"""Users of a request → inputs of the user tower.

``B`` users, ``L`` history length, ``H`` width of a history input. A user is either a known id, whose
features and history travel in the bundle, or a mapping of raw fields.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.errors import ConfigError, DataError
from towers.features import Featurizer, Ragged, Schema

HISTORY, ACTIONS, TIMES = "history", "history_actions", "history_times"  # reserved fields of a raw user
_HOUR = 3_600_000_000  # microseconds
_EPOCH, _MICROSECOND = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.timedelta(microseconds=1)


class Ids(Protocol):
    """What finds rows by external ids."""

    def rows(self, external: Iterable[Any]) -> NDArray[np.int64]:
        """Rows of external ids, ``-1`` for the unknown."""
        ...


class Gathered(Protocol):
    """What rows of vectors can be gathered from: an array, or several that read like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, H)``."""
        ...

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """``[R, H]`` of ``[R]`` rows."""
        ...


class History(NamedTuple):
    """Padded histories, the newest event first.

    Attributes:
        rows: ``[B, L]`` int64 item rows, ``-1`` where there is no event.
        action: ``[B, L]`` int64, 0 where there is no event.
        age: ``[B, L]`` float32, log1p of hours.
    """

    rows: NDArray[np.int64]
    action: NDArray[np.int64]
    age: NDArray[np.float32]


class Events(NamedTuple):
    """One user's events, the oldest first.

    Attributes:
        items: ``[n]`` int64 item rows.
        actions: ``[n]`` int64 codes.
        times: ``[n]`` int64 microseconds UTC, or None.
    """

    items: NDArray[np.int64]
    actions: NDArray[np.int64]
    times: NDArray[np.int64] | None


@dataclass(frozen=True)
class KnownUsers:
    """Users that travel in a bundle.

    Attributes:
        ids: ``[U]`` int64 or string.
        features: ``[U]`` or ``[U, W]`` encoded user features by name.
        histories: ``[U]`` lists of item rows of the bundle, the oldest event first.
        actions: ``[total]`` action codes of those events.
        times: ``[total]`` microseconds UTC of those events, or None where the log has no clock.
        exclusions: ``[U]`` lists of item rows that are never recommended to the user.
        embeddings: ``[U, D]`` float32 as the trained model gives them at the end of the data, for matching items with
            users; None: they cannot be matched.
        attributes: ``[U]`` raw columns to filter them by and to show, or None.
    """

    ids: pa.Array
    features: Mapping[str, NDArray[Any]]
    histories: Ragged
    actions: NDArray[np.int64]
    times: NDArray[np.int64] | None
    exclusions: Ragged
    embeddings: NDArray[np.float32] | None = None
    attributes: pa.Table | None = None

    def events(self, row: int) -> Events:
        """The events of a user."""
        part = slice(int(self.histories.offsets[row]), int(self.histories.offsets[row + 1]))
        times = None if self.times is None else np.asarray(self.times[part], np.int64)
        return Events(
            np.asarray(self.histories.values[part], np.int64), np.asarray(self.actions[part], np.int64), times
        )


def moment(value: dt.datetime | str | int, what: str) -> int:
    """Microseconds UTC of an aware datetime, an ISO 8601 text with an offset, or such a number.

    Raises:
        DataError: a naive time, or what is no time.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    try:
        when = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(when, dt.datetime) or when.tzinfo is None:
            raise ValueError("it has no time zone, or is no moment")
        return (when - _EPOCH) // _MICROSECOND
    except (ValueError, AttributeError, TypeError) as e:
        raise DataError(
            f"{value!r} is not a time: {e}",
            where=what,
            cure="pass an aware datetime, ISO 8601 with an offset, or microseconds since 1970 UTC",
        ) from e


def encode_raw(featurizer: Featurizer, users: Sequence[Mapping[str, Any]], side: str) -> dict[str, NDArray[Any]]:
    """``SIDE.NAME`` → encoded arrays (``[n]`` or ``[n, width]``) of ``n`` raw users; absent fields count as missing.

    Raises:
        DataError: names the field that cannot be encoded.
    """
    return {f"{side}.{name}": array for name, array in featurizer.encode_rows(users).items()}


def check_fields(users: Sequence[Mapping[str, Any]], known: Sequence[str], *, histories: bool = True) -> None:
    """Refuse fields that no feature reads: a misspelt field would silently count as missing.

    Raises:
        DataError: naming the unknown fields and the known ones.
    """
    allowed = {*known, *((HISTORY, ACTIONS, TIMES) if histories else ())}
    for user in users:
        if unknown := sorted(map(str, set(user) - allowed)):
            raise DataError(
                f"unknown fields {unknown}; known are {sorted(allowed)}", where="request", cure="correct the names"
            )


def raw_events(user: Mapping[str, Any], items: Ids, schema: Schema) -> tuple[Events, int]:
    """The events of a raw user, and how many of its items the catalogue does not have.

    Raises:
        DataError: an unknown action, a list of another length, or ids or times of the wrong type.
    """
    given = list(_sequence(user, HISTORY))
    rows = items.rows(given)
    codes = {a.name: i for i, a in enumerate(schema.actions) if a.history}
    names = _sequence(user, ACTIONS, len(given))
    if unknown := sorted({str(a) for a in names} - set(codes)):
        raise DataError(
            f"actions {unknown}; histories of this bundle hold {sorted(codes)}", where=f"request, field {ACTIONS!r}"
        )
    default = next(iter(codes.values()), 0)
    actions = np.asarray([codes[a] for a in names] if len(names) else [default] * len(given), np.int64)
    stamps = _sequence(user, TIMES, len(given))
    times = np.asarray([moment(t, f"request, field {TIMES!r}") for t in stamps], np.int64) if len(stamps) else None
    kept = rows >= 0
    if times is not None:
        order = np.argsort(times, kind="stable")
        rows, actions, times, kept = rows[order], actions[order], times[order], kept[order]
    events = Events(rows[kept], actions[kept], None if times is None else times[kept])
    return events, int(len(given) - kept.sum())


def pad_histories(users: Sequence[Events], schema: Schema, at: int) -> History:
    """The newest ``schema.history_length`` events of each user up to the moment ``at``, the newest first.

    An event without a time counts as just happened.
    """
    timed = schema.clock == "time"
    cut = []
    for e in users:
        if timed and e.times is not None:
            e = Events(*(a[e.times <= at] for a in (e.items, e.actions, e.times)))
        cut.append(Events(*(None if a is None else a[::-1][: schema.history_length] for a in e)))  # type: ignore[arg-type]
    length = max(1, max((len(e.items) for e in cut), default=0))
    rows = np.full((len(cut), length), -1, np.int64)
    action = np.zeros((len(cut), length), np.int64)
    age = np.zeros((len(cut), length), np.float32)
    for i, e in enumerate(cut):
        n = len(e.items)
        rows[i, :n], action[i, :n] = e.items, e.actions
        if timed and e.times is not None:
            age[i, :n] = np.log1p((at - e.times) / _HOUR)
    return History(rows, action, age)


def history_inputs(history: History, table: Gathered) -> dict[str, NDArray[Any]]:
    """The tower's ``history.*`` inputs; vectors come from ``table`` ``[N, H]``."""
    mask = history.rows >= 0
    vectors = np.zeros((*history.rows.shape, table.shape[1]), np.float32)
    vectors[mask] = table[history.rows[mask]]
    return {
        "history.vectors": vectors,
        "history.mask": mask,
        "history.action": history.action,
        "history.age": history.age,
    }


def _sequence(user: Mapping[str, Any], field: str, length: int | None = None) -> Sequence[Any]:
    value = user.get(field)
    if value is None:
        return ()
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__"):
        raise DataError(f"a {type(value).__name__}; expected a list", where=f"request, field {field!r}")
    if length is not None and len(value) != length:
        raise DataError(
            f"{len(value)} entries for a {HISTORY} of {length}", where=f"request, field {field!r}", cure="give one each"
        )
    out: Sequence[Any] = value
    return out


def check_clock(schema: Schema, users: KnownUsers) -> None:
    """Known users of a timed log must have event times.

    Raises:
        ConfigError: they have none.
    """
    if schema.clock == "time" and users.times is None:
        raise ConfigError("known users have no event times, but the schema's clock is time; export the times too")
