"""Checkpoints on disk: a file is written whole or not at all, and read only if it is what was written.

A checkpoint is what ``torch.save`` writes, then eight bytes that say so, then the SHA-256 of all before them. Other
programs read it as they read any: ``torch.load`` does not mind what follows the archive, nor does it notice that a
bit within has changed. A file is written beside its name, flushed to the disk and renamed; whenever a write fails, or
the machine stops within it, the file that was there before stays. ``last.ckpt`` hands its name on to ``previous.ckpt``
when a new one takes its place, for disks that damage a file later.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from towers.errors import DataError

BEST, LAST, PREVIOUS, DAMAGED = "best.ckpt", "last.ckpt", "previous.ckpt", "damaged.ckpt"
_MARK = b"sha256:\n"
_CHUNK = 1 << 22


def write(checkpoint: dict[str, Any], path: Path, keep: Path | None = None) -> None:
    """Write a checkpoint under its name, once all of it is on the disk.

    Args:
        checkpoint: what ``torch.save`` accepts.
        path: the file; its folder is made.
        keep: where the file goes that is there now; None: it is replaced.

    Raises:
        DataError: it could not be written (the disk is full, say); what was there before still is, under one of the
            two names.
    """
    temporary = path.with_name(f".{path.name}.half")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            hashed = _Hashed(file)
            torch.save(checkpoint, hashed)  # type: ignore[arg-type]
            file.write(_MARK + hashed.digest.digest())
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as e:
        reason = e if isinstance(e, OSError) else e.__context__  # torch speaks of a position in the file instead
        if not isinstance(reason, OSError):
            raise
        raise DataError(
            f"the checkpoint could not be written: {reason}",
            where=str(path),
            cure=f"free some space, then go on from the one before: python train.py resume={path.parent.parent}",
        ) from e
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """The checkpoint in a file, its tensors in the processor's memory.

    Raises:
        DataError: the file is not what was written.
    """
    if (fault := damage(path)) is not None:
        raise DataError(
            f"the checkpoint is damaged: {fault}", where=str(path), cure="restore the file from a copy, or train again"
        )
    return dict(torch.load(path, map_location="cpu", weights_only=False))


def newest(folder: Path) -> Path | None:
    """The checkpoint that a stopped run goes on from; None if it has not come to one.

    That is ``last.ckpt``. If it is damaged or missing it is ``previous.ckpt``; a damaged one is renamed to
    ``damaged.ckpt``, lest it take the place of the good one before it.

    Args:
        folder: of a run's checkpoints.

    Raises:
        DataError: there are checkpoints, and each of them is damaged.
    """
    faults: dict[str, str] = {}
    for path in (folder / LAST, folder / PREVIOUS):
        try:
            fault = damage(path)
        except FileNotFoundError:
            continue
        if fault is None:
            if faults:
                with suppress(FileNotFoundError):  # another process of the run has done it
                    (folder / LAST).rename(folder / DAMAGED)
            return path
        faults[path.name] = fault
    if faults:
        raise DataError(
            "no checkpoint of this run is whole: " + "; ".join(f"{name}: {fault}" for name, fault in faults.items()),
            where=str(folder),
            cure=f"restore {LAST} from a copy, or train again in a new folder, without resume",
        )
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's file; None if nothing is.

    A file without a digest was not written here, or is torn: then the sums within its archive are looked at.

    Raises:
        FileNotFoundError: there is none.
    """
    trailer = len(_MARK) + hashlib.sha256().digest_size
    with path.open("rb") as file:
        left = file.seek(0, os.SEEK_END) - trailer
        file.seek(max(left, 0))
        mark, digest = (end := file.read())[: len(_MARK)], end[len(_MARK) :]
        file.seek(0)
        if left < 0 or mark != _MARK:
            return _damage_of_archive(path)
        found = hashlib.sha256()
        while left:
            left -= len(chunk := file.read(min(left, _CHUNK)))
            found.update(chunk)
    return None if found.digest() == digest else "its contents do not match their SHA-256"


def _damage_of_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
        torch.load(path, map_location="cpu", weights_only=False, mmap=True)  # its directory; no tensor is read
    except Exception as e:  # whatever two readers of archives make of any bytes
        return f"it has no SHA-256 at its end, and is no archive either ({e})"
    return None if wrong is None else f"{wrong} does not match its CRC-32"


class _Hashed:
    """A file that takes the digest of what is written to it; nothing is held in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write and count it in."""
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        """Pass it on."""
        self.file.flush()


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
