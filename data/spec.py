"""What a data config says, checked as a whole before any work starts.

``DatasetSpec.parse`` turns the plain mapping of ``configs/data/NAME.yaml`` into frozen dataclasses, whose blocks are in
``data.blocks``. All mistakes that can be seen without reading data are collected and reported in one error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from data.blocks import FAULTS, ContextSpec, EntitySpec, EventsSpec, Limit, SplitSpec, TaskSpec
from data.instants import is_cut
from data.settings import strict
from towers.errors import ConfigError
from towers.features import Action, Kind


@dataclass(frozen=True)
class DatasetSpec:
    """A whole data config; see ``docs/data.md`` for a commented example.

    ``engine`` and ``spark`` (settings of Spark, without the leading ``spark.``) say what prepares the data, and change
    nothing of the result. ``incremental`` lets newer files of the log be added to what has been prepared
    (``data.growth``).
    """

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
    engine: Literal["duckdb", "spark"] = "duckdb"
    spark: Mapping[str, str] = field(default_factory=dict)
    incremental: bool = False

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
        kw["spark"] = _dotted(kw.get("spark") or {})
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

    def content(self) -> dict[str, Any]:
        """As plain values, without what changes nothing of what is prepared: the engine, and in how many goes."""
        return {k: v for k, v in asdict(self).items() if k not in ("engine", "spark", "incremental")}

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


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{executor: {memory: 4g}}`` as ``{"executor.memory": "4g"}``; booleans as Spark writes them."""
    out: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            out |= _dotted(value, f"{prefix}{name}.")
        elif value is not None:
            out[f"{prefix}{name}"] = str(value).lower() if isinstance(value, bool) else str(value)
    return out


def _limits(spec: Mapping[str, Any]) -> dict[str, Limit]:
    if unknown := sorted(set(spec) - set(FAULTS)):
        raise ConfigError(f"faults: unknown {unknown}; known are {sorted(FAULTS)}")
    return {
        name: Limit(**{**default.__dict__, **strict(Limit, spec.get(name) or {}, f"faults.{name}")})
        for name, default in FAULTS.items()
    }
