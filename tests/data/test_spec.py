"""A data config is checked as a whole before any work starts; every mistake names the setting."""

from typing import Any

import pytest

from data.blocks import Limit, SplitSpec
from data.settings import strict
from data.spec import DatasetSpec
from towers.errors import ConfigError

LOG = {"files": "log.parquet", "time": "time"}


def parse(**config: Any) -> DatasetSpec:
    return DatasetSpec.parse({"name": "x", "events": LOG, "split": {"rule": "global_time"}, **config})


def mistakes(**config: Any) -> str:
    with pytest.raises(ConfigError) as e:
        parse(**config)
    return str(e.value)


def test_the_least_that_has_to_be_said() -> None:
    spec = parse()
    assert spec.split_names == ("train", "valid", "test")
    assert {n: (t.targets, t.exclude, t.candidates, t.unit) for n, t in spec.tasks} == {
        "valid": (("valid",), ("train",), "all", "user"),
        "test": (("test",), ("train", "valid"), "all", "user"),
    }
    assert [(a.name, a.weight, a.history) for a in spec.actions] == [("click", 1.0, True)]
    assert (spec.users.key, spec.items.key, spec.events.clock) == ("user", "item", "time")


def test_numbers_as_names_of_actions_are_text_as_in_the_log() -> None:
    assert [a.name for a in parse(actions={4: {}, 5: {"weight": 2}}).actions] == ["4", "5"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"event": {}}, "data: unknown settings ['event']"),
        ({"events": {}}, "events: set files to the path of the log"),
        ({"events": {**LOG, "usr": "u"}}, "events: unknown settings ['usr']; known are"),
        ({"events": {**LOG, "time": {"unit": "s"}}}, "events.time: set column"),
        (
            {"events": {**LOG, "time": {"column": "t", "unit": "min"}}},
            "events.time: unit is 'min'; expected one of ['s', 'ms', 'us']",
        ),
        ({"events": {**LOG, "order": "n"}}, "events: set time or order, not both"),
        ({"events": {**LOG, "types": {"usr": "string"}}}, "events.types: ['usr'] are no id columns"),
        ({"events": {**LOG, "types": {"user": "uuid"}}}, "events.types: 'uuid'; ids are int64 or string"),
        ({"items": {"files": "i.csv", "types": {"item": "int"}}}, "items.types: 'int'; ids are int64 or string"),
        (
            {"split": {"rule": "leave_one_out"}},
            "split: rule is 'leave_one_out'; expected one of ['given', 'leave_last_out'",
        ),
        ({"split": {"rule": "given"}}, "split.rule given: name a split for each file"),
        (
            {"split": {"rule": "global_time", "valid": "soon"}},
            "split.valid: 'soon' is neither an ISO instant, nor days",
        ),
        ({"split": {"rule": "global_time", "test": 1.5}}, "split.test: 1.5 is neither"),
        ({"split": {"rule": "cold_items", "valid": "7d"}}, "valid '7d' and test 0.2 must be shares"),
        ({"split": {"rule": "random_per_user", "valid": 0.5, "test": 0.5}}, "must be shares that leave some to train"),
        ({"split": {"rule": "leave_last_out", "min_items": 0}}, "split.min_items must be at least 1"),
        ({"split": {"rule": "global_time", "seed": "a"}}, "split: seed is 'a'; expected int"),
        ({"events": {"files": {"train": "a", "test": "b"}}}, "the log already names its splits; use split.rule=given"),
        ({"events": {"files": "x"}}, "split.rule global_time: set events.time"),
        ({"events": {"files": "x"}, "split": {"rule": "leave_last_out"}}, "set events.time or events.order"),
        ({"actions": {"view": {"weight": 0}}}, "no action has a positive weight"),
        ({"actions": {"view": {}, "hide": {"weight": -1}}}, "weights must not be negative"),
        ({"actions": {"view": {"weight": "heavy"}}}, "actions.view: weight is 'heavy'; expected float"),
        (
            {"tasks": {"valid": {"targets": ["vaild"]}}},
            "tasks.valid: no split 'vaild'; there are ['test', 'train', 'valid']",
        ),
        ({"tasks": {"valid": {"exclude": ["trian"]}}}, "tasks.valid: no split 'trian'"),
        (
            {"tasks": {"valid": {"unit": "session"}}},
            "tasks.valid: unit is 'session'; expected one of ['user', 'event']",
        ),
        (
            {"tasks": {"valid": {"candidates": "live"}}},
            "candidates live needs events.time and items.posted or items.expires",
        ),
        ({"tasks": {"valid": {"exclude_groups": True}}}, "tasks.valid: exclude_groups needs items.group"),
        ({"tasks": {"test": {}}}, "select: no task 'valid'; there are ['test']"),
        ({"faults": {"nul_key": {}}}, "faults: unknown ['nul_key']; known are"),
        (
            {"faults": {"duplicate": {"policy": "ignore"}}},
            "faults.duplicate: policy is 'ignore'; expected one of ['stop', 'set_aside']",
        ),
        ({"items": {"features": {"t": {"kind": "txt"}}}}, "feature 't': set kind to one of"),
        (
            {"items": {"features": {"t": {"kind": "text"}}}},
            "items.features.t: set items.files to the table that holds it",
        ),
        ({"items": {"expires": "until"}}, "items.expires: set items.files"),
        ({"items": {"files": "i.csv", "lists": {"s": {"files": "l.csv", "key": "item"}}}}, "items.lists.s: set value"),
        ({"users": ["a"]}, "users: expected settings, got ['a']"),
        ({"history_length": 2.5}, "data: history_length is 2.5; expected int"),
    ],
)
def test_a_mistake_is_named(config: dict[str, Any], said: str) -> None:
    assert said in mistakes(**config)


def test_a_name_is_needed() -> None:
    with pytest.raises(ConfigError, match="data: set name"):
        DatasetSpec.parse({"events": LOG})


def test_all_mistakes_come_in_one_error() -> None:
    message = mistakes(
        events={**LOG, "usr": "u"}, split={"rule": "x"}, actions={"a": {"wieght": 1}}, users={"keys": "u"}
    )
    for said in ("['usr']", "rule is 'x'", "['wieght']", "['keys']"):
        assert said in message


def test_limits_can_be_changed_one_by_one() -> None:
    faults = parse(faults={"unknown_item": {"limit": 0.5}, "null_key": {"policy": "set_aside"}}).faults
    assert faults["unknown_item"] == Limit("set_aside", 0.5)
    assert faults["null_key"] == Limit("set_aside", 0.01)
    assert faults["bad_time"] == Limit("stop", 0.01)


def test_splits_are_numbered_train_valid_then_the_tests_in_order() -> None:
    files = {"late": "l", "train": "t", "test": "s"}
    spec = parse(events={"files": files}, split={"rule": "given"}, tasks={"valid": {"targets": ["test"]}})
    assert spec.split_names == ("train", "valid", "late", "test")


def test_strict_passes_structured_values_and_nulls_on() -> None:
    assert strict(SplitSpec, {"valid": "7d", "test": 1, "rule": "given"}, "x") == {
        "valid": "7d",
        "test": 1,
        "rule": "given",
    }
