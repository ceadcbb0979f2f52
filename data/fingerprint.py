"""Whether a prepared dataset is up to date: which files a config names, and a hash of both."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from data.blocks import CANDIDATES
from data.files import File, resolve
from data.spec import DatasetSpec
from data.writer import FORMAT_VERSION
from towers.errors import DataError


def log_files(spec: DatasetSpec) -> tuple[File, ...]:
    """The files of the log."""
    return resolve([f for _, paths in spec.events.files for f in paths], spec.source)


def all_files(spec: DatasetSpec) -> tuple[File, ...]:
    """Every file that a config names.

    Raises:
        DataError: one of them is not there.
    """
    paths = [f for side in (spec.users, spec.items) for f in side.files]
    paths += [f for side in (spec.users, spec.items) for _, long in side.lists for f in long.files]
    paths += [t.exclude for _, t in spec.tasks if isinstance(t.exclude, str)]
    paths += [t.candidates for _, t in spec.tasks if t.candidates not in CANDIDATES]
    return log_files(spec) + resolve(paths, spec.source)


def fingerprint(spec: DatasetSpec) -> str:
    """Hash of the config and of the sizes and times of the files it names: equal means up to date."""
    stats = [(f.shown, f.size, f.changed_ns) for f in all_files(spec)]
    text = json.dumps([FORMAT_VERSION, spec.content(), stats], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def is_current(spec: DatasetSpec, target: Path) -> bool:
    """Whether ``target`` holds this dataset, prepared from these files with this config."""
    try:
        return bool(json.loads((target / "dataset.json").read_text())["fingerprint"] == fingerprint(spec))
    except (OSError, ValueError, KeyError, DataError):
        return False
