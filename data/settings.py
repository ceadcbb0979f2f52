"""Plain mappings against dataclasses: unknown names, missing ones, and values of the wrong kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from towers.errors import ConfigError


def strict(cls: type, spec: Mapping[str, Any], where: str, required: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping itself, once its keys are known to be fields of ``cls`` and its plain values fit them.

    Args:
        cls: a dataclass of settings.
        spec: the block of a config.
        where: its name, for errors.
        required: keys that must have a value.

    Raises:
        ConfigError: a key is unknown or missing, or a value of the wrong type.
    """
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


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def byte_size(value: int | str, where: str) -> int:
    """A number of bytes, written as one or as ``500MB``, ``1.5 GiB``.

    Raises:
        ConfigError: it is neither, or not above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip().lower())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or (size := int(float(found[1]) * unit)) < 1:
        raise ConfigError(f"{where} is {value!r}; write bytes, or a size such as 500MB, 2GB or 1.5GiB")
    return size


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
