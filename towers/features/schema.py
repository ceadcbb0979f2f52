"""What a dataset declares: features by kind, actions with weights, and what its time means."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from towers.errors import ConfigError


class Kind(StrEnum):
    """How a raw column becomes numbers."""

    ID = "id"  # the entity itself; the vocabulary holds those with enough training events
    CATEGORICAL = "categorical"  # one value
    CATEGORICAL_LIST = "categorical_list"  # several values, in order
    NUMERIC = "numeric"  # a number, normalised or cut into quantile buckets
    TEXT = "text"  # free text, as hashed word and character n-grams
    VECTOR = "vector"  # a pretrained embedding
    SENTENCE = "sentence"  # free text, by a pretrained sentence encoder


@dataclass(frozen=True)
class Feature:
    """One feature of a user, of an item, or of an example's context.

    Attributes:
        name: its name in batches, errors and vocabularies.
        kind: see ``Kind``.
        columns: raw columns it is made from; several only for texts (joined by spaces, or for a
            sentence encoder by full stops).
        min_count: values seen less often in training are out of vocabulary.
        max_size: at most this many values in the vocabulary.
        max_length: lists and texts are cut to this many entries.
        buckets: numeric: number of quantile buckets, 0 to normalise instead; text: hash buckets.
        log: numeric: take ``sign(x) log(1 + |x|)`` first.
        words: text: sizes of word n-grams.
        chars: text: sizes of character n-grams.
        repeats: text: an n-gram that occurs ``n`` times stands ``1 + ⌊log₂ n⌋`` times in the list, so that what a long
            text says again and again counts more.
        dim: vector, sentence: its length.
        encoder: sentence: a model of the Hugging Face Hub, or its folder (see ``sentences``).
        vocabulary: ``items.NAME``: one vocabulary with that item feature, because both are the same kind of
            text or value (a query and a job's title, the skills of members and of jobs); of user and context features.
            Sentences have no vocabulary, but share what is learned of their vectors.
        fit: ``train``: the vocabulary holds what training rows hold; ``all``: what the whole table holds. A catalogue's
            words are known before anybody clicks: a search for one that no training title had can then still match
            it. Not where the table is from after the split in time: it would tell of the future.

    Raises:
        ConfigError: the settings do not fit the kind, or each other.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...] = ()
    min_count: int = 1
    max_size: int | None = None
    max_length: int = 32
    buckets: int = 0
    log: bool = False
    words: tuple[int, ...] = (1, 2)
    chars: tuple[int, ...] = (3, 4)
    repeats: bool = False
    dim: int = 0
    encoder: str | None = None
    vocabulary: str | None = None
    fit: str = "train"

    def __post_init__(self) -> None:
        """Check the settings together, each error naming the cure."""
        if len(self.columns) != 1 and self.kind not in (Kind.TEXT, Kind.SENTENCE, Kind.ID):
            raise ConfigError(f"feature {self.name!r}: set one column, got {list(self.columns)}")
        if self.kind is Kind.SENTENCE and not (self.columns and self.encoder):
            raise ConfigError(
                f"feature {self.name!r}: set encoder to a sentence encoder's name, and at least one column"
            )
        if self.kind is not Kind.SENTENCE and self.encoder:
            raise ConfigError(f"feature {self.name!r}: encoder is of kind sentence, not of {self.kind.value}")
        if self.kind in (Kind.VECTOR, Kind.SENTENCE) and self.dim < 1:
            raise ConfigError(f"feature {self.name!r}: set dim to the length of the vectors")
        if self.kind is Kind.TEXT and self.buckets < 1:
            raise ConfigError(f"feature {self.name!r}: set buckets to a positive number of hash buckets")
        if self.fit not in ("train", "all"):
            raise ConfigError(f"feature {self.name!r}: fit is {self.fit!r}; expected train or all")
        if self.fit == "all" and self.kind in (Kind.ID, Kind.VECTOR, Kind.SENTENCE):
            raise ConfigError(f"feature {self.name!r}: fit all is not of kind {self.kind.value}; leave it out")
        if self.max_length < 1 or self.min_count < 1:
            raise ConfigError(f"feature {self.name!r}: max_length and min_count must be at least 1")

    @classmethod
    def parse(cls, name: str, spec: Mapping[str, Any]) -> Feature:
        """A feature from its YAML mapping; ``column`` may be one name or a list, by default ``name``.

        Raises:
            ConfigError: a setting is unknown, or there is no such kind.
        """
        spec = dict(spec)
        known = {f.name for f in fields(cls)} - {"name", "columns"} | {"column"}
        if unknown := sorted(set(spec) - known):
            raise ConfigError(f"feature {name!r}: unknown settings {unknown}; known are {sorted(known)}")
        try:
            kind = Kind(spec.pop("kind"))
        except (KeyError, ValueError) as e:
            raise ConfigError(f"feature {name!r}: set kind to one of {[k.value for k in Kind]}") from e
        column = spec.pop("column", name if kind is not Kind.ID else ())
        columns = (column,) if isinstance(column, str) else tuple(column)
        if kind is Kind.TEXT:
            spec.setdefault("buckets", 1 << 18)
        for sizes in ("words", "chars"):
            if sizes in spec:
                spec[sizes] = tuple(spec[sizes])
        return cls(name=name, kind=kind, columns=columns, **spec)


@dataclass(frozen=True)
class Action:
    """A kind of event.

    Attributes:
        name: its value in the log.
        weight: label weight of an example with this action; 0: never a positive (an impression).
        history: whether such events enter histories.
    """

    name: str
    weight: float = 1.0
    history: bool = True


@dataclass(frozen=True)
class Schema:
    """All that must agree between a dataset, a model trained on it and a bundle that serves it.

    Attributes:
        users: user features.
        items: item features.
        context: features of an example that belong to neither side.
        actions: kinds of event; their position is their code.
        clock: ``time`` (timestamps), ``order`` (a plain order) or ``none``.
        user_id: type of user ids, ``int64`` or ``string``.
        item_id: type of item ids.
        history_length: the most recent events that a history keeps.
    """

    users: tuple[Feature, ...]
    items: tuple[Feature, ...]
    context: tuple[Feature, ...] = ()
    actions: tuple[Action, ...] = (Action("click"),)
    clock: str = "none"
    user_id: str = "int64"
    item_id: str = "int64"
    history_length: int = 50

    def to_json(self) -> dict[str, Any]:
        """A plain mapping; ``from_json`` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> Schema:
        """Read what ``to_json`` wrote."""

        def feature(f: Mapping[str, Any]) -> Feature:
            tuples = {k: tuple(f[k]) for k in ("columns", "words", "chars")}
            return Feature(**{**f, **tuples, "kind": Kind(f["kind"])})

        return cls(
            **{
                **spec,
                **{side: tuple(feature(f) for f in spec[side]) for side in ("users", "items", "context")},
                "actions": tuple(Action(**a) for a in spec["actions"]),
            }
        )

    def side(self, side: str) -> tuple[Feature, ...]:
        """The features of the ``user``, the ``item`` or the ``context`` side."""
        return {"user": self.users, "item": self.items, "context": self.context}[side]

    @property
    def hash(self) -> str:
        """SHA-256 of all that differs from the defaults, so that a setting yet to be invented changes no old hash."""
        return hashlib.sha256(json.dumps(_said(self), sort_keys=True).encode()).hexdigest()


def _said(value: Any) -> Any:
    """What a declaration says beyond the defaults, as JSON."""
    if isinstance(value, tuple):
        return [_said(v) for v in value]
    if isinstance(value, Schema | Feature | Action):
        there = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
        return {name: _said(v) for name, v in there.items()}
    return value
