"""Bad input, fault by fault: what stops, what is set aside with a count, and what the error says."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.worlds import SMALL, events, log_of, prepared, stopped, write

MANY = 200  # rows that are right, so that one wrong row stays below one per cent
RIGHT = events(*((u, 100 + i, 10 * i + u) for u in range(20) for i in range(10)))
ISO = "2024-01-05T10:00:{:02d}Z"


# --- rows of the log that stop -----------------------------------------------------------------------------


@pytest.mark.parametrize(("column", "row"), [("user", (None, 10, 5)), ("item", (1, None, 5))])
def test_a_null_key_stops(tmp_path: Path, column: str, row: Any) -> None:
    write(tmp_path / "log.parquet", RIGHT + events(row))
    message = stopped(tmp_path)
    assert "1 of 201 log rows: the user or the item is null" in message
    assert f"{tmp_path}/log.parquet, column '{column}', row 200 (counted from 0)" in message


@pytest.mark.parametrize(
    "value", [None, "2024-01-05T10:00:00", "2024-01-05", "soon", "1700-01-01T00:00:00Z", "2300-01-01T00:00:00Z"]
)
def test_a_time_that_cannot_be_read_or_believed_stops(tmp_path: Path, value: Any) -> None:
    rows = [{**r, "time": ISO.format(r["time"] % 60)} for r in SMALL]
    write(tmp_path / "log.csv", [*rows[:4], {**rows[4], "time": value}, rows[5]])
    message = stopped(tmp_path, events={"files": "log.csv", "time": "time"})
    assert "1 of 6 log rows: the time is null, cannot be read, is naive, or lies outside 1900-2100" in message
    assert f"column 'time', row 4 (counted from 0): user '2', item '12', time {value!r}" in message
    assert "events.time.timezone" in message


@pytest.mark.parametrize(("unit", "scale"), [("s", 1000), ("s", 1_000_000), ("ms", 1000)])
def test_a_wrong_unit_is_noticed_by_the_years(tmp_path: Path, unit: str, scale: int) -> None:
    """Milliseconds taken for seconds lie in the year 55,000."""
    seconds = {"s": 1, "ms": 1000}[unit] * 1_704_448_800
    write(tmp_path / "log.parquet", [{**r, "time": (seconds + r["time"]) * scale} for r in SMALL])
    message = stopped(tmp_path, events={"files": "log.parquet", "time": {"column": "time", "unit": unit}})
    assert "6 of 6 log rows" in message
    assert "events.time.unit" in message


def test_an_order_that_is_no_integer_stops(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", [{**r, "time": r["time"] / 2} for r in SMALL])
    message = stopped(tmp_path, events={"files": "log.parquet", "order": "time"}, split={"rule": "leave_last_out"})
    assert "column 'time', row 0" in message
    write(tmp_path / "log.parquet", [{**r, "time": r["time"] / 1} for r in SMALL])
    right = prepared(tmp_path, events={"files": "log.parquet", "order": "time"}, split={"rule": "leave_last_out"})
    assert sorted(right.examples("train", "valid", "test").time) == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("weight", [None, -1.0, math.nan, math.inf, 1e300])
def test_a_weight_that_is_none_stops(tmp_path: Path, weight: Any) -> None:
    rows: list[dict[str, Any]] = [{**r, "w": 0.5} for r in SMALL]
    rows[3]["w"] = weight
    write(tmp_path / "log.parquet", rows)
    message = stopped(tmp_path, events=log_of(weight="w"))
    assert "the weight is null, negative, NaN or infinite" in message
    assert "column 'w', row 3 (counted from 0): user '2', item '10', w " in message


@pytest.mark.parametrize("action", [None, "hire", "Click"])
def test_an_action_that_is_not_declared_stops(tmp_path: Path, action: Any) -> None:
    rows: list[dict[str, Any]] = [{**r, "what": "click"} for r in SMALL]
    rows[2]["what"] = action
    write(tmp_path / "log.parquet", rows)
    message = stopped(tmp_path, events=log_of(action="what"), actions={"click": {}, "apply": {"weight": 3}})
    assert "an action that the config does not declare" in message
    assert f"column 'what', row 2 (counted from 0): user '1', item '12', what {action!r}" in message


def test_a_split_that_no_task_names_stops(tmp_path: Path) -> None:
    rows = [{**r, "part": p} for r, p in zip(SMALL, ["train", "train", "valid", "train", "tset", "test"], strict=True)]
    write(tmp_path / "log.parquet", rows)
    message = stopped(tmp_path, events=log_of(split="part"), split={"rule": "given"})
    assert "a split that the config does not declare" in message
    assert "column 'part', row 4 (counted from 0): user '2', item '12', part 'tset'" in message


# --- rows of the log that are set aside --------------------------------------------------------------------

ITEMS = [{"item": i, "until": "2024-01-01T00:00:00Z" if i == 10 else None} for i in range(10, 14)]


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ("unknown_item", (3, 999, 7)),
        ("unknown_user", (77, 101, 7)),
        ("after_expiry", (3, 100, 1_704_067_200_000_000)),  # the very instant at which it expires
    ],
)
def test_few_wrong_rows_are_set_aside_and_counted_many_stop(tmp_path: Path, fault: str, wrong: Any) -> None:
    write(tmp_path / "users.csv", [{"user": u, "x": 1} for u in range(20)])
    until = {100: "2024-01-01T00:00:00Z"}
    write(tmp_path / "items.csv", [{"item": i, "until": until.get(i)} for i in range(100, 110)])
    tables = {"users": {"files": "users.csv"}, "items": {"files": "items.csv", "expires": "until"}}
    write(tmp_path / "log.parquet", RIGHT + events(wrong))
    data = prepared(tmp_path, **tables)
    assert data.info["rejected"][fault] == 1
    assert data.info["counts"]["log_rows"] == MANY + 1
    rejected = pq.read_table(data.folder / "rejected" / f"{fault}.parquet").to_pylist()
    user, item, time = map(str, wrong)
    file = f"{tmp_path}/log.parquet"
    assert rejected == [{"user": user, "item": item, "time": time, "file": file, "row": MANY}]

    write(tmp_path / "log.parquet", RIGHT + events(wrong) * 3)
    (tmp_path / "out").rename(tmp_path / "old")
    message = stopped(tmp_path, **tables)
    assert "3 of 203 log rows" in message
    assert "more than the limit of 1.00%" in message
    assert f"row {MANY} (counted from 0): user '{user}', item '{item}'" in message
    allowed = prepared(tmp_path, **tables, faults={fault: {"limit": 0.05}})
    assert allowed.info["rejected"][fault] == 3
    (tmp_path / "out").rename(tmp_path / "older")
    assert f"faults.{fault}" in stopped(tmp_path, **tables, faults={fault: {"policy": "stop"}})


def test_the_event_just_before_the_expiry_counts(tmp_path: Path) -> None:
    write(
        tmp_path / "items.parquet",
        pa.table({"item": [10, 11, 12, 13], "until": pa.array([2, None, 4, 4], pa.timestamp("us", "UTC"))}),
    )
    write(tmp_path / "log.parquet", SMALL)
    assert prepared(tmp_path, items={"files": "items.parquet", "expires": "until"}).info["rejected"] == {}


def test_without_a_clock_nothing_can_have_expired(tmp_path: Path) -> None:
    write(
        tmp_path / "items.parquet",
        pa.table({"item": [10, 11, 12, 13], "until": pa.array([-5] * 4, pa.timestamp("us", "UTC"))}),
    )
    write(tmp_path / "log.parquet", SMALL)
    order = {"files": "log.parquet", "order": "time"}
    data = prepared(
        tmp_path, events=order, split={"rule": "leave_last_out"}, items={"files": "items.parquet", "expires": "until"}
    )
    assert data.info["rejected"] == {}


def test_repeated_rows_are_set_aside_and_the_heaviest_stays(tmp_path: Path) -> None:
    rows = [{**r, "w": w} for r, w in zip([*SMALL, SMALL[0]], [1.0] * 6 + [3.0], strict=True)]
    write(tmp_path / "log.parquet", rows)
    data = prepared(tmp_path, events=log_of(weight="w"), faults={"duplicate": {"limit": 0.2}})
    assert data.info["rejected"] == {"duplicate": 1}
    assert data.info["counts"]["examples"] == 6
    (aside,) = pq.read_table(data.folder / "rejected" / "duplicate.parquet").to_pylist()
    assert (aside["user"], aside["item"], aside["action"], aside["weight"]) == (1, 10, "click", 1.0)
    train = data.examples("train")
    assert train.weight[(train.user == 0) & (train.item == 0)].tolist() == [3.0]
    (tmp_path / "out").rename(tmp_path / "old")
    message = stopped(tmp_path, events=log_of(weight="w"), faults={"duplicate": {"limit": 0.1}})
    assert "1 of 7 log rows: the user, item, time and action of another row" in message
    assert f"first for user 1, item 10: {tmp_path}/log.parquet row 0, {tmp_path}/log.parquet row 6" in message


def test_the_same_event_with_another_action_is_no_duplicate(tmp_path: Path) -> None:
    rows = [{**r, "what": "view"} for r in SMALL] + [{**SMALL[0], "what": "apply"}]
    write(tmp_path / "log.parquet", rows)
    data = prepared(tmp_path, events=log_of(action="what"), actions={"view": {}, "apply": {}})
    assert data.info["rejected"] == {}
    assert data.info["counts"]["examples"] == 7


def test_a_row_with_several_faults_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "items.parquet", [{"item": i} for i in range(100, 110)])
    write(tmp_path / "log.parquet", RIGHT + events((None, 999, None)))
    faults = {"null_key": {"policy": "set_aside", "limit": 0.1}}
    data = prepared(tmp_path, items={"files": "items.parquet"}, faults=faults)
    assert data.info["rejected"] == {"null_key": 1}


# --- splits, files -----------------------------------------------------------------------------------------


def test_an_empty_log_stops(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", pa.table({c: pa.array([], pa.int64()) for c in ("user", "item", "time")}))
    assert "the log has no rows" in stopped(tmp_path)
    assert "the log has no rows" in stopped(tmp_path, split={"rule": "global_time"})


def test_an_empty_part_beside_a_full_one_is_nothing_special(tmp_path: Path) -> None:
    write(tmp_path / "log" / "1.csv", SMALL)
    (tmp_path / "log" / "2.csv").write_text('"user","item","time"\n')
    data = prepared(tmp_path, events={"files": "log", "time": {"column": "time", "unit": "us"}})
    assert data.info["counts"]["log_rows"] == 6
    assert data.schema.user_id == "int64"


def test_an_empty_split_stops(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", SMALL)
    message = stopped(tmp_path, split={"rule": "leave_last_out", "min_items": 9})
    assert "no positive events in split 'test'; counts are {'train': 6, " in message


def test_a_damaged_page_names_file_column_and_rows(tmp_path: Path) -> None:
    table = pa.table({"user": range(5000), "item": range(5000), "time": range(5000)})
    path = tmp_path / "log" / "2.parquet"
    write(tmp_path / "log" / "1.parquet", table)
    pq.write_table(table, path, compression="zstd", row_group_size=1000)
    column = pq.ParquetFile(path).metadata.row_group(3).column(1)
    damaged = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    damaged[start : start + 40] = b"\xff" * 40
    path.write_bytes(damaged)
    message = stopped(tmp_path, events={"files": "log", "time": {"column": "time", "unit": "us"}})
    assert f"where: {path}, column 'item', rows 3000 to 3999" in message
    assert "1.parquet" not in message


def test_a_damaged_csv_line_far_down_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time\n" + "1,2,3\n" * 30_000 + "1,2\n")
    message = stopped(tmp_path, events={"files": "log.csv", "time": {"column": "time", "unit": "us"}})
    assert f"{tmp_path}/log.csv, line 30002" in message


def test_a_damaged_json_line_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"user": 1, "item": 2, "time": 3}\n' * 3 + '{"user": 1, "item": 2, "time"\n')
    message = stopped(tmp_path, events={"files": "log.jsonl", "time": {"column": "time", "unit": "us"}})
    assert f"{tmp_path}/log.jsonl, line 4" in message


# --- nothing is lost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "kind"),
    [
        ([2**63 - 1, -(2**63)], "int64"),
        (["00", "0"], "string"),
        (["Zoë 🦉", "zoë"], "string"),
    ],
)
def test_ids_keep_their_type_and_value(tmp_path: Path, users: Any, kind: str) -> None:
    write(tmp_path / "log.parquet", [{**r, "user": users[r["user"] - 1]} for r in SMALL])
    data = prepared(tmp_path)
    assert data.schema.user_id == kind
    assert data.ids("user").to_pylist() == sorted(users)


def test_dictionary_and_small_integer_ids(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(SMALL)
    table = table.set_column(0, "user", table["user"].cast(pa.string()).dictionary_encode())
    table = table.set_column(1, "item", table["item"].cast(pa.uint8()))
    write(tmp_path / "log.parquet", table)
    data = prepared(tmp_path)
    assert (data.schema.user_id, data.schema.item_id) == ("string", "int64")
    assert data.ids("item").to_pylist() == [10, 11, 12, 13]


def test_a_time_zone_that_is_none_is_a_setting_to_correct(tmp_path: Path) -> None:
    from towers.errors import ConfigError

    write(tmp_path / "log.parquet", SMALL)
    with pytest.raises(ConfigError, match="'Mars/Base': no such time zone"):
        prepared(tmp_path, events={"files": "log.parquet", "time": {"column": "time", "timezone": "Mars/Base"}})


def test_a_log_without_any_readable_time_is_not_called_empty(tmp_path: Path) -> None:
    """Naive text throughout, and a split that needs the clock."""
    write(tmp_path / "log.csv", [{**row, "time": "2024-01-01 08:00:00"} for row in SMALL])
    message = stopped(tmp_path, events={"files": "log.csv", "time": "time"}, split={"rule": "global_time"})
    assert "6 of 6 log rows: the time is null, cannot be read, is naive" in message
