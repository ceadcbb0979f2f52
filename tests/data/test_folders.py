"""A folder is whole under its name, whatever kills the process that replaces it and whenever."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data.folders import atomic_folder, put_back

ROOT = Path(__file__).parents[2]
NOBODY = 4194305  # beyond the largest process id

# A child replaces the folder and dies before its n-th operation on files, for every n until it has none left. Between
# two of them nothing changes on the disk, so that these are all the moments that there are.
KILLED = """
import os, signal, sys
from pathlib import Path
from data import folders

target = Path(sys.argv[1]) / "out"
CALLS = ("mkdir", "open", "fsync", "rename", "unlink", "rmdir")


def write(text):
    with folders.atomic_folder(target) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a").write_text(text)
        (folder / "b").write_text(text)


def deadly(f, name, left):
    def call(*args, **kwargs):
        if not left[0]:
            print("before", name, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return f(*args, **kwargs)
    return call


def child(n):
    pid = os.fork()
    if not pid:
        left = [n]
        for name in CALLS:
            setattr(os, name, deadly(getattr(os, name), name, left))
        write("new")
        os._exit(0)
    return os.waitpid(pid, 0)[1]


write("old")
n, alive = 0, False
while not alive:
    status = child(n)
    alive = status == 0
    assert alive or status == signal.SIGKILL, status
    folders.put_back(target)
    found = {p.relative_to(target).as_posix(): p.read_text() for p in target.rglob("*") if p.is_file()}
    assert found in [{name: text for name in ("part/a", "b")} for text in ("old", "new")], (n, found)
    write("old")
    assert os.listdir(target.parent) == ["out"], (n, os.listdir(target.parent))
    n += 1
print(n, "moments")
"""


def test_a_process_killed_at_any_operation_loses_neither_the_old_folder_nor_its_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    died = done.stdout.splitlines()
    assert died.count("before rename") == 3, "away with the old one, in with the new one, and the old one to be removed"
    assert died.count("before fsync") == 5, "two files, the two folders that hold them, and the one of the name"
    last_written = len(died) - 1 - died[::-1].index("before rename")
    assert "before unlink" in died[last_written:], "nothing of the old one goes before all else is done"


def test_what_a_killed_process_left_is_cleared_away_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    living = f".out.{os.getppid()}.tmp"
    for name in (f".out.{NOBODY}.tmp", f".out.{NOBODY}.old", living, f".out-refit.{NOBODY}.tmp", "out"):
        (tmp_path / name).mkdir()
    with atomic_folder(tmp_path / "out"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"out", living, f".out-refit.{NOBODY}.tmp"}


@pytest.mark.parametrize("whose", [lambda: NOBODY, os.getpid, os.getppid], ids=["nobody", "this", "another"])
def test_the_old_folder_comes_back_whoever_has_the_number_now(tmp_path: Path, whose: Callable[[], int]) -> None:
    """In a container a process has the number of the one that was killed."""
    old = tmp_path / f".out.{whose()}.old"
    old.mkdir()
    (old / "a").write_text("old")
    with atomic_folder(tmp_path / "out"):
        assert (tmp_path / "out" / "a").read_text() == "old", "what is written may build upon it"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_is_there_is_not_replaced_by_an_older_one(tmp_path: Path) -> None:
    for name in ("out", f".out.{NOBODY}.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    put_back(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "out"


def test_a_rename_that_fails_leaves_the_old_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).suffix == ".tmp":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
