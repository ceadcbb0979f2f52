"""The store's file: what it refuses, and that its numbers grow."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from towers.errors import BundleError
from towers.index.live_store import Item, LiveStore

ONE = Item(7, "{}", b"\0" * 4, None, "space")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "catalogue.sqlite"
    with closing(LiveStore(path)) as store:
        store.claim("int64", 0)
        store.upsert([ONE._replace(item=i, fields="x" * 100) for i in range(2000)])
    return path


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 3 + 64] = b"\xff" * 64
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.write_bytes(b"not a database, whatever its name says" * 40), "file is not a database"),
        (lambda p: p.write_bytes(p.read_bytes()[:5000]), "malformed|damaged"),
        (flip, "malformed|damaged"),
        (lambda p: change(p, "PRAGMA user_version = 2"), "version 2; this program reads version 1"),
        (lambda p: change(p, "PRAGMA application_id = 5"), "no live catalogue of Towers"),
        (lambda p: change(p, "DROP TABLE items"), "no such table"),
        (lambda p: change(p, "DELETE FROM meta"), "damaged"),
        (lambda p: change(p, "ALTER TABLE items RENAME COLUMN vector TO v"), "no such column"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused_by_its_name(
    path: Path, damage: Callable[[Path], object], says: str
) -> None:
    damage(path)
    with pytest.raises(BundleError, match=says) as refused:
        LiveStore(path)
    assert str(path) in str(refused.value)


def test_a_foreign_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    change(path, "CREATE TABLE t (x)")
    was = path.read_bytes()
    with pytest.raises(BundleError, match="no live catalogue"):
        LiveStore(path)
    assert path.read_bytes() == was


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        LiveStore(tmp_path / "no" / "catalogue.sqlite")


def test_numbers_grow_whatever_the_clock_does(tmp_path: Path) -> None:
    times = iter([50, 50, 10, 70])
    with closing(LiveStore(tmp_path / "s.sqlite", clock=lambda: next(times))) as store:
        numbers = [store.upsert([ONE]), store.delete([7]), store.expire([7], 9), store.upsert([ONE])]
    assert numbers == [50, 51, 52, 70]


def test_changes_are_the_newest_states_after_a_number(tmp_path: Path) -> None:
    times = iter([1, 2, 3, 4])
    with closing(LiveStore(tmp_path / "s.sqlite", clock=lambda: next(times))) as store:
        store.upsert([ONE, ONE._replace(item=8)])
        store.expire([7], 99)
        store.delete([9])
        store.upsert([ONE._replace(item=8)])
        changes, last = store.changes(0)
        assert [(x.item, x.written, x.set_at, x.deleted, x.expire_at, x.expires) for x in changes] == [
            (7, 2, 1, 0, 2, 99), (9, 3, 3, 1, None, None), (8, 4, 4, 0, None, None),
        ]  # fmt: skip
        assert last == 4
        assert [x.item for x in store.changes(3)[0]] == [8]
        assert store.prune(3) == 2
        assert [x.item for x in store.changes(0)[0]] == [8]


def test_the_file_is_in_wal_mode_and_every_commit_reaches_the_disk(path: Path) -> None:
    with closing(LiveStore(path)) as store:
        assert (store._pragma("journal_mode"), store._pragma("synchronous")) == ("wal", 2)  # 2: FULL
        store.close()
        with pytest.raises(BundleError, match="closed"):
            store.delete([1])
