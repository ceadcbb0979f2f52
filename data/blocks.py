"""The blocks of a data config, as frozen dataclasses: each knows its own settings, and none another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from data.settings import strict
from towers.errors import ConfigError
from towers.features import Feature

Policy = Literal["stop", "set_aside"]


# What ``tasks.NAME.candidates`` may say; anything else is a file.
CANDIDATES = ("all", "trained", "live", "held_out")


def _paths(files: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if files is None else (files,) if isinstance(files, str) else tuple(files)


@dataclass(frozen=True)
class TimeSpec:
    """The clock of a log.

    Attributes:
        column: its column.
        unit: ``s``, ``ms`` or ``us`` for numbers since the epoch; leave it out for timestamps and ISO strings.
        timezone: what a naive timestamp means, e.g. ``Europe/Berlin``; without it, naive is an error.
    """

    column: str
    unit: Literal["s", "ms", "us"] | None = None
    timezone: str | None = None


@dataclass(frozen=True)
class EventsSpec:
    """The interaction log.

    Attributes:
        files: path, folder, glob or URI, or several; with the ``given`` split rule, a mapping from split
            name to these, in the order in which the splits follow each other.
        user, item: id columns.
        time: the clock, if there is one.
        order: column with a plain order of a user's events, if there is no clock.
        action: column with the kind of event; without it every event is of the first action.
        weight: column with a weight that multiplies the action's.
        split: column that names the split, another form of the ``given`` rule.
        types: types for CSV columns, e.g. ``{user: string}``; otherwise ids are integers where all look it.
    """

    files: tuple[tuple[str, tuple[str, ...]], ...]
    user: str = "user"
    item: str = "item"
    time: TimeSpec | None = None
    order: str | None = None
    action: str | None = None
    weight: str | None = None
    split: str | None = None
    types: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, spec: Mapping[str, Any]) -> Self:
        """From the ``events`` block.

        Raises:
            ConfigError: a setting is unknown, of the wrong type, or missing.
        """
        kw = strict(cls, spec, "events")
        files = kw.get("files")
        if not files:
            raise ConfigError("events: set files to the path of the log")
        by_split = files if isinstance(files, Mapping) else {"": files}
        kw["files"] = tuple((str(name), _paths(paths)) for name, paths in by_split.items())
        if isinstance(kw.get("time"), str):
            kw["time"] = {"column": kw["time"]}
        if kw.get("time"):
            kw["time"] = TimeSpec(**strict(TimeSpec, kw["time"], "events.time", ["column"]))
        return cls(**kw)

    @property
    def clock(self) -> str:
        """``time``, ``order`` or ``none``."""
        return "time" if self.time else "order" if self.order else "none"


@dataclass(frozen=True)
class ListSpec:
    """A long table (key, value) that becomes a list column, e.g. one row for each (job, skill)."""

    files: tuple[str, ...]
    key: str
    value: str


@dataclass(frozen=True)
class EntitySpec:
    """Users or items.

    Attributes:
        files: their table; without it, they are the ids of the log.
        key: id column.
        features: see ``towers.features.Feature``.
        lists: list columns to be gathered from long tables, by name.
        attributes: raw columns that travel to the bundle, for filters and display.
        separator: splits the text of list columns, where the format has no lists (CSV).
        posted, expires: timestamp columns between which an item may be recommended.
        group: column that is equal for reposts of one item.
        types: types for CSV columns.
    """

    files: tuple[str, ...] = ()
    key: str = ""
    features: tuple[Feature, ...] = ()
    lists: tuple[tuple[str, ListSpec], ...] = ()
    attributes: tuple[str, ...] = ()
    separator: str | None = None
    posted: str | None = None
    expires: str | None = None
    group: str | None = None
    types: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, spec: Mapping[str, Any] | None, side: str, key: str) -> Self:
        """From the ``users`` or ``items`` block."""
        kw = strict(cls, spec or {}, side)
        kw["files"] = _paths(kw.get("files"))
        kw.setdefault("key", key)
        kw["features"] = tuple(Feature.parse(n, f) for n, f in (kw.get("features") or {}).items())
        need = ["files", "key", "value"]
        lists = {n: strict(ListSpec, v, f"{side}.lists.{n}", need) for n, v in (kw.get("lists") or {}).items()}
        kw["lists"] = tuple((n, ListSpec(**{**v, "files": _paths(v["files"])})) for n, v in lists.items())
        kw["attributes"] = tuple(kw.get("attributes") or ())
        return cls(**kw)


@dataclass(frozen=True)
class ContextSpec:
    """What belongs to neither side: columns of the log such as the query's text or the place of the request.

    Attributes:
        features: see ``towers.features.Feature``; an ``id`` has no place here.
        separator: splits the text of list columns, where the format has no lists (CSV).
    """

    features: tuple[Feature, ...] = ()
    separator: str | None = None

    @classmethod
    def parse(cls, spec: Mapping[str, Any] | None) -> Self:
        """From the ``context`` block."""
        kw = strict(cls, spec or {}, "context")
        kw["features"] = tuple(Feature.parse(n, f) for n, f in (kw.get("features") or {}).items())
        return cls(**kw)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the log that the features read."""
        return tuple(dict.fromkeys(column for f in self.features for column in f.columns))


@dataclass(frozen=True)
class SplitSpec:
    """How examples are divided into train, valid and test.

    Attributes:
        rule: ``given`` (by file or column), ``leave_last_out`` (a user's last item is test, the one before
            it valid), ``global_time``, ``random_per_user``, or ``cold_items`` (whole items held out).
        valid, test: ``global_time``: a timestamp (ISO, UTC) from which the split begins, or a share of the
            events, or a number of days written as ``"7d"``; ``random_per_user``, ``cold_items``: a share.
        min_items: ``leave_last_out`` and ``random_per_user``: users with fewer distinct items stay in train.
        seed: of the random rules.
    """

    rule: Literal["given", "leave_last_out", "global_time", "random_per_user", "cold_items"] = "given"
    valid: float | str = 0.1
    test: float | str = 0.2
    min_items: int = 3
    seed: int = 0


@dataclass(frozen=True)
class TaskSpec:
    """What an evaluation asks.

    Attributes:
        targets: splits whose positives are to be found.
        candidates: ``all`` items, ``trained`` items (with a training event), ``live`` (posted and not
            expired at the query's time), ``held_out`` (the items of the targets), or a file of item ids.
        exclude: splits whose items a user is not shown again, or a file of (user, item) pairs; by default
            every split that comes before the targets' (an empty list: nothing).
        exclude_groups: exclude all items of an excluded item's group.
        unit: ``user`` (one query for each user, all targets at once) or ``event`` (one for each user and time);
            where the data have a context, one for each user and context (and time).
        retrieve: ``items`` for users, or ``users`` for items: matching. Then each item of the targets asks for users,
            among ``all``, ``trained`` or ``held_out`` ones, or those of a file of user ids; an exclusion masks the
            users who have taken the item.
    """

    targets: tuple[str, ...]
    candidates: str = "all"
    exclude: tuple[str, ...] | str = ()
    exclude_groups: bool = False
    unit: Literal["user", "event"] = "user"
    retrieve: Literal["items", "users"] = "items"

    @classmethod
    def parse(cls, name: str, spec: Mapping[str, Any]) -> Self:
        """From one entry of the ``tasks`` block."""
        kw = strict(cls, spec, f"tasks.{name}")
        kw["targets"] = _paths(kw.get("targets", name))
        first = "valid" if "valid" in kw["targets"] else "test"
        earlier = () if "train" in kw["targets"] else ("train",) if first == "valid" else ("train", "valid")
        exclude = kw.get("exclude")
        kw["exclude"] = earlier if exclude is None else exclude if isinstance(exclude, str) else tuple(exclude)
        return cls(**kw)


@dataclass(frozen=True)
class Limit:
    """What happens to rows with one kind of fault.

    Attributes:
        policy: ``stop`` at the first, or ``set_aside`` (written to ``rejected/``, counted).
        limit: share of the log that may be set aside before it is an error after all.
    """

    policy: Policy = "stop"
    limit: float = 0.01


# Every fault a log row can have, in the order in which they are looked for; the first one counts.
FAULTS: dict[str, Limit] = {
    "null_key": Limit("stop"),
    "bad_time": Limit("stop"),
    "bad_weight": Limit("stop"),
    "unknown_action": Limit("stop"),
    "unknown_split": Limit("stop"),
    "unknown_user": Limit("set_aside", 0.01),
    "unknown_item": Limit("set_aside", 0.01),
    "after_expiry": Limit("set_aside", 0.01),
    "duplicate": Limit("set_aside", 0.2),
    # of user and item tables; set aside means that the value counts as missing
    "nan_feature": Limit("set_aside", 1.0),
    "infinite_feature": Limit("stop"),
}
