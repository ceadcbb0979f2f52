"""kill -9 in the middle of an export: nothing half-written under the final name, ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from towers.errors import ConfigError
from towers.index.publish import published

# Each child kills itself at a chosen system call of the export, the rename and the calls around it included.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.index.small_market import Market
from towers.index.bundle import write_bundle

folder, contents = Path(sys.argv[1]), Market().contents()
moments = 0


def counted(f, limit):
    def call(*args, **kwargs):
        step()
        out = f(*args, **kwargs)
        step()
        return out

    def step():
        global moments
        moments += 1
        if moments == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    return call


def export(limit):
    for name in ("open", "fsync", "rename", "mkdir"):
        setattr(os, name, counted(getattr(os, name), limit))
    write_bundle(contents, folder / "target")


limit, survived = 0, False
while not survived:
    limit += 3
    pid = os.fork()
    if pid == 0:
        export(limit)
        os._exit(0)
    survived = os.waitpid(pid, 0)[1] == 0
    print(limit, survived, os.path.lexists(folder / "target"), len(list(folder.iterdir())), flush=True)
    if os.path.lexists(folder / "target") and not survived:
        from towers.index.retriever import Retriever
        child = os.fork()
        if child == 0:
            Retriever.open(folder / "target")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        os.rename(folder / "target", folder.parent / f"complete{limit}")
"""


def test_an_export_killed_anywhere_is_invisible_or_complete(tmp_path: Path) -> None:
    (tmp_path / "bundles").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "bundles")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rounds = [line.split() for line in done.stdout.splitlines()]
    assert len(rounds) > 10
    assert rounds[-1][1:] == ["True", "True", "1"]  # the last one lived, and cleaned up after all the others
    assert all(int(count) <= 2 for *_, count in rounds)


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), published(tmp_path / "x") as folder:
        (folder / "a").write_text("a")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with published(tmp_path / "x") as first:
        (first / "a").write_text("first")
        with published(tmp_path / "x") as second:
            assert first.exists()
            (second / "a").write_text("second")
        with pytest.raises(ConfigError, match="never overwritten"), published(tmp_path / "x"):
            pass
        first_folder = first
        (tmp_path / "x" / "a").unlink()
        (tmp_path / "x").rmdir()
    assert (tmp_path / "x" / "a").read_text() == "first"
    assert not first_folder.exists()


def test_names_with_pattern_characters_and_links(tmp_path: Path) -> None:
    with published(tmp_path / "a[1]*") as folder:
        (folder / "f").write_text("")
    assert (tmp_path / "a[1]*" / "f").exists()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists"), published(tmp_path / "dangling"):
        pass
