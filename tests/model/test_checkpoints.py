"""A checkpoint is whole or not there; a damaged one is noticed, and the one before it stands in."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.errors import DataError
from towers.model import checkpoints
from towers.model.checkpoints import DAMAGED, LAST, PREVIOUS, damage, newest, read, write


def state(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"table": torch.full((40, 3), float(step)), "bias": torch.arange(7)}}


def saved(folder: Path, *steps: int) -> Path:
    """A run's checkpoints after these steps."""
    for step in steps:
        write(state(step), folder / LAST, keep=folder / PREVIOUS)
    return folder / LAST


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/x.ckpt"
    write(state(3), path)
    assert read(path)["global_step"] == 3
    assert torch.equal(read(path)["state_dict"]["table"], torch.full((40, 3), 3.0))


@pytest.mark.parametrize("mmap", [False, True])
def test_other_programs_read_it_as_they_read_any(mmap: bool, tmp_path: Path) -> None:
    assert torch.load(saved(tmp_path, 3), weights_only=True, mmap=mmap)["global_step"] == 3


def test_checkpoints_of_torch_alone_are_read_too(tmp_path: Path) -> None:
    torch.save(state(3), tmp_path / LAST)
    assert read(tmp_path / LAST)["global_step"] == 3
    place = (tmp_path / LAST).read_bytes().index(state(3)["state_dict"]["table"].numpy().tobytes())
    flip(tmp_path / LAST, 8 * place)
    assert torch.load(tmp_path / LAST)["state_dict"]["table"][0, 0] != 3.0, "torch itself does not notice"
    with pytest.raises(DataError, match="does not match its CRC-32"):
        read(tmp_path / LAST)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "x.ckpt"
    write(state(3), path)
    return path.read_bytes()


def noticed_or_harmless(content: bytes, path: Path) -> bool:
    """Whether a file is called damaged, or gives what was written."""
    path.write_bytes(content)
    return damage(path) is not None or torch.equal(read(path)["state_dict"]["table"], state(3)["state_dict"]["table"])


def test_a_flipped_bit_is_noticed_or_harmless(whole: bytes, tmp_path: Path) -> None:
    path, unnoticed = tmp_path / "x.ckpt", 0
    for place in range(0, 8 * len(whole), 37):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        assert noticed_or_harmless(content, path), place
        unnoticed += damage(path) is None
    assert unnoticed <= 8 * len(checkpoints._MARK) // 37 + 1, "only where the digest is announced"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(share=st.floats(0, 1, exclude_max=True), zeros=st.booleans())
def test_a_torn_file_is_noticed_or_harmless(
    share: float, zeros: bool, whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    left = int(share * len(whole))
    # what did not come to the disk is missing, or is there and empty
    content = whole[:left] + bytes(len(whole) - left if zeros else 0)
    assert noticed_or_harmless(content, tmp_path_factory.getbasetemp() / "torn.ckpt"), left


@given(noise=st.binary(max_size=200))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_bytes_are_judged(noise: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.ckpt"
    for content in (noise, b"PK\x03\x04" + noise, noise + b"PK\x05\x06" + noise):
        path.write_bytes(content)
        assert damage(path) is not None


def test_nothing_is_newest_where_nothing_was_saved(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "absent") is None


def test_the_last_is_newest(tmp_path: Path) -> None:
    path = newest(saved(tmp_path, 1, 2).parent)
    assert path is not None
    assert read(path)["global_step"] == 2
    assert read(tmp_path / PREVIOUS)["global_step"] == 1


def test_a_damaged_last_gives_way_to_the_previous_and_never_replaces_it(tmp_path: Path) -> None:
    flip(saved(tmp_path, 1, 2), 1000)
    for _ in range(2):
        assert newest(tmp_path) == tmp_path / PREVIOUS
        assert {p.name for p in tmp_path.iterdir()} == {PREVIOUS, DAMAGED}
    saved(tmp_path, 3)
    assert [read(tmp_path / name)["global_step"] for name in (LAST, PREVIOUS)] == [3, 1]


def test_no_whole_checkpoint_is_an_error_each_time(tmp_path: Path) -> None:
    flip(saved(tmp_path, 1), 1000)
    for _ in range(2):
        with pytest.raises(DataError, match=r"(?s)last.ckpt: its contents.*cure: restore last.ckpt"):
            newest(tmp_path)


def test_a_damaged_file_is_not_read(tmp_path: Path) -> None:
    flip(saved(tmp_path, 1), 1000)
    with pytest.raises(DataError, match=r"(?s)SHA-256.*where: .*last.ckpt.*cure: restore"):
        read(tmp_path / LAST)


class Disk:
    """Fails at the ``n``-th thing that is asked of it; a write that fails has written half."""

    def __init__(self, n: int | None, number: int = errno.ENOSPC) -> None:
        self.n, self.number, self.asked = n, number, 0

    def ask(self) -> None:
        self.asked += 1
        if self.asked == self.n:
            raise OSError(self.number, os.strerror(self.number))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """All writes, flushes and renames go through this disk."""
        opened, fsync, replace = Path.open, os.fsync, Path.replace

        def syncing(descriptor: int) -> None:
            self.ask()
            fsync(descriptor)

        def replacing(path: Path, target: Path) -> Path:
            self.ask()
            return replace(path, target)

        def opening(path: Path, *args: Any, **named: Any) -> Any:
            self.ask()
            return DiskFile(self, opened(path, *args, **named))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "open", opening)
            patch.setattr(os, "fsync", syncing)
            patch.setattr(Path, "replace", replacing)
            yield


class DiskFile:
    def __init__(self, disk: Disk, file: Any) -> None:
        self.disk, self.file = disk, file

    def write(self, data: Any) -> int:
        try:
            self.disk.ask()
        except OSError:
            self.file.write(bytes(data)[: len(data) // 2])
            raise
        return int(self.file.write(data))

    def flush(self) -> None:
        self.disk.ask()
        self.file.flush()

    def fileno(self) -> int:
        return int(self.file.fileno())

    def __enter__(self) -> "DiskFile":
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()


def operations(folder: Path) -> int:
    """How often the disk is asked when a third checkpoint is saved."""
    saved(folder, 1, 2)
    with (disk := Disk(None)).in_use():
        saved(folder, 3)
    return disk.asked


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_whichever_operation_fails_a_good_checkpoint_is_left(number: int, tmp_path: Path) -> None:
    many = operations(tmp_path / "counted")
    assert many > 20
    for n in range(1, many + 1):
        folder = tmp_path / str(n)
        saved(folder, 1, 2)
        with Disk(n, number).in_use(), pytest.raises(DataError, match="could not be written") as told:
            saved(folder, 3)
        assert os.strerror(number) in str(told.value)
        path = newest(folder)
        assert path is not None
        assert read(path)["global_step"] == (3 if n == many else 2)  # the last is the flush of the folder
        assert {p.name for p in folder.iterdir()} <= {LAST, PREVIOUS}, "nothing half-written takes up space"
        saved(folder, 4)  # there is space again
        assert read(folder / LAST)["global_step"] == 4


def test_what_is_no_fault_of_the_disk_is_not_blamed_on_it(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(AttributeError, match="lambda"):
        write({"state": lambda: None}, tmp_path / LAST)
    assert read(tmp_path / LAST)["global_step"] == 1
