"""What a swap came to: taken or refused, why, how long it took, and what is different now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from towers.features import Schema
from towers.index.opening import OpenBundle


@dataclass(frozen=True)
class SwapReport:
    """One attempt to put a bundle in the place of another.

    Attributes:
        path: the folder, links resolved.
        accepted: whether it answers now. If not, the bundle before still does.
        bundle: its id, as in ``Results.bundle``; empty if it could not be opened.
        previous: id of the bundle that answered before; empty for the first.
        reason: why it was refused; empty if it was not.
        changes: what differs from the bundle before, by name: (before, now).
        warnings: what someone should look at, though it refuses nothing.
        seconds: what ``open`` (hashes, parsers, replay) and ``warm`` took.
    """

    path: Path
    accepted: bool
    bundle: str = ""
    previous: str = ""
    reason: str = ""
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """For a log."""
        lines = [f"{'swapped to' if self.accepted else 'REFUSED'} {self.bundle or '?'} ({self.path})"]
        lines += [self.reason] if self.reason else []
        lines += [f"{name}: {was} → {now}" for name, (was, now) in self.changes.items()]
        lines += [f"warning: {w}" for w in self.warnings]
        lines += [", ".join(f"{name} {s:.3f} s" for name, s in self.seconds.items())] if self.seconds else []
        return "\n  ".join(lines)


def changes(old: OpenBundle, new: OpenBundle) -> dict[str, tuple[Any, Any]]:
    """What those who ask, and those who operate, may notice: (before, now) by name, the same left out."""
    was, now = _facts(old), _facts(new)
    return {name: (was.get(name), now.get(name)) for name in {**was, **now} if was.get(name) != now.get(name)}


def warnings(old: OpenBundle, new: OpenBundle) -> tuple[str, ...]:
    """What is allowed and seldom meant: a step back in time, ids of another type, users or attributes that are gone."""
    was, now, out = _facts(old), _facts(new), []
    before, after = was["data_end"], now["data_end"]
    if before is not None and (after is None or after < before):
        out.append(f"the data end earlier ({after}) than those of the bundle before ({before}): a step back")
    for kind in ("item_id", "user_id"):
        if was[kind] != now[kind]:
            out.append(f"{kind} was {was[kind]} and is {now[kind]}: requests with ids of the old type fail")
    if was["users"] and not now["users"]:
        out.append("the bundle before had known users, this one has none: requests with user ids fail")
    for what in ("attributes", "user columns", "context columns"):
        if gone := sorted(set(was[what]) - set(now[what])):
            out.append(f"{what} {gone} are gone: requests that name them fail")
    return tuple(out)


def _facts(bundle: OpenBundle) -> dict[str, Any]:
    m, schema = bundle.manifest, bundle.schema
    return {
        "created": m["created"],
        "data_end": m["data"].get("end"),
        "similarity": bundle.similarity.kind,
        "temperature": bundle.similarity.temperature,
        "dim": m["dim"],
        "items": len(bundle.items),
        "users": 0 if bundle.known is None else len(bundle.known.ids),
        "index": bundle.search.recipe.kind,
        "item_id": schema.item_id,
        "user_id": schema.user_id,
        "clock": schema.clock,
        "history_length": schema.history_length,
        "actions": [a.name for a in schema.actions],
        "attributes": bundle.attributes.column_names,
        "user columns": list(bundle.users.columns),
        "context columns": list(bundle.context.columns),
        **_features(schema),
    }


def _features(schema: Schema) -> dict[str, Any]:
    """Each declared feature by side and name."""
    sides = {"users": schema.users, "items": schema.items, "context": schema.context}
    return {f"{side}.{f.name}": f for side, features in sides.items() for f in features}
