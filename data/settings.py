"""Plain mappings against dataclasses: unknown names, missing ones, and values of the wrong kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from towers.errors import ConfigError


def strict(cls: type, spec: Mapping[str, Any], where: str, required: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping itself, once its keys are known to be fields of ``cls`` and its plain values fit them."""
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{where}: expected settings, got {spec!r}")
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(map(str, spec)) - known):
        raise ConfigError(f"{where}: unknown settings {unknown}; known are {sorted(known)}")
    if missing := [name for name in required if spec.get(name) is None]:
        raise ConfigError(f"{where}: set {' and '.join(missing)}")
    hints = get_type_hints(cls)
    for name, value in spec.items():
        if not _fits(value, hints[name]):
            raise ConfigError(f"{where}: {name} is {value!r}; expected {_wanted(hints[name])}")
    return dict(spec)


def _wanted(hint: Any) -> str:
    """A plain type in words."""
    if get_origin(hint) is Literal:
        return f"one of {list(get_args(hint))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_wanted(h) for h in get_args(hint) if h is not type(None))
    return str(getattr(hint, "__name__", hint))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a plain type; structured ones are parsed by themselves."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, h) for h in get_args(hint))
    if hint in (int, float):
        return not isinstance(value, bool) and isinstance(value, int if hint is int else (int, float))
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    return True
