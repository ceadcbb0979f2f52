"""Bad user and item tables: what stops, what counts as missing, and what the error says."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.data.worlds import SMALL, log_of, prepared, stopped, write


def test_null_and_duplicate_keys_of_a_table_stop(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", SMALL)
    write(tmp_path / "items.csv", [{"item": i, "x": 1} for i in (10, 11, None, 12, 13)])
    message = stopped(tmp_path, items={"files": "items.csv"})
    assert f"1 null keys\n  where: {tmp_path}/items.csv, column 'item', row 2 (counted from 0)" in message
    write(tmp_path / "items.csv", [{"item": i, "x": 1} for i in (10, 11, 12, 11, 13)])
    message = stopped(tmp_path, items={"files": "items.csv"})
    assert f"1 duplicate keys, the first '11'\n  where: {tmp_path}/items.csv, column 'item', row 1" in message


def test_an_empty_table_stops(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", SMALL)
    (tmp_path / "items.csv").write_text("item\n")
    assert "the item table is empty" in stopped(tmp_path, items={"files": "items.csv"})


@pytest.mark.parametrize(
    ("value", "found"),
    [(math.nan, "1 of 4 values are nan"), (math.inf, "1 of 4 values are inf"), (-math.inf, "1 of 4 values are -inf")],
)
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_nan_and_infinite_numbers(tmp_path: Path, value: float, found: str, ending: str) -> None:
    write(tmp_path / "log.parquet", SMALL)
    name = f"items.{ending}"
    write(tmp_path / name, [{"item": i, "pay": value if i == 11 else float(i)} for i in range(13, 9, -1)])
    items = {"files": name, "features": {"pay": {"kind": "numeric"}}}
    fault = "nan_feature" if math.isnan(value) else "infinite_feature"
    message = stopped(tmp_path, items=items, faults={fault: {"policy": "stop"}})
    assert found in message
    assert f"{tmp_path}/{name}, column 'pay', row 2 (counted from 0)" in message
    data = prepared(tmp_path, items=items, faults={fault: {"policy": "set_aside", "limit": 0.25}})
    assert data.info["rejected"] == {fault: 1}
    assert data.encoded("item")["pay"][:, 1].tolist() == [0, 1, 0, 0]  # missing
    (tmp_path / "out").rename(tmp_path / "old")
    assert "more than the limit of 20.00%" in stopped(
        tmp_path, items=items, faults={fault: {"policy": "set_aside", "limit": 0.2}}
    )


@pytest.mark.parametrize(
    ("column", "feature", "found"),
    [
        (["1.5", "x", "", "2"], {"kind": "numeric"}, "1 values that cannot be read, the first 'x'; expected numbers"),
        (["1|2", "1|x", "", "1|2"], {"kind": "vector", "dim": 2}, "1 values that cannot be read, the first '1|x'"),
    ],
)
def test_text_that_is_no_number_stops_instead_of_passing_for_missing(
    tmp_path: Path, column: Any, feature: Any, found: str
) -> None:
    write(tmp_path / "log.parquet", SMALL)
    write(tmp_path / "items.csv", pa.table({"item": [10, 11, 12, 13], "x": column}))
    message = stopped(tmp_path, items={"files": "items.csv", "separator": "|", "features": {"x": feature}})
    assert found in message
    assert f"{tmp_path}/items.csv, column 'x', row 1 (counted from 0)" in message


@pytest.mark.parametrize(
    ("bad", "found"),
    [([1.0, 2.0, 3.0], "[1.0, 2.0, 3.0]"), ([], "[]"), ([1.0, None], "[1.0, NULL]"), ([math.nan, 1.0], "[nan, 1.0]"),
     ([math.inf, 1.0], "[inf, 1.0]")],
)  # fmt: skip
def test_a_vector_that_is_none_stops_and_names_its_row(tmp_path: Path, bad: Any, found: str) -> None:
    write(tmp_path / "log.parquet", SMALL)
    write(tmp_path / "items.parquet", pa.table({"item": [13, 12, 11, 10], "x": [[1.0, 2.0], None, bad, [0.5, 0.5]]}))
    message = stopped(tmp_path, items={"files": "items.parquet", "features": {"x": {"kind": "vector", "dim": 2}}})
    assert f"1 vectors that are not 2 finite numbers, the first {found}" in message
    assert f"{tmp_path}/items.parquet, column 'x', row 2 (counted from 0)" in message


@pytest.mark.parametrize("field", ["posted", "expires"])
def test_a_posting_date_that_cannot_be_read_stops_instead_of_lasting_for_ever(tmp_path: Path, field: str) -> None:
    write(tmp_path / "log.parquet", SMALL)
    write(
        tmp_path / "items.csv",
        [{"item": i, "at": "2024-01-05" if i == 12 else "2024-01-05T00:00:00Z"} for i in range(10, 14)],
    )
    message = stopped(tmp_path, items={"files": "items.csv", field: "at"})
    assert "1 values that cannot be read, the first '2024-01-05'; expected a timestamp with an offset" in message
    assert "column 'at', row 2" in message


def test_numeric_posting_dates_are_in_the_unit_of_the_log(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", [{**r, "time": r["time"] + 1000} for r in SMALL])
    write(tmp_path / "items.parquet", [{"item": i, "at": 900} for i in range(10, 14)])
    seconds = {"files": "log.parquet", "time": {"column": "time", "unit": "s"}}
    data = prepared(tmp_path, events=seconds, items={"files": "items.parquet", "posted": "at"})
    posted, _ = data.item_times()
    assert posted is not None
    assert posted.tolist() == [900_000_000] * 4


@pytest.mark.parametrize(
    ("array", "feature", "found"),
    [
        (pa.array(["1", "2", "3", "4"]), {"kind": "numeric"}, "column 'x' is VARCHAR; feature x needs numbers"),
        (pa.array([[1.0]] * 4), {"kind": "numeric"}, "feature x needs numbers"),
        (pa.array(["a"] * 4), {"kind": "categorical_list"}, "feature x needs lists"),
        (pa.array([1] * 4), {"kind": "text"}, "feature x needs strings"),
        (pa.array([["a"]] * 4), {"kind": "categorical"}, "feature x needs single values"),
        (pa.array([1.0] * 4), {"kind": "vector", "dim": 1}, "feature x needs lists"),
    ],
)
def test_a_column_of_the_wrong_type_stops_before_the_log_is_sorted(
    tmp_path: Path, array: Any, feature: Any, found: str
) -> None:
    write(tmp_path / "log.parquet", SMALL)
    write(tmp_path / "items.parquet", pa.table({"item": [10, 11, 12, 13], "x": array}))
    message = stopped(tmp_path, items={"files": "items.parquet", "features": {"x": feature}})
    assert found in message
    assert f"{tmp_path}/items.parquet, column 'x'" in message


def test_ids_of_two_types_do_not_meet(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", SMALL)
    write(tmp_path / "items.parquet", pa.table({"item": ["10", "11", "12", "13"]}))
    assert "item ids are string here and int64 in the log" in stopped(tmp_path, items={"files": "items.parquet"})


def test_text_keys_take_the_type_of_the_log(tmp_path: Path) -> None:
    """A CSV catalogue whose ids all look like numbers, beside a log in which they are strings."""
    write(tmp_path / "log.parquet", [{**r, "item": str(r["item"])} for r in SMALL])
    write(tmp_path / "items.csv", [{"item": i, "x": 1} for i in range(10, 14)])
    data = prepared(tmp_path, items={"files": "items.csv"})
    assert data.schema.item_id == "string"
    assert data.ids("item").to_pylist() == ["10", "11", "12", "13"]


def test_missing_columns_are_named_wherever_they_are_missed(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", SMALL)
    write(tmp_path / "items.parquet", [{"item": i} for i in range(10, 14)])
    write(tmp_path / "long.parquet", [{"item": 10}])
    for config, column in (
        ({"events": log_of(action="what")}, "what"),
        ({"items": {"files": "items.parquet", "key": "jid"}}, "jid"),
        ({"items": {"files": "items.parquet", "attributes": ["title"]}}, "title"),
        ({"items": {"files": "items.parquet", "features": {"title": {"kind": "text"}}}}, "title"),
        ({"items": {"files": "items.parquet", "expires": "until"}}, "until"),
        ({"items": {"files": "items.parquet", "group": "family"}}, "family"),
        (
            {
                "items": {
                    "files": "items.parquet",
                    "lists": {"s": {"files": "long.parquet", "key": "item", "value": "skill"}},
                }
            },
            "skill",
        ),
    ):
        message = stopped(tmp_path, **config)
        assert f"no column '{column}'; there are" in message
