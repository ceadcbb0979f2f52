"""The list of a bundle's files with their hashes, and the gate that every file passes before it is opened.

Hashes catch damage and mix-ups. Hostile contents (paths that lead outside, links, wrong types, counts that
no file bears out) are refused by checks. Proof of origin is not promised.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from towers.errors import BundleError

MANIFEST, SEAL = "manifest.json", "manifest.sha256"
FORMAT, FORMAT_VERSION = "towers-bundle", 2
_MAX_MANIFEST = 16 << 20  # bytes
_MAX_COUNT = 1 << 40
_TYPES: dict[str, type | tuple[type, ...]] = {
    "format": str, "format_version": int, "created": str, "schema_hash": str, "similarity": dict, "dim": int,
    "counts": dict, "index": dict, "data": dict, "provenance": dict, "versions": dict, "measured": dict, "files": dict,
}  # fmt: skip


def write_manifest(root: Path, facts: Mapping[str, Any]) -> None:
    """Hash every file under ``root`` and write the manifest and its seal.

    Args:
        root: a complete bundle but for these two files.
        facts: everything of the manifest but ``format``, ``format_version`` and ``files``.
    """
    files = {
        p.relative_to(root).as_posix(): {"size": p.stat().st_size, "sha256": _sha256(p)}
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **facts, "files": files}
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()
    (root / MANIFEST).write_bytes(text)
    (root / SEAL).write_bytes(_seal(text))


def read_manifest(root: Path, *, verify: bool = True) -> dict[str, Any]:
    """Check a bundle and return its manifest. No file but the manifest has been parsed by then.

    Args:
        root: the bundle.
        verify: hash every file; without it only names, kinds and sizes are checked.

    Raises:
        BundleError: names the first file that is missing, extra, a link, of another size or content, or
            the field of the manifest that is not what it must be.
    """
    if not root.is_dir():
        raise BundleError(f"{root}: no such folder; expected a bundle written by export.py")
    for name in (MANIFEST, SEAL):
        _regular(root, name, None)
    if (root / MANIFEST).stat().st_size > _MAX_MANIFEST:
        raise BundleError(f"{MANIFEST}: larger than {_MAX_MANIFEST} bytes; not a manifest")
    text = (root / MANIFEST).read_bytes()
    with (root / SEAL).open("rb") as f:
        seal = f.read(1024)
    if seal != _seal(text):
        raise BundleError(f"{MANIFEST}: does not match {SEAL}; one of the two is damaged, export again")
    manifest = parse_json(text, MANIFEST)
    _check_fields(manifest)
    files: dict[str, Any] = manifest["files"]
    for name, entry in files.items():
        _check_entry(name, entry)
    _check_names(root, files)
    for name, entry in sorted(files.items()):
        _regular(root, name, entry["size"])
    if verify:
        for name, entry in sorted(files.items()):
            if _sha256(root / name) != entry["sha256"]:
                raise BundleError(f"{name}: content differs from what was exported (sha256); copy or export it again")
    return manifest


def bundle_id(root: Path) -> str:
    """The first twelve digits of the manifest's SHA-256, which covers every file: what answers name a bundle by.

    Raises:
        OSError: there is no bundle.
    """
    with (root / SEAL).open("rb") as f:
        return f.read(12).decode("ascii", "replace")


def parse_json(text: bytes, name: str) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no duplicate keys, no NaN, no 1e999 however written, an object at the top.

    Raises:
        BundleError: it is anything else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise ValueError("a key occurs twice")
        return out

    def finite(text: str) -> float:  # also called for NaN and Infinity, which are not JSON
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{text[:20]} is no number that a float can hold")
        return number

    def whole(text: str) -> int:  # of any length in Python, which compares it with floats and cannot make it one
        finite(text)
        return int(text)

    try:
        value = json.loads(
            text.decode(), object_pairs_hook=unique, parse_float=finite, parse_int=whole, parse_constant=finite
        )
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{name}: not the JSON it should be: {e}") from e
    if not isinstance(value, dict):
        raise BundleError(f"{name}: holds a {type(value).__name__}; expected an object")
    return value


def is_count(value: object, least: int = 0) -> bool:
    """Whether this is a whole number that a bundle can mean."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MAX_COUNT


def _check_fields(manifest: Mapping[str, Any]) -> None:
    if manifest.get("format") != FORMAT or manifest.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST}: format {manifest.get('format')!r} version {manifest.get('format_version')!r}; this program "
            f"reads {FORMAT!r} version {FORMAT_VERSION}. Use the version of towers that wrote it, or export again"
        )
    if set(manifest) != set(_TYPES):
        raise BundleError(f"{MANIFEST}: fields {sorted(set(manifest) ^ set(_TYPES))} are missing or unknown")
    for name, kind in _TYPES.items():
        if not isinstance(manifest[name], kind) or isinstance(manifest[name], bool):
            raise BundleError(f"{MANIFEST}: {name} is a {type(manifest[name]).__name__}; expected {kind}")
    try:
        dt.datetime.fromisoformat(manifest["created"])
    except ValueError as e:
        raise BundleError(f"{MANIFEST}: created is {manifest['created']!r}; expected a time") from e
    for name, kind in {"measured": (int, float), "versions": (str,)}.items():
        if odd := [k for k, v in manifest[name].items() if type(v) not in kind]:
            raise BundleError(f"{MANIFEST}: {name} has {odd}; expected {' or '.join(k.__name__ for k in kind)}")
    counts, data = manifest["counts"], manifest["data"]
    if set(data) != {"start", "end"} or not all(type(v) in (int, type(None)) for v in data.values()):
        raise BundleError(f"{MANIFEST}: data are {data}; expected start and end in microseconds")
    if set(counts) != {"items", "users", "history_dim"} or not all(is_count(v) for v in counts.values()):
        raise BundleError(f"{MANIFEST}: counts are {counts}; expected items, users and history_dim as whole numbers")
    if not is_count(manifest["dim"], 1) or manifest["dim"] > 1 << 20 or not counts["items"]:
        raise BundleError(f"{MANIFEST}: dim {manifest['dim']} and {counts['items']} items cannot be")


def _check_entry(name: str, entry: object) -> None:
    path = PurePosixPath(name)
    odd = not path.parts or path.is_absolute() or "\\" in name or "\0" in name or ":" in name or name != path.as_posix()
    if odd or any(part in ("..", ".") for part in path.parts) or name in (MANIFEST, SEAL):
        raise BundleError(f"{MANIFEST}: {name!r} is not the name of a file inside the bundle")
    if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
        raise BundleError(f"{MANIFEST}: the entry of {name} must have size and sha256, nothing else")
    digest = entry["sha256"]
    if not is_count(entry["size"]) or not isinstance(digest, str) or len(digest) != 64:
        raise BundleError(f"{MANIFEST}: the entry of {name} has no valid size and sha256")


def _check_names(root: Path, files: Mapping[str, Any]) -> None:
    """Nothing may lie in the bundle that the manifest does not list; no folder may be a link."""
    folders = {p.as_posix() for name in files for p in PurePosixPath(name).parents} - {"."}
    for here, names, leaves in os.walk(root, followlinks=False):
        for name in names:
            path = (Path(here) / name).relative_to(root).as_posix()
            if (root / path).is_symlink():
                raise BundleError(f"{path}: a symbolic link; a bundle holds plain files only")
            if path not in folders:
                raise BundleError(f"{path}: a folder that the manifest does not list; remove it")
        for name in leaves:
            path = (Path(here) / name).relative_to(root).as_posix()
            if path not in files and path not in (MANIFEST, SEAL):
                raise BundleError(f"{path}: a file that the manifest does not list; remove it")


def _regular(root: Path, name: str, size: int | None) -> None:
    try:
        found = os.lstat(root / name)
    except (OSError, ValueError) as e:
        raise BundleError(f"{name}: missing; the bundle is incomplete, copy or export it again") from e
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{name}: not a plain file (a link, folder or device); a bundle holds plain files only")
    if size is not None and found.st_size != size:
        raise BundleError(f"{name}: {found.st_size} bytes; the manifest says {size}. Copy or export it again")


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _seal(text: bytes) -> bytes:
    """The content of ``manifest.sha256``; `sha256sum --check` reads it too."""
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()
