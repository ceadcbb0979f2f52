"""kill -9 in the middle of an export: nothing half-written under the final name, ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from towers.errors import ConfigError
from towers.index.publish import published

# Each child kills itself before or after the n-th call of one of the functions that an export goes through; the
# last one is left alive. Forked from one process, since importing the libraries takes longer than an export.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np, pyarrow.parquet as pq
from tests.index.small_market import Market
from towers.index.bundle import write_bundle
from towers.index.faiss_setup import faiss
from towers.index.retriever import Retriever

target, contents = Path(sys.argv[1]) / "target", Market().contents()


def deadly(f, n, before):
    def call(*args, **kwargs):
        nonlocal n
        n -= 1
        if n == 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return f(*args, **kwargs)
        finally:
            if n == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    return call


def child(f):
    pid = os.fork()
    if pid == 0:
        f()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def export(module, name, n, before):
    setattr(module, name, deadly(getattr(module, name), n, before))
    write_bundle(contents, target)


moments = [
    (os, "mkdir", 2), (os, "mkdir", 4), (os, "open", 2), (np, "save", 1), (np, "save", 5), (pq, "write_table", 2),
    (faiss, "write_index", 1), (Retriever, "open", 1), (os, "fsync", 1), (os, "fsync", 12), (os, "rename", 1),
]
for moment in moments:
    for before in (True, False):
        assert child(lambda: export(*moment, before)) == signal.SIGKILL
        visible = os.path.lexists(target)
        print(moment[1], before, "visible" if visible else "hidden", flush=True)
        if visible:
            assert child(lambda: Retriever.open(target)) == 0
            os.rename(target, Path(sys.argv[2]))
assert child(lambda: write_bundle(contents, target)) == 0
"""


def test_an_export_killed_anywhere_is_invisible_or_complete(tmp_path: Path) -> None:
    (tmp_path / "bundles").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "bundles"), str(tmp_path / "complete")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.endswith("visible")] == ["rename False visible"]
    assert len(lines) == 22
    # The last export lived, and cleaned up after all the others.
    assert [p.name for p in (tmp_path / "bundles").iterdir()] == ["target"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with published(tmp_path / "x") as folder:
            (folder / "a").write_text("a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
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
