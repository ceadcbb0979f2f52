"""What a data config says, checked as a whole before any work starts.

``DatasetSpec.parse`` turns the plain mapping of ``configs/data/NAME.yaml`` into frozen dataclasses. All
mistakes that can be seen without reading data are collected and reported in one error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from data.instants import is_cut
from data.settings import strict
from towers.errors import ConfigError
from towers.features import Action, Feature, Kind

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
        """From the ``events`` block."""
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


@dataclass(frozen=True)
class DatasetSpec:
    """A whole data config; see ``docs/data.md`` for a commented example."""

    name: str
    events: EventsSpec
    users: EntitySpec
    items: EntitySpec
    actions: tuple[Action, ...]
    split: SplitSpec
    tasks: tuple[tuple[str, TaskSpec], ...]
    faults: Mapping[str, Limit]
    context: ContextSpec = field(default_factory=ContextSpec)
    source: str = ""
    select: str = "valid"
    history_length: int = 50
    refit: bool = False

    @classmethod
    def parse(cls, spec: Mapping[str, Any]) -> Self:
        """From the plain mapping of a data config.

        Raises:
            ConfigError: listing every mistake that was found.
        """
        kw = strict(cls, spec, "data", ["name"])
        errors: list[str] = []

        def attempt(key: str, make: Any) -> None:
            try:
                kw[key] = make()
            except (ConfigError, TypeError, ValueError, KeyError) as e:
                errors.append(str(e) if isinstance(e, ConfigError) else f"{key}: {e}")

        attempt("events", lambda: EventsSpec.parse(kw.get("events") or {}))
        for side, key in (("users", "user"), ("items", "item")):
            attempt(side, lambda side=side, key=key: EntitySpec.parse(kw.get(side), side, key))
        attempt("context", lambda: ContextSpec.parse(kw.get("context")))
        actions = kw.get("actions") or {"click": {}}
        attempt(
            "actions",
            lambda: tuple(Action(str(n), **strict(Action, a or {}, f"actions.{n}")) for n, a in actions.items()),
        )
        attempt("split", lambda: SplitSpec(**strict(SplitSpec, kw.get("split") or {}, "split")))
        tasks = kw.get("tasks") or {"valid": {}, "test": {}}
        attempt("tasks", lambda: tuple((n, TaskSpec.parse(n, t or {})) for n, t in tasks.items()))
        attempt("faults", lambda: _limits(kw.get("faults") or {}))
        if errors:
            raise ConfigError("\n".join(["the data config cannot work:", *(f"  - {e}" for e in errors)]))
        out = cls(**kw)
        out._check()
        return out

    def _check(self) -> None:
        errors = []
        e = self.events
        named = [n for n, _ in e.files if n]
        errors += _split_errors(self.split)
        if self.split.rule == "given" and not named and not e.split:
            errors.append("split.rule given: name a split for each file (events.files: {train: …}) or set events.split")
        if self.split.rule != "given" and (named or e.split):
            errors.append(f"split.rule {self.split.rule}: the log already names its splits; use split.rule=given")
        if self.split.rule == "global_time" and e.clock != "time":
            errors.append("split.rule global_time: set events.time")
        if self.split.rule == "leave_last_out" and e.clock == "none":
            errors.append("split.rule leave_last_out: set events.time or events.order")
        if e.time and e.order:
            errors.append("events: set time or order, not both")
        if not any(a.weight > 0 for a in self.actions):
            errors.append("actions: no action has a positive weight, so nothing can be learnt")
        if any(a.weight < 0 for a in self.actions):
            errors.append("actions: weights must not be negative; 0 marks an action that is no positive")
        if wrong := sorted(set(e.types.values()) - {"int64", "string"}):
            errors.append(f"events.types: {wrong[0]!r}; ids are int64 or string")
        if unknown := sorted(set(e.types) - {e.user, e.item}):
            errors.append(f"events.types: {unknown} are no id columns; those are {e.user!r} and {e.item!r}")
        for side, entity in (("users", self.users), ("items", self.items)):
            errors += _entity_errors(side, entity)
        errors += [f"context.features.{f.name}: kind id is of users and items" for f in self.context.features
                   if f.kind is Kind.ID]  # fmt: skip
        errors += _vocabulary_errors(self)
        for name, t in self.tasks:
            errors += self._split_name_errors(name, t, named)
            if t.exclude_groups and not self.items.group:
                errors.append(f"tasks.{name}: exclude_groups needs items.group")
            if t.unit == "event" and e.clock == "none":
                errors.append(f"tasks.{name}: unit event needs events.time or events.order")
            if t.candidates == "live" and (e.clock != "time" or not (self.items.posted or self.items.expires)):
                errors.append(f"tasks.{name}: candidates live needs events.time and items.posted or items.expires")
            if t.retrieve == "users" and (t.unit == "event" or t.candidates == "live"):
                errors.append(f"tasks.{name}: retrieve users asks once for each item, whenever; leave out unit event "
                              "and candidates live")  # fmt: skip
        if self.select not in dict(self.tasks):
            errors.append(f"select: no task {self.select!r}; there are {[n for n, _ in self.tasks]}")
        if errors:
            raise ConfigError("\n".join(["the data config cannot work:", *(f"  - {e}" for e in errors)]))

    def _split_name_errors(self, name: str, task: TaskSpec, named: list[str]) -> list[str]:
        """Targets and exclusions that name a split which cannot be."""
        excluded = task.exclude if isinstance(task.exclude, tuple) else ()
        if self.events.split:  # any value of the column may be a split
            known = set(self.split_names)
            wrong = [s for s in excluded if s not in known]
        else:
            known = set(named or ("train", "valid", "test"))
            implied = {"train", "valid"}  # the default exclusions, where a dataset has no such split
            wrong = [s for s in task.targets if s not in known] + [s for s in excluded if s not in known | implied]
        return [f"tasks.{name}: no split {s!r}; there are {sorted(known)}" for s in wrong]

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits by code: train, valid, then every test split."""
        named = [n for n, _ in self.events.files if n] or [t for _, task in self.tasks for t in task.targets]
        tests = tuple(dict.fromkeys(n for n in named if n not in ("train", "valid")))
        return ("train", "valid", *(tests or ("test",)))

    def refitted(self) -> Self:
        """The same dataset with the validation split moved into training."""
        return replace(self, refit=True, name=f"{self.name}-refit")


def _split_errors(s: SplitSpec) -> list[str]:
    """Shares that are none, and cuts that cannot be read."""
    if s.rule == "global_time":
        return [
            f"split.{key}: {value!r} is neither an ISO instant, nor days (7d), nor a share between 0 and 1"
            for key, value in (("valid", s.valid), ("test", s.test))
            if not is_cut(value)
        ]
    if s.rule in ("random_per_user", "cold_items"):
        shares = [v for v in (s.valid, s.test) if isinstance(v, int | float) and 0 <= v < 1]
        if len(shares) < 2 or sum(shares) >= 1:
            return [
                f"split.rule {s.rule}: valid {s.valid!r} and test {s.test!r} must be shares that leave some to train"
            ]
    return ["split.min_items must be at least 1"] if s.min_items < 1 else []


def _entity_errors(side: str, e: EntitySpec) -> list[str]:
    """Settings that need a table which is not there, and types of columns that are no ids."""
    errors = []
    if unknown := sorted(set(e.types) - {e.key}):
        errors.append(f"{side}.types: {unknown} are no id column; that is {e.key!r}")
    if wrong := sorted(set(e.types.values()) - {"int64", "string"}):
        errors.append(f"{side}.types: {wrong[0]!r}; ids are int64 or string")
    if not e.files:
        needs = [f"features.{f.name}" for f in e.features if f.columns] + [f"lists.{n}" for n, _ in e.lists]
        needs += [n for n in ("attributes", "posted", "expires", "group") if getattr(e, n)]
        errors += [f"{side}.{n}: set {side}.files to the table that holds it" for n in needs]
    return errors


def _vocabulary_errors(spec: DatasetSpec) -> list[str]:
    """Features that share the vocabulary of an item feature which is not there, or is made in another way."""
    items = {f"items.{f.name}": f for f in spec.items.features}
    errors = [f"{name}: vocabulary is of user and context features" for name, f in items.items() if f.vocabulary]
    for side, features in (("users", spec.users.features), ("context", spec.context.features)):
        for f in (f for f in features if f.vocabulary):
            of = items.get(str(f.vocabulary))
            if of is None or f.kind in (Kind.ID, Kind.NUMERIC, Kind.VECTOR):
                errors.append(
                    f"{side}.features.{f.name}: vocabulary {f.vocabulary!r}; it is items.NAME of a text or a category, "
                    f"and there are {sorted(items)}"
                )
            elif any((f.kind is kind) != (of.kind is kind) for kind in (Kind.TEXT, Kind.SENTENCE)) or (
                (f.buckets, f.words, f.chars, f.encoder, f.dim) != (of.buckets, of.words, of.chars, of.encoder, of.dim)
                and f.kind in (Kind.TEXT, Kind.SENTENCE)
            ):
                errors.append(
                    f"{side}.features.{f.name}: one vocabulary with {f.vocabulary} needs one kind, and for text "
                    "the same buckets, words and chars, for sentences the same encoder and dim"
                )
    return errors


def _limits(spec: Mapping[str, Any]) -> dict[str, Limit]:
    if unknown := sorted(set(spec) - set(FAULTS)):
        raise ConfigError(f"faults: unknown {unknown}; known are {sorted(FAULTS)}")
    return {
        name: Limit(**{**default.__dict__, **strict(Limit, spec.get(name) or {}, f"faults.{name}")})
        for name, default in FAULTS.items()
    }
