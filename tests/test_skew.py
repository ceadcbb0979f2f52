"""What serving sees is what training saw, on a small market; ten thousand members: ``python -m benchmarks.skew``."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.skew import compare, different, other_top
from pipeline.datasets import dataset_of
from pipeline.exporting import check_encoding, export, raw_users
from pipeline.runs import Run
from pipeline.training import train
from tests.test_configs import composed
from towers.errors import DataError
from towers.index import Retriever

USERS = 200


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("skew")
    small = ["experiment=market", f"data.generate.users={USERS}", "data.generate.jobs=300", "threads=1", "logger=none",
             "data.generate.impressions=8000", "model.dim=16", "evaluate=[]", "batch_size=512", "trainer.max_epochs=1",
             f"var={folder}/var", f"runs={folder}/runs"]  # fmt: skip
    train(composed("train", *small), folder / "run")
    return Run(folder / "run")


@pytest.fixture(scope="module")
def retriever(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    target = tmp_path_factory.mktemp("bundle") / "flat"
    export(composed("export", f"run={run.folder}", f"bundle={target}", "index=flat", "match=false"))
    return Retriever.open(target)


def test_inputs_are_byte_equal_and_answers_the_same(run: Run, retriever: Retriever) -> None:
    told = compare(run, retriever, USERS)
    assert told == {"users": told["users"], "inputs": 0, "by_id": 0, "by_features": 0}
    assert told["users"] > 150


def test_the_export_asks_for_raw_users_too(run: Run, retriever: Retriever) -> None:
    queries = retriever.bundle.golden["queries"]
    by_id = [q for q in queries if not isinstance(q["user"], dict)]
    raw = [q for q in queries if isinstance(q["user"], dict)]
    assert len(by_id) == len(raw) == 8
    assert [q["vector"] for q in by_id] == [q["vector"] for q in raw]
    assert {"field", "skills", "history", "history_times"} <= set(raw[0]["user"])
    assert any(q["user"]["history"] for q in raw)


def test_the_export_refuses_what_serving_encodes_otherwise(run: Run) -> None:
    dataset, rows = dataset_of(run), np.arange(8, dtype=np.int32)
    raws = raw_users(dataset, rows)
    check_encoding(dataset, rows, raws)
    spoilt = [raws[0] | {"years": (raws[0]["years"] or 0) + 30}, *raws[1:]]
    with pytest.raises(DataError, match="serving encodes raw users otherwise"):
        check_encoding(dataset, rows, spoilt)


def test_a_skew_is_seen(run: Run, retriever: Retriever) -> None:
    """A history that is cut shorter in serving than in training."""
    bundle = retriever.bundle
    shorter = Retriever(replace(bundle, schema=replace(bundle.schema, history_length=2)))
    told = compare(run, shorter, USERS)
    assert told["inputs"] > 100
    assert told["by_id"] > 50
    assert told["by_features"] > 50


def test_inputs_differ_by_user() -> None:
    a = {"x": np.array([1, 2, 3], np.int32), "y": np.zeros((3, 2), np.float32)}
    assert different(a, {k: v.copy() for k, v in a.items()}).tolist() == [False] * 3
    assert different(a, a | {"x": np.array([1, 2, 4], np.int32)}).tolist() == [False, False, True]
    minus = np.array([[0, 0], [0, -0.0], [0, 0]], np.float32)  # equal as numbers, not as bytes
    assert different(a, a | {"y": minus}).tolist() == [False, True, False]
    assert different(a, a | {"x": a["x"].astype(np.int64)}).tolist() == [True] * 3
    assert different(a, {"x": a["x"]}).tolist() == [True] * 3


@pytest.mark.parametrize(
    ("ids", "scores", "other"),
    [
        ([0, 1], [3, 2], False),
        ([0, 2], [3, 2], False),  # items 1 and 2 tie
        ([0, 3], [3, 1], True),
        ([1, 0], [2, 3], True),
        ([0, 1], [3, 2.1], True),  # the right items by wrong scores
        ([0, 0], [3, 3], True),
        ([0, -1], [3, -np.inf], True),
    ],
)
def test_top_k_up_to_ties(ids: list[int], scores: list[float], other: bool) -> None:
    offline = np.array([[3, 2, 2 + 5e-6, 1, -np.inf]], np.float32)
    found = SimpleNamespace(ids=np.array([ids]), scores=np.array([scores], np.float32))
    assert other_top(found, offline, lambda x: x, 2).tolist() == [other]


def test_places_that_nothing_fills() -> None:
    found = SimpleNamespace(ids=np.array([[4, -1]]), scores=np.array([[1, -np.inf]], np.float32))
    offline = np.array([[-np.inf] * 4 + [1]], np.float32)
    assert other_top(found, offline, lambda x: x, 2).tolist() == [False]
