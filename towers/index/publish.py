"""A folder appears under its final name complete and on the disk, or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from towers.errors import ConfigError


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """Give a hidden folder to fill; when the block ends without an error, rename it to ``target``.

    Raises:
        ConfigError: ``target`` exists.
    """
    target = _named(target)
    with staging(target) as folder:
        yield folder
        _sync(folder)
        _refuse_existing(target)
        folder.rename(target)
        _sync_one(target.parent)


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Give a hidden folder beside ``target`` for what has to be at hand before it is published; remove it at the end.

    What earlier writers of this target left behind when they were killed is removed: each holds a lock on
    its folder, which the kernel lets go when the process dies.

    Raises:
        ConfigError: ``target`` exists.
    """
    target = _named(target)
    _refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clean(target)
    folder, lock = _locked(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # renamed already, if all went well
        os.close(lock)


def _named(target: Path) -> Path:
    return Path(os.path.abspath(target))  # noqa: PTH100 - the name is kept, links are not followed


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists; a bundle is never overwritten. Choose another name, or remove it first")


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _locked(target: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock."""
    while True:
        folder = target.parent / f"{_prefix(target)}{secrets.token_hex(6)}"
        folder.mkdir()
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # another writer cleaned up in between
            continue
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists():
                return folder, lock
        os.close(lock)


def _clean(target: Path) -> None:
    for left in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
        with suppress(OSError):  # gone already, or locked by a writer that is alive
            lock = os.open(left, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _sync(folder: Path) -> None:
    """Everything below ``folder`` to the disk, leaves first."""
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync_one(Path(here) / name)
        _sync_one(Path(here))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
