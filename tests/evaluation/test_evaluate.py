"""From vectors to files: counts, slices, predictions, and the protocols' own evaluator as a second opinion."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.evaluation.worlds import lists, make_task, world
from towers.errors import ConfigError, DataError
from towers.evaluation.evaluate import METRICS, evaluate, evaluate_scores
from towers.evaluation.ranking import InnerProducts, rank
from towers.evaluation.slices import Slice, history_length, target_warmth

EVALUATOR = Path(__file__).parents[2] / ".." / "shared" / "protocols" / "evaluate.py"


def hand_made(**more):
    """Two users and items 0..3 with scores 4, 3, 2, 1: user 0 wants items 1 and 9 (no candidate), user 1 item 2."""
    task = make_task([[1, 9], [2]], range(4), [[], [0]], **more)
    return task, torch.ones(2, 1), torch.tensor([[4.0], [3.0], [2.0], [1.0]])


def test_values_by_hand():
    found = evaluate(*hand_made(), ks=(1, 2), metrics=("recall", "mrr", "hr", "coverage", "auc", "mrr@all"))
    assert found.ranking.items[:, :4].tolist() == [[0, 1, 2, 3], [1, 2, 3, -1]]
    by_hand = {
        "test/recall@1": 0,
        "test/recall@2": (1 / 2 + 1) / 2,
        "test/mrr@1": 0,
        "test/mrr@2": 1 / 2,
        "test/hr@1": 0,
        "test/hr@2": 1,
        "test/auc": ((2 / 3) / 2 + 1 / 2) / 2,  # item 1 beats 2 of 3 others, item 9 none; item 2 beats 1 of 2
        "test/mrr@all": 1 / 2,
        "test/coverage@1": 2 / 4,
        "test/coverage@2": 3 / 4,
    }
    assert found.flat() == pytest.approx(by_hand, abs=1e-15)
    assert found.per_query["recall@2"].tolist() == [1 / 2, 1]
    assert list(found.flat("")) == list(found.values)


def test_scores_are_evaluated_as_vectors_are():
    task, queries, candidates = world(4, queries=30, clock=True)
    names = (*METRICS, "auc", "mrr@all")
    ranked = []
    found = evaluate_scores(task, InnerProducts(queries, candidates), metrics=names, progress=ranked.append)
    assert found.flat() == evaluate(task, queries, candidates, metrics=names).flat()
    assert sum(ranked) == 30


def test_a_slice_counts_only_its_targets():
    task, queries, candidates = hand_made()
    warmth = target_warmth(task.targets, np.array([0, 5, 0, 0, 0, 0, 0, 0, 0, 1]))
    slices = {"warmth": warmth, "place": Slice(("a", "b"), np.array([0, 1]))}
    found = evaluate(task, queries, candidates, ks=(2,), metrics=("recall", "coverage"), slices=slices)
    warm, cold = found.slices["warmth"]["warm"], found.slices["warmth"]["cold"]
    assert (warm.queries.tolist(), warm.targets, warm.values) == ([0], 2, {"recall@2": 1 / 2})
    assert (cold.queries.tolist(), cold.targets, cold.values) == ([1], 1, {"recall@2": 1})
    assert {label: s.values["recall@2"] for label, s in found.slices["place"].items()} == {"a": 1 / 2, "b": 1}


def test_slices_leave_out_codes_of_minus_one_and_empty_parts():
    found = evaluate(*hand_made(), slices={"s": Slice(("x", "y", "z"), np.array([-1, 2]))})
    assert list(found.slices["s"]) == ["z"]
    assert found.slices["s"]["z"].queries.tolist() == [1]


def test_slices_of_a_wrong_length_are_refused():
    with pytest.raises(ValueError, match=r"expected 2 \(queries\) or 3"):
        evaluate(*hand_made(), slices={"s": Slice(("x",), np.zeros(5, np.int64))})


def test_history_lengths_fall_into_the_part_that_names_them():
    s = history_length(np.array([0, 1, 2, 4, 5, 49, 50, 1000]))
    assert [s.labels[i] for i in s.codes] == ["0", "1", "2-4", "2-4", "5-9", "20-49", "50+", "50+"]


def test_unknown_metrics_and_cuts_are_refused():
    with pytest.raises(ConfigError, match=r"\['recal'\]; known are"):
        evaluate(*hand_made(), metrics=("recal",))
    with pytest.raises(ConfigError, match="at least 1"):
        evaluate(*hand_made(), ks=(0,))


def test_an_evaluation_of_nobody_is_refused():
    with pytest.raises(DataError, match="without queries"):
        evaluate(make_task([], [0]), torch.ones(0, 1), torch.ones(1, 1))


@pytest.mark.parametrize("ids", [pa.array([f"job-{i}" for i in range(40)]), pa.array(np.arange(40) + (1 << 40))])
def test_what_is_saved(tmp_path, ids):
    task, queries, candidates = world(2, queries=30)
    users = pa.array([f"u{q}" for q in range(30)])
    found = evaluate(task, queries, candidates, ks=(5, 10))
    found.save(tmp_path / "new", users, ids, {"refitted": True})
    assert {p.name for p in (tmp_path / "new").iterdir()} == {
        "metrics.json",
        "predictions.parquet",
        "per_query.parquet",
    }

    facts = json.loads((tmp_path / "new" / "metrics.json").read_text())
    counts = {"queries": 30, "targets": len(task.targets.values), "candidates": len(task.candidates)}
    assert facts.items() >= (counts | {"task": "test", "refitted": True}).items()
    for name, m in facts["metrics"].items():
        assert m["value"] == found.values[name]
        assert name.startswith("coverage") or m["low"] <= m["value"] <= m["high"]

    predictions = pq.read_table(tmp_path / "new" / "predictions.parquet")
    assert predictions.column_names == ["user", "rank", "item", "score"]
    assert predictions["item"].type == ids.type
    external = ids.to_pylist()
    expected = [
        (f"u{q}", place + 1, external[item])
        for q, row in enumerate(found.ranking.items)
        for place, item in enumerate(row)
        if item >= 0
    ]
    assert list(zip(*(predictions[c].to_pylist() for c in ("user", "rank", "item")), strict=True)) == expected

    per_query = pq.read_table(tmp_path / "new" / "per_query.parquet")
    assert per_query["user"].to_pylist() == users.to_pylist()
    assert per_query["targets"].to_pylist() == [len(t) for t in lists(task.targets)]
    np.testing.assert_array_equal(per_query["ndcg@10"].to_numpy(), found.per_query["ndcg@10"])


def test_predictions_stop_at_a_hundred_however_deep_the_cuts(tmp_path):
    task = make_task([[0]], range(300))
    found = evaluate(task, torch.ones(1, 1), torch.arange(300.0)[:, None], ks=(250,))
    assert found.values["recall@250"] == 0  # item 0 is the last of 300
    found.save(tmp_path, pa.array([7]), pa.array(range(300)))
    assert pq.read_table(tmp_path / "predictions.parquet")["rank"].to_pylist() == list(range(1, 101))


@pytest.mark.parametrize(("time", "column"), [([1_000_000, 2_000_000], "time"), (None, "query")])
def test_several_queries_of_a_user_are_told_apart(tmp_path, time, column):
    task, queries, candidates = hand_made(user=[3, 3], time=time)
    evaluate(task, queries, candidates).save(tmp_path, pa.array([8, 8]), pa.array(range(10)))
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert table.column_names == ["user", column, "rank", "item", "score"]
    assert table.num_rows == 7
    assert len(table.group_by(["user", column, "rank"]).aggregate([])) == 7
    if time:
        assert table["time"].type == pa.timestamp("us", tz="UTC")
        assert table["time"].cast(pa.int64()).to_pylist() == [1_000_000] * 4 + [2_000_000] * 3


def test_a_failed_save_leaves_the_old_files_alone(tmp_path):
    found = evaluate(*hand_made())
    found.save(tmp_path, pa.array([1, 2]), pa.array(range(10)))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(pa.ArrowIndexError):
        found.save(tmp_path, pa.array([1, 2]), pa.array([0]))  # too few item ids
    with pytest.raises(TypeError, match="not JSON serializable"):
        found.save(tmp_path, pa.array([1, 2]), pa.array(range(10)), {"model": object()})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_is_measured_cannot_be_overwritten(tmp_path):
    found = evaluate(*hand_made())
    with pytest.raises(ValueError, match=r"extra repeats \['seconds'\]"):
        found.save(tmp_path, pa.array([1, 2]), pa.array(range(10)), {"seconds": 1})
    with pytest.raises(ValueError, match="1 ids for 2 queries"):
        found.save(tmp_path, pa.array([1]), pa.array(range(10)))


@pytest.fixture(scope="module")
def evaluator():
    if not EVALUATOR.exists():
        pytest.skip(f"the protocols' evaluator is not beside the checkout: {EVALUATOR}")
    pytest.importorskip("pandas", reason="the protocols' evaluator needs pandas")
    spec = importlib.util.spec_from_file_location("protocol_evaluator", EVALUATOR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:.*protocol.json:pytest.PytestUnraisableExceptionWarning")  # it closes no file
def test_agrees_with_the_protocols_evaluator(tmp_path, evaluator):
    """Cold and warm targets over one ranking, as in ``xing16-coldjob``."""
    task, queries, candidates = world(8, queries=200, items=160)
    user_ids, item_ids = np.arange(200) * 7 + 1000, np.arange(160) * 3 + 5
    events = np.random.default_rng(0).integers(0, 2, 160)
    ks = (10, 20, 100)

    def write(name, rows):
        user, item = zip(*rows, strict=True)
        pq.write_table(pa.table({"user": user_ids[list(user)], "item": item_ids[list(item)]}), tmp_path / name)

    pairs = [(q, t) for q, row in enumerate(lists(task.targets)) for t in row]
    write("warm.parquet", [(q, t) for q, t in pairs if events[t]])
    write("cold.parquet", [(q, t) for q, t in pairs if not events[t]])
    write("train.parquet", [(q, t) for q, row in enumerate(lists(task.exclude)) for t in row])
    pq.write_table(pa.table({"item": item_ids[task.candidates]}), tmp_path / "candidates.parquet")
    question = {"targets": ["warm", "cold"], "candidates": "candidates", "mask": ["train"], "per_target_file": True}
    (tmp_path / "protocol.json").write_text(json.dumps({"ks": ks, "tasks": {"test": question}}))

    slices = {"target": target_warmth(task.targets, events)}
    found = evaluate(task, queries, candidates, ks=ks, metrics=METRICS, slices=slices)
    found.save(tmp_path / "out", pa.array(user_ids), pa.array(item_ids))
    theirs = evaluator.evaluate(str(tmp_path / "out" / "predictions.parquet"), str(tmp_path))

    parts = found.slices["target"]
    for name, scores in {"warm+cold": found.scores, "warm": parts["warm"], "cold": parts["cold"]}.items():
        assert theirs[name]["users"] == len(scores.queries)
        assert theirs[name]["targets"] == scores.targets
        for ours, key in {"recall": "Recall", "ndcg": "NDCG", "hr": "HitRate"}.items():
            for k in ks:
                assert scores.values[f"{ours}@{k}"] == pytest.approx(theirs[name][f"{key}@{k}"], abs=1e-9)
    assert 0.05 < found.values["recall@10"] < 0.95
    # The evaluator's coverage is over all users with a target, like ours.
    assert found.values["coverage@20"] == pytest.approx(theirs["warm+cold"]["coverage@20"], abs=1e-9)


def test_the_ranking_is_the_one_that_rank_gives():
    task, queries, candidates = world(4, clock=True)
    found, plain = evaluate(task, queries, candidates), rank(queries, candidates, task, 100)
    np.testing.assert_array_equal(found.ranking.items, plain.items)
    assert found.ranking.target_ranks is None
    assert found.seconds > 0
