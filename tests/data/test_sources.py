"""Readers: the same rows from Parquet, CSV and JSON Lines, locally and through a pyarrow filesystem."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from data.files import unregister
from data.sources import Source, open_source
from data.values import id_type, timestamp_sql
from tests.data.worlds import write
from towers.errors import ConfigError, DataError

ROWS = [{"user": "007", "item": 3, "note": "a\nb"}, {"user": "8", "item": 4, "note": 'say "hi", ok'}]


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("SET TimeZone='UTC'")
    yield connection
    unregister(connection)
    connection.close()


def rows(con: duckdb.DuckDBPyConnection, s: Source) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = con.sql(f"SELECT * FROM {s.sql}").to_arrow_table().to_pylist()
    return out


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("ending", ["parquet", "csv", "csv.gz", "jsonl", "jsonl.gz"])
def test_every_format_gives_the_same_rows(con: Any, tmp_path: Path, ending: str, scheme: str) -> None:
    """Ids keep their zeros, quoted newlines and quotes survive, compressed or not, local or not."""
    write(tmp_path / f"log.{ending}", ROWS)
    s = open_source(con, [f"log.{ending}"], f"{scheme}{tmp_path}")
    found = rows(con, s)
    assert [{**r, "item": int(r["item"])} for r in found] == ROWS
    assert s.text == ("csv" in ending)
    assert id_type(con, s, "user") == "string"
    assert id_type(con, s, "item") == "int64"
    assert s.files[0].shown == f"{scheme}{tmp_path}/log.{ending}"


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("paths", [["."], ["*"], ["1.X", "2.X"], ["[12].X"]])
def test_folders_globs_and_several_files(con: Any, tmp_path: Path, ending: str, scheme: str, paths: list[str]) -> None:
    write(tmp_path / f"2.{ending}", ROWS[1:])
    write(tmp_path / f"1.{ending}", ROWS[:1])
    s = open_source(con, [p.replace("X", ending) for p in paths], f"{scheme}{tmp_path}")
    assert [r["user"] for r in rows(con, s)] == ["007", "8"]
    placed = con.execute(f"SELECT user, _file, _row FROM {s.positioned()}").fetchall()
    shown = [f.shown.replace("/./", "/") for f in s.files]
    assert [(u, f.replace("/./", "/"), r) for u, f, r in placed] == [("007", shown[0], 0), ("8", shown[1], 0)]
    assert shown == [f"{scheme}{tmp_path}/{i}.{ending}" for i in (1, 2)]


def test_no_csv_line_is_a_comment_and_none_is_skipped(con: Any, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b',item\r\n#1,2\r\n#2,\r\n"#3",4\r\n')
    found = rows(con, open_source(con, ["x.csv"], str(tmp_path)))
    assert found == [
        {"column0": "#1", "item": "2"},
        {"column0": "#2", "item": None},
        {"column0": "#3", "item": "4"},
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_first_line_says_what_separates_columns(con: Any, tmp_path: Path, delimiter: str) -> None:
    text = "user,skills,item\n1,a:b,2\n".replace(",", delimiter)
    (tmp_path / "x.csv").write_text(text)
    assert rows(con, open_source(con, ["x.csv"], str(tmp_path))) == [{"user": "1", "skills": "a:b", "item": "2"}]


def test_a_separator_inside_a_csv_field_is_not_taken_for_the_delimiter(con: Any, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("item\na|b\nc|d\n")
    assert rows(con, open_source(con, ["x.csv"], str(tmp_path))) == [{"item": "a|b"}, {"item": "c|d"}]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_empty_csv_fields_are_null_and_words_like_na_are_not(con: Any, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "x.csv").write_text('a,b,c\n,"",NA\nnull,nan,None\n')
    assert rows(con, open_source(con, ["x.csv"], f"{scheme}{tmp_path}")) == [
        {"a": None, "b": None, "c": "NA"},
        {"a": "null", "b": "nan", "c": "None"},
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_column(con: Any, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("user,item\nä,2\n".encode("utf-8-sig"))
    assert rows(con, open_source(con, ["x.csv"], str(tmp_path))) == [{"user": "ä", "item": "2"}]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_json_strings_that_look_like_dates_stay_strings(con: Any, tmp_path: Path, scheme: str) -> None:
    row = {
        "d": "2024-01-05",
        "t": "2024-01-05 10:00:00",
        "many": ["2024-01-05"],
        "u": "6f1b9a52-7d7e-4a7e-9d39-3f6f3f6f3f6f",
    }
    write(tmp_path / "x.jsonl", [row])
    s = open_source(con, ["x.jsonl"], f"{scheme}{tmp_path}")
    assert rows(con, s) == [row]
    assert s.columns == {"d": "VARCHAR", "t": "VARCHAR", "many": "VARCHAR[]", "u": "VARCHAR"}


def test_a_json_column_that_changes_its_type_late_is_an_error_that_names_the_row(con: Any, tmp_path: Path) -> None:
    """Types are not guessed from the first lines: a reader that did would round or cast the rest."""
    (tmp_path / "x.jsonl").write_text('{"user": 1}\n' * 30_000 + '{"user": "x"}\n')
    s = open_source(con, ["x.jsonl"], str(tmp_path))
    with pytest.raises(DataError, match=r"'user' holds values of several types: .*VARCHAR .*row 30000\)"):
        s.require(["user"], "events")
    (tmp_path / "y.jsonl").write_text('{"user": 1}\n' * 30_000 + '{"user": 1.5}\n')
    with pytest.raises(DataError, match="id column 'user' is DOUBLE"):
        id_type(con, open_source(con, ["y.jsonl"], str(tmp_path)), "user")


def test_a_json_column_of_nulls_is_empty_text(con: Any, tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", [{"user": 1, "field": None}])
    s = open_source(con, ["x.jsonl"], str(tmp_path))
    s.require(["field"], "users.features")
    assert rows(con, s) == [{"user": 1, "field": None}]


# --- damaged and inconsistent files ------------------------------------------------------------------------


def refused(con: Any, folder: Path, *paths: str) -> str:
    with pytest.raises(DataError) as e:
        rows(con, open_source(con, paths, str(folder)))
    assert e.value.cure
    return str(e.value)


def test_an_empty_file_is_named(con: Any, tmp_path: Path) -> None:
    for name in ("x.parquet", "x.csv", "x.jsonl"):
        (tmp_path / name).write_text("")
        assert f"0 bytes)\n  where: {tmp_path}/{name}" in refused(con, tmp_path, name)


def test_a_truncated_parquet_file_is_named(con: Any, tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", ROWS)
    (tmp_path / "2.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-20])
    message = refused(con, tmp_path, "*.parquet")
    assert "not a readable Parquet file" in message
    assert "2.parquet" in message


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (pa.table({"user": ["1"], "item": [1]}), "column 'user' is string, but int64 in"),
        (pa.table({"user": pa.array([1], pa.int32()), "item": [1]}), "column 'user' is int32, but int64 in"),
        (pa.table({"user": [1]}), "column 'item' is absent, but int64 in"),
    ],
)
def test_parquet_files_of_one_table_agree(con: Any, tmp_path: Path, table: pa.Table, found: str) -> None:
    write(tmp_path / "1.parquet", pa.table({"user": [1], "item": [1]}))
    write(tmp_path / "2.parquet", table)
    message = refused(con, tmp_path, "*.parquet")
    assert found in message
    assert f"where: {tmp_path}/2.parquet, column" in message


def test_csv_files_of_one_table_agree(con: Any, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("user,item\n1,2\n")
    (tmp_path / "2.csv").write_text("user,job\n1,2\n")
    assert "columns ['user', 'job'] separated by ','; expected ['user', 'item']" in refused(con, tmp_path, "*.csv")
    for text in ("user;item\n1;2\n", "item,user\n1,2\n"):
        (tmp_path / "2.csv").write_text(text)
        assert f"where: {tmp_path}/2.csv, line 1" in refused(con, tmp_path, "*.csv")
    (tmp_path / "2.csv").write_text("user,user\n1,2\n")
    assert "several columns are named 'user'" in refused(con, tmp_path, "2.csv")


@pytest.mark.parametrize(
    ("lines", "line"),
    [("1,2\n3\n", 3), ("1,2\n3,4,5\n", 3), ('1,"a"b\n', 2), ("1,2\n" * 30_000 + "3\n", 30_002)],
    ids=["too few", "too many", "stray quote", "late"],
)
def test_a_corrupt_csv_line_is_named(con: Any, tmp_path: Path, lines: str, line: int) -> None:
    (tmp_path / "0.csv").write_text("user,item\n1,2\n")
    (tmp_path / "x.csv").write_text("user,item\n" + lines)
    s = refused_late(con, tmp_path, "*.csv")
    assert f"x.csv, line {line}" in s


def test_text_that_is_not_utf8_is_named(con: Any, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"user,item\n1,\xff\xfe\n")
    assert "x.csv, line 2" in refused_late(con, tmp_path, "x.csv")
    (tmp_path / "y.csv").write_bytes(b"user,\xff\xfe\n1,2\n")
    assert "y.csv, line 1" in refused_late(con, tmp_path, "y.csv")
    (tmp_path / "z.csv.gz").write_bytes(b"user,item\n1,2\n")
    assert "z.csv.gz, line 1" in refused_late(con, tmp_path, "z.csv.gz")


def test_a_corrupt_json_line_is_named(con: Any, tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text('{"user": 1}\n')
    (tmp_path / "x.jsonl").write_text('{"user": 1}\n{"user": 2\n{"user": 3}\n')
    message = refused_late(con, tmp_path, "*.jsonl")
    assert "x.jsonl, line" in message


def refused_late(con: Any, folder: Path, *paths: str) -> str:
    """Damage that only a full read can find, told as ``prepare`` tells it."""
    from data.damage import READ_ERRORS, unreadable
    from data.files import resolve

    try:
        rows(con, open_source(con, paths, str(folder)))
    except DataError as e:
        return str(e)
    except READ_ERRORS as e:
        return str(unreadable(e, resolve(paths, str(folder))))
    raise AssertionError("nothing was refused")


def test_formats_do_not_mix_and_unknown_ones_are_refused(con: Any, tmp_path: Path) -> None:
    write(tmp_path / "x.csv", ROWS)
    write(tmp_path / "x.parquet", ROWS)
    (tmp_path / "x.xlsx").write_text("x")
    with pytest.raises(ConfigError, match="several formats"):
        open_source(con, ["."], str(tmp_path))
    with pytest.raises(ConfigError, match="unknown format"):
        open_source(con, ["x.xlsx"], str(tmp_path))


def test_a_missing_column_is_named_with_those_that_are_there(con: Any, tmp_path: Path) -> None:
    write(tmp_path / "x.csv", ROWS)
    with pytest.raises(DataError, match=r"no column 'uid'; there are \['item', 'note', 'user'\]"):
        open_source(con, ["x.csv"], str(tmp_path)).require(["uid"], "events")


# --- ids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "9223372036854775807"], "int64"),
        (["1", None], "int64"),
        (["1", "02"], "string"),
        (["1", "1.0"], "string"),
        (["1", "+1"], "string"),
        (["1", "-0"], "string"),
        (["1", " 1"], "string"),
        (["1", "9223372036854775808"], "string"),
        ([None, None], None),
    ],
)
def test_csv_ids_are_integers_only_if_they_read_back_the_same(con: Any, tmp_path: Path, values: Any, kind: Any) -> None:
    write(tmp_path / "x.csv", [{"user": v, "n": 1} for v in values])
    assert id_type(con, open_source(con, ["x.csv"], str(tmp_path)), "user") == kind


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array([1.0]), "DOUBLE"),
        (pa.array([True]), "BOOLEAN"),
        (pa.array([1], pa.decimal128(10, 0)), "DECIMAL"),
        (pa.array([1], pa.timestamp("us")), "TIMESTAMP"),
        (pa.array([b"x"], pa.binary()), "BLOB"),
        (pa.array([[1]]), r"BIGINT\[\]"),
    ],
)
@pytest.mark.parametrize("declared", [None, "int64", "string"])
def test_what_is_neither_integer_nor_string_is_no_id(
    con: Any, tmp_path: Path, array: Any, kind: str, declared: Any
) -> None:
    write(tmp_path / "x.parquet", pa.table({"user": array}))
    s = open_source(con, ["x.parquet"], str(tmp_path))
    with pytest.raises(
        DataError, match=rf"id column 'user' is {kind}.*; expected integers or strings\n.*column 'user'"
    ):
        id_type(con, s, "user", declared)


def test_unsigned_ids_beyond_int64_stop_and_can_be_kept_as_strings(con: Any, tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", pa.table({"user": pa.array([1, 2**63], pa.uint64())}))
    s = open_source(con, ["x.parquet"], str(tmp_path))
    with pytest.raises(DataError, match=r"id 9223372036854775808 does not fit.*\n.*column 'user', row 1"):
        id_type(con, s, "user")
    assert id_type(con, s, "user", "string") == "string"
    write(tmp_path / "y.parquet", pa.table({"user": pa.array([1, 2**63 - 1], pa.uint64())}))
    assert id_type(con, open_source(con, ["y.parquet"], str(tmp_path)), "user") == "int64"


@pytest.mark.parametrize("bad", ["007", "1.5", "x", " 1"])
def test_a_declared_type_never_changes_an_id(con: Any, tmp_path: Path, bad: str) -> None:
    write(tmp_path / "x.csv", [{"user": "1", "n": 1}, {"user": bad, "n": 1}])
    s = open_source(con, ["x.csv"], str(tmp_path))
    with pytest.raises(DataError, match=rf"id '{bad}' is no 64-bit integer\n.*column 'user', row 1 \(counted from 0\)"):
        id_type(con, s, "user", "int64")
    assert id_type(con, s, "user", "string") == "string"


# --- time --------------------------------------------------------------------------------------------------

JAN_5_10H = 1_704_448_800_000_000


def parsed(
    con: Any, folder: Path, values: Any, unit: str | None = None, zone: str | None = None, name: str = "x.csv"
) -> Any:
    table = values if isinstance(values, pa.Table) else pa.table({"t": values, "n": [1] * len(values)})
    write(folder / name, table)
    s = open_source(con, [name], str(folder))
    sql = timestamp_sql("t", s, unit, zone, "events.time")
    return [r[0] for r in con.execute(f"SELECT {sql} FROM {s.sql}").fetchall()]


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("2024-01-05T10:00:00Z", JAN_5_10H),
        ("2024-01-05 10:00Z", JAN_5_10H),
        ("2024-01-05T12:00:00+02:00", JAN_5_10H),
        ("2024-01-05T12:00:00+0200", JAN_5_10H),
        ("2024-01-05 12:00:00+02", JAN_5_10H),
        ("2024-01-05T10:00:00.000001Z", JAN_5_10H + 1),
        ("2024-01-05 10:00:00 UTC", JAN_5_10H),
        ("2024-01-05T10:00:00", None),  # naive
        ("2024-01-05", None),  # naive, though its end looks like an offset
        ("2024-02-30T10:00:00Z", None),
        ("yesterday", None),
        ("1704448800", None),
    ],
)
def test_text_says_an_instant_only_with_an_offset(con: Any, tmp_path: Path, text: str, us: int | None) -> None:
    assert parsed(con, tmp_path, [text]) == [us]


def test_a_zone_says_what_naive_text_means_and_leaves_the_rest_alone(con: Any, tmp_path: Path) -> None:
    text = ["2024-01-05T11:00:00", "2024-01-05T10:00:00Z", "2024-01-05"]
    midnight = JAN_5_10H - 11 * 3_600_000_000
    assert parsed(con, tmp_path, text, zone="Europe/Berlin") == [JAN_5_10H, JAN_5_10H, midnight]


@pytest.mark.parametrize(
    ("array", "unit", "us"),
    [
        (pa.array([1_704_448_800]), "s", JAN_5_10H),
        (pa.array([1_704_448_800_000], pa.uint64()), "ms", JAN_5_10H),
        (pa.array([JAN_5_10H]), "us", JAN_5_10H),
        (pa.array([1_704_448_800.25]), "s", JAN_5_10H + 250_000),
        (pa.array(["1704448800.25"]).cast(pa.decimal128(20, 2)), "s", JAN_5_10H + 250_000),
        (pa.array(["1704448800"]), "s", JAN_5_10H),
        (pa.array([2**62]), "s", None),  # would overflow
        (pa.array([float("nan")]), "s", None),
        (pa.array([float("inf")]), "s", None),
        (pa.array(["x"]), "s", None),
        (pa.array([1_704_448_800], pa.timestamp("s", "UTC")), None, JAN_5_10H),
        (pa.array([JAN_5_10H * 1000], pa.timestamp("ns", "Europe/Berlin")), None, JAN_5_10H),
    ],
)
def test_numbers_with_a_unit_are_exact(con: Any, tmp_path: Path, array: Any, unit: Any, us: int | None) -> None:
    assert parsed(con, tmp_path, pa.table({"t": array}), unit, name="x.parquet") == [us]


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (pa.array([1], pa.timestamp("us")), "naive TIMESTAMP"),
        (pa.array([1], pa.date32()), "naive DATE"),
        (pa.array([1_704_448_800]), "'t' is BIGINT; expected timestamps"),
        (pa.array([1.0]), "'t' is DOUBLE"),
        (pa.array([True]), "'t' is BOOLEAN"),
    ],
)
def test_naive_types_and_numbers_without_a_unit_stop(con: Any, tmp_path: Path, array: Any, found: str) -> None:
    with pytest.raises(DataError, match=rf"{found}.*\n.*x.parquet, column 't'\n.*cure: set events.time"):
        parsed(con, tmp_path, pa.table({"t": array}), name="x.parquet")


def test_a_zone_says_what_naive_types_mean(con: Any, tmp_path: Path) -> None:
    naive = pa.table({"t": pa.array([JAN_5_10H + 3_600_000_000], pa.timestamp("us"))})
    assert parsed(con, tmp_path, naive, zone="Europe/Berlin", name="x.parquet") == [JAN_5_10H]
