"""A folder appears under its final name complete and on the disk, and what it replaces is never lost on the way.

::

    .NAME.PID.tmp   being written, or being removed: worth nothing
    .NAME.PID.old   what NAME was, whole, between the two renames that replace it

A process may be killed between those renames, and then nothing is called NAME. The next one that is to write it, or
that calls ``put_back``, gives ``.old`` its name again.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that appears as ``target`` only if the block succeeds; an older one is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    put_back(target)
    _clear_abandoned(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    old = temporary.with_suffix(".old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        _flush(temporary)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        _flush_one(target.parent)  # before the older one goes
    finally:
        put_back(target)  # a rename failed, or was interrupted
        _remove(old)
        shutil.rmtree(temporary, ignore_errors=True)


def put_back(target: Path) -> None:
    """Let what a killed process had taken away be ``target`` again, if nothing is.

    Whose it was does not matter: a process holds nothing back between two renames, and a number that seems to belong to
    a living one may have been given out again.
    """
    if not target.exists() and (whole := [path for path, kind in _beside(target) if kind == "old"]):
        max(whole, key=lambda path: path.stat().st_mtime_ns).rename(target)


def _clear_abandoned(target: Path) -> None:
    """Remove what killed processes have left beside ``target``."""
    for path, kind in _beside(target):
        process = int(path.name.split(".")[-2])
        if process == os.getpid() or not _alive(process):  # a container gives its first process the same number again
            _remove(path) if kind == "old" else shutil.rmtree(path, ignore_errors=True)


def _beside(target: Path) -> list[tuple[Path, str]]:
    """Folders of this target that are not its own, the ``tmp`` ones last, and the kind of each."""
    found = []
    for path in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if match := re.fullmatch(r"\.\d+\.(tmp|old)", path.name.removeprefix(f".{target.name}")):
            found.append((path, match[1]))
    return sorted(found, key=lambda each: each[1])


def _remove(old: Path) -> None:
    """Remove what was replaced, under a name by which nobody takes what is left of it for a whole one."""
    if old.exists():
        temporary = old.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        old.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(folder: Path) -> None:
    """Everything below ``folder`` to the disk, leaves first: no name is to survive a power cut without its bytes."""
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            _flush_one(Path(here) / name)
        _flush_one(Path(here))


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
