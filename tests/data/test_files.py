"""Paths → files: single files, folders, globs and URIs; every file once, in a stable order."""

from pathlib import Path

import pytest

from data.files import resolve
from towers.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.parquet", "a.parquet", "day=1/c.csv.gz", "day=2/d.csv", "_temporary/e.csv", ".f.csv", "notes.txt",
        "_SUCCESS", "odd[1].csv", "odd1.csv",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    return tmp_path


def names(base: Path, *paths: str, source: str | None = None) -> list[str]:
    files = resolve(paths, str(base) if source is None else source)
    return [f.shown.split(str(base) + "/")[-1] for f in files]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.parquet", ["a.parquet"]),
        ("*.parquet", ["a.parquet", "b.parquet"]),
        ("day=*/*.csv*", ["day=1/c.csv.gz", "day=2/d.csv"]),
        ("day=*", ["day=1/c.csv.gz", "day=2/d.csv"]),
        ("day=[2-9]", ["day=2/d.csv"]),
        ("**/*.csv", ["day=2/d.csv", "odd1.csv", "odd[1].csv"]),
        ("day=1", ["day=1/c.csv.gz"]),
        ("odd[1].csv", ["odd[1].csv"]),  # a file that is there is no pattern
        (".", ["a.parquet", "b.parquet", "day=1/c.csv.gz", "day=2/d.csv", "odd1.csv", "odd[1].csv"]),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_path_is_a_file_a_folder_or_a_glob(folder: Path, path: str, expected: list[str], scheme: str) -> None:
    if scheme:
        path = path.replace("odd[1]", "odd%5B1%5D")  # as a URI writes it
    found = names(folder, path, source=f"{scheme}{folder}")
    assert [f.removeprefix("./") for f in found] == expected


def test_the_order_is_that_of_the_paths_and_each_file_comes_once(folder: Path) -> None:
    assert names(folder, "b.parquet", "*.parquet", "a.parquet") == ["b.parquet", "a.parquet"]


def test_absolute_paths_ignore_the_source(folder: Path) -> None:
    assert names(folder, str(folder / "a.parquet"), source="/elsewhere") == ["a.parquet"]


def test_a_uri_is_shown_as_it_was_written_and_read_under_an_alias(folder: Path) -> None:
    (file,) = resolve([f"file://{folder}/a.parquet"])
    assert file.shown == f"file://{folder}/a.parquet"
    assert file.name.startswith("arrow")
    assert file.name.endswith(f"://{folder}/a.parquet")
    assert (file.size, file.format) == (1, "parquet")


@pytest.mark.parametrize("path", ["nothing.csv", "*.jsonl", "empty", "file:///no/such/file.csv", "nosuch://x/y.csv"])
def test_nothing_there_is_an_error_that_names_the_path(folder: Path, path: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"cure: correct files") as e:
        resolve([path], str(folder))
    assert path in e.value.where


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x.pq", "parquet"), ("x.tsv", "csv"), ("x.csv.gz", "csv"), ("x.json.zst", "json"), ("x.ndjson", "json"),
        ("x.csv.bz2", None), ("x.parquet.gz", None), ("x", None), ("x.2024.csv", "csv"),
        ("part.snappy.parquet", "parquet"),
    ],
)  # fmt: skip
def test_the_name_says_the_format(tmp_path: Path, name: str, expected: str | None) -> None:
    (tmp_path / name).write_text("x")
    assert resolve([name], str(tmp_path))[0].format == expected
