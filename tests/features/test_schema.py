"""Declarations: parsing, defaults, mistakes, and the JSON that travels with a model."""

import hashlib
from typing import Any

import pytest

from towers.errors import ConfigError
from towers.features import Action, Feature, Kind, Schema


def test_a_feature_reads_the_column_of_its_name_unless_told_otherwise() -> None:
    assert Feature.parse("place", {"kind": "categorical"}).columns == ("place",)
    assert Feature.parse("place", {"kind": "categorical", "column": "town"}).columns == ("town",)
    assert Feature.parse("t", {"kind": "text", "column": ["title", "body"]}).columns == ("title", "body")
    assert Feature.parse("me", {"kind": "id"}).columns == ()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "feature 'x': set kind to one of"),
        ({"kind": "words"}, "set kind to one of"),
        ({"kind": "numeric", "bucket": 3}, r"unknown settings \['bucket'\]"),
        ({"kind": "numeric", "column": ["a", "b"]}, r"set one column, got \['a', 'b'\]"),
        ({"kind": "vector"}, "set dim to the length of the vectors"),
        ({"kind": "text", "buckets": 0}, "set buckets to a positive number"),
        ({"kind": "categorical", "min_count": 0}, "must be at least 1"),
        ({"kind": "categorical_list", "max_length": 0}, "must be at least 1"),
    ],
)
def test_mistakes_name_the_feature_and_the_cure(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Feature.parse("x", spec)


def test_a_schema_survives_json_and_its_hash_sees_every_change() -> None:
    schema = Schema(
        users=(Feature("me", Kind.ID), Feature("v", Kind.VECTOR, ("v",), dim=3)),
        items=(Feature("t", Kind.TEXT, ("a", "b"), buckets=9, words=(1,), chars=()),),
        actions=(Action("view"), Action("apply", 3.0, False)),
        clock="time",
        item_id="string",
    )
    again = Schema.from_json(schema.to_json())
    assert again == schema
    assert again.hash == schema.hash
    assert Schema.from_json({**schema.to_json(), "history_length": 7}).hash != schema.hash


def test_a_hash_is_of_what_differs_from_the_defaults() -> None:
    """So that a setting added later leaves the hashes of older data and bundles as they were."""
    said = '{"items": [], "users": [{"kind": "id", "name": "me"}]}'
    assert Schema(users=(Feature("me", Kind.ID),), items=()).hash == hashlib.sha256(said.encode()).hexdigest()
    known = Schema(users=(), items=(Feature("x", Kind.CATEGORICAL, ("x",)),))
    older = known.to_json()
    del older["items"][0]["vocabulary"]
    assert Schema.from_json(older).hash == known.hash
