"""What was written since a bundle was made, in one SQLite file that outlives every bundle.

One row for each item that was written: its newest state. ``written`` numbers are moments in microseconds UTC that only
grow, whatever the clock does: they order the writes, and say which of them a bundle's data already hold.

The file is in WAL mode with ``synchronous=FULL``: a write that returned is on the disk. Several processes may hold one
store open; SQLite lets them write in turns.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

from towers.errors import BundleError

_APPLICATION = 0x746F7772  # "towr": whose file it is, in SQLite's own header
_VERSION = 1
_WAIT = 30.0  # seconds for another process to finish its write
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE items (
  item PRIMARY KEY NOT NULL,           -- external id, integer or text
  written INTEGER NOT NULL,            -- last write of any kind
  set_at INTEGER,                      -- last upsert or delete
  deleted INTEGER NOT NULL DEFAULT 0,
  fields TEXT, vector BLOB, input BLOB, space TEXT,
  expire_at INTEGER, expires INTEGER   -- last `expire` since the upsert, and the moment that it set
);
CREATE INDEX items_written ON items (written);
"""
_UPSERT = """
INSERT OR REPLACE INTO items (item, written, set_at, fields, vector, input, space) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_DELETE = """
INSERT INTO items (item, written, set_at, deleted) VALUES (?1, ?2, ?2, 1)
ON CONFLICT (item) DO UPDATE SET written = ?2, set_at = ?2, deleted = 1, expire_at = NULL, expires = NULL
"""
_EXPIRE = """
INSERT INTO items (item, written, expire_at, expires) VALUES (?1, ?2, ?2, ?3)
ON CONFLICT (item) DO UPDATE SET written = ?2, expire_at = ?2, expires = ?3
"""
_COLUMNS = "item, written, set_at, deleted, fields, vector, input, space, expire_at, expires"


class Item(NamedTuple):
    """An upsert as it is stored.

    Attributes:
        item: external id.
        fields: JSON of the raw fields.
        vector: ``[D]`` float32, little-endian.
        input: ``[H]`` float32 that it contributes to histories, or None.
        space: the model in whose space the two lie, see ``live_items.space_of``.
    """

    item: int | str
    fields: str
    vector: bytes
    input: bytes | None
    space: str


class Change(NamedTuple):
    """The newest state of an item that was written.

    Attributes:
        item: external id.
        written: number of its last write of any kind.
        set_at: number of its last upsert or delete; None: there was none.
        deleted: whether that was a delete. What was upserted before is kept: histories may still name the item.
        fields, vector, input, space: as in ``Item``; None where nothing was upserted.
        expire_at: number of the last ``expire`` since the upsert, or None.
        expires: the moment that it set, microseconds UTC.
    """

    item: int | str
    written: int
    set_at: int | None
    deleted: int
    fields: str | None
    vector: bytes | None
    input: bytes | None
    space: str | None
    expire_at: int | None
    expires: int | None


def _now() -> int:
    return (dt.datetime.now(dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


class LiveStore:
    """Upserts, deletes and expiries, durable once their call has returned. Safe in threads and processes.

    Args:
        path: the SQLite file; made if there is none. Not inside a bundle, which holds nothing but its own files.
        verify: let SQLite check the whole file first (about a second for a million items).
        clock: microseconds UTC.

    Raises:
        BundleError: damaged, of another program, or of a newer version of this one; names the file.
    """

    def __init__(self, path: str | Path, *, verify: bool = True, clock: Callable[[], int] = _now) -> None:
        self.path = Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._followers: WeakSet[Any] = WeakSet()
        if not self.path.parent.is_dir():
            raise BundleError(f"{self.path}: the folder {self.path.parent} does not exist; make it first")
        with self._reading():
            self._db = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
        try:
            with self._reading():
                self._prepare(verify)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, verify: bool) -> None:
        self._db.execute("PRAGMA synchronous = FULL")
        with self._transaction():  # two processes may meet a file that is not there yet
            if not self._pragma("schema_version"):  # an empty database
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO meta VALUES ('written', 0)")
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {_VERSION}")
            if self._pragma("application_id") != _APPLICATION:
                raise BundleError(f"{self.path}: an SQLite file, but no live catalogue of Towers; name another file")
            if (found := self._pragma("user_version")) != _VERSION:
                raise BundleError(
                    f"{self.path}: a live catalogue of version {found}; this program reads version {_VERSION}. Use the "
                    "version of towers that wrote it, or begin a new file"
                )
        self._db.execute("PRAGMA journal_mode = WAL")
        if verify and (said := self._pragma("quick_check")) != "ok":
            raise BundleError(f"{self.path}: damaged: {said}. Restore a copy")
        self._one(f"SELECT {_COLUMNS} FROM items LIMIT 1")  # the tables are those of the version
        if self._one("SELECT value FROM meta WHERE name = 'written'") is None:
            raise BundleError(f"{self.path}: damaged: it does not say what was written last. Restore a copy")

    def upsert(self, items: Sequence[Item]) -> int:
        """Write items; what was there of them is replaced. Returns the number of the write."""
        return self._write(_UPSERT, lambda at: [(i.item, at, at, *i[1:]) for i in items])

    def delete(self, items: Sequence[int | str]) -> int:
        """Write that these items are gone, whether they are known or not. Returns the number of the write."""
        return self._write(_DELETE, lambda at: [(i, at) for i in items])

    def expire(self, items: Sequence[int | str], expires: int) -> int:
        """Write until when (exclusive) these may be recommended. Returns the number of the write."""
        return self._write(_EXPIRE, lambda at: [(i, at, expires) for i in items])

    def changes(self, after: int) -> tuple[list[Change], int]:
        """What was written after write number ``after``, the oldest first; and the number of the last write."""
        with self._lock, self._reading(), self._transaction("DEFERRED"):
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM items WHERE written > ? ORDER BY written", (after,))
            return [Change(*row) for row in rows], self._last()

    def prune(self, before: int) -> int:
        """Forget what was written up to a moment, once no bundle will be opened whose data end before it.

        Args:
            before: microseconds UTC, such as the end of the data of the oldest bundle still wanted.

        Returns:
            Items forgotten.
        """
        with self._lock, self._reading(), self._transaction():
            return int(self._db.execute("DELETE FROM items WHERE written <= ?", (before,)).rowcount)

    def claim(self, item_id: str, since: int) -> None:
        """Say what belongs to the store.

        Args:
            item_id: type of the ids; the first bundle decides.
            since: what the bundle knows itself, microseconds UTC. Writes from now on have higher numbers, even where
                that moment is in the future.

        Raises:
            BundleError: the store holds ids of another type.
        """
        with self._lock, self._reading(), self._transaction():
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('item_id', ?)", (item_id,))
            self._db.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'written'", (since,))
            found = self._one("SELECT value FROM meta WHERE name = 'item_id'")
        if found != item_id:
            raise BundleError(
                f"{self.path}: holds items with {found} ids, the bundle's are {item_id}; name another file"
            )

    def follow(self, follower: Any) -> None:
        """Call ``follower.refresh()`` after every write of this process, as long as somebody holds it."""
        self._followers.add(follower)

    def close(self) -> None:
        """Close the file. Retrievers go on answering; writes fail."""
        with self._lock:
            self._db.close()

    def _write(self, statement: str, rows: Callable[[int], list[tuple[Any, ...]]]) -> int:
        with self._lock, self._reading(), self._transaction():
            at = max(self._clock(), self._last() + 1)
            self._db.executemany(statement, rows(at))
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'written'", (at,))
        for follower in tuple(self._followers):
            follower.refresh()
        return at

    def _last(self) -> int:
        return int(self._one("SELECT value FROM meta WHERE name = 'written'"))

    def _pragma(self, name: str) -> Any:
        return self._one(f"PRAGMA {name}")

    def _one(self, query: str) -> Any:
        row = self._db.execute(query).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """All or nothing; it has returned, hence it is on the disk."""
        self._db.execute(f"BEGIN {kind}")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Whatever SQLite says, with the name of the file."""
        try:
            yield
        except sqlite3.Error as e:
            cure = "another process is writing" if "locked" in str(e) else "restore a copy, or name another file"
            raise BundleError(f"{self.path}: {e}; {cure}") from e
