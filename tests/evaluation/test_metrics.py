"""Metrics: worked by hand, by ten plain lines, and by an outside library."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.worlds import lists, ragged, world
from towers.evaluation import metrics as m
from towers.evaluation.ranking import rank

many = settings(derandomize=True, deadline=None, max_examples=60)


# One query with targets {a, b, c}; its list is  a x b x x c  (hits at places 1, 3 and 6).
HITS = np.array([[1, 0, 1, 0, 0, 1]], bool)
THREE = np.array([3])


@pytest.mark.parametrize(
    ("name", "k", "by_hand"),
    [
        ("recall", 1, 1 / 3),
        ("recall", 5, 2 / 3),
        ("recall", 6, 1),
        ("precision", 1, 1),
        ("precision", 5, 2 / 5),
        ("hr", 1, 1),
        ("mrr", 6, 1),
        ("map", 1, 1 / 1),  # min(K, targets) = 1
        ("map", 2, 1 / 2),  # (1/1) / min(2, 3)
        ("map", 6, (1 / 1 + 2 / 3 + 3 / 6) / 3),
        ("ndcg", 1, 1),
        ("ndcg", 2, 1 / (1 + 1 / math.log2(3))),  # the ideal has two hits in two places
        ("ndcg", 6, (1 + 1 / 2 + 1 / math.log2(7)) / (1 + 1 / math.log2(3) + 1 / 2)),
    ],
)
def test_by_hand(name, k, by_hand):
    assert m.AT_K[name](HITS, THREE, k)[0] == pytest.approx(by_hand, abs=1e-12)


def test_recall_divides_by_targets_and_not_by_places():
    assert m.recall(np.array([[True]]), np.array([4]), 1)[0] == 1 / 4


def plain(name, items, targets, k):
    """One query, by the formula."""
    found = [i in targets for i in items[:k]]
    if name == "map":
        return sum(sum(found[: p + 1]) / (p + 1) for p, f in enumerate(found) if f) / min(k, len(targets))
    if name == "ndcg":
        gain = sum(1 / math.log2(p + 2) for p, f in enumerate(found) if f)
        return gain / sum(1 / math.log2(p + 2) for p in range(min(k, len(targets))))
    if name == "mrr":
        return 1 / (found.index(True) + 1) if any(found) else 0
    return {"recall": sum(found) / len(targets), "precision": sum(found) / k, "hr": float(any(found))}[name]


def hits_of(task, ranking):
    query = np.repeat(np.arange(len(task)), np.diff(task.targets.offsets))
    return m.hits(m.places(ranking.items, task.targets), query, len(task), ranking.items.shape[1])


@many
@given(seed=st.integers(0, 10_000), k=st.integers(1, 30))
def test_by_plain_loops(seed, k):
    task, queries, candidates = world(seed)
    ranking = rank(queries, candidates, task, 30)
    counts = np.diff(task.targets.offsets)
    for name, metric in m.AT_K.items():
        expected = [
            plain(name, row[row >= 0].tolist(), t, k) for row, t in zip(ranking.items, lists(task.targets), strict=True)
        ]
        np.testing.assert_allclose(metric(hits_of(task, ranking), counts, k), expected, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_by_an_outside_library(k):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies' own, at import and compilation
        from ranx import Qrels, Run
        from ranx import evaluate as ranx_evaluate

        task, queries, candidates = world(11, queries=60, items=80)
        ranking = rank(queries, candidates, task, 20)
        qrels = Qrels({f"q{q}": {str(t): 1 for t in row} for q, row in enumerate(lists(task.targets))})
        run = Run(
            {
                f"q{q}": {str(i): float(s) for i, s in zip(items, scores, strict=True) if i >= 0}
                for q, (items, scores) in enumerate(zip(ranking.items, ranking.scores, strict=True))
            }
        )
        theirs = {"recall": "recall", "precision": "precision", "hr": "hit_rate", "ndcg": "ndcg", "mrr": "mrr"}
        found = ranx_evaluate(qrels, run, [f"{name}@{k}" for name in theirs.values()], return_mean=False)
        map_found = ranx_evaluate(qrels, run, f"map@{k}", return_mean=False)
    counts = np.diff(task.targets.offsets)
    hits = hits_of(task, ranking)
    assert hits.any(axis=1).mean() > 0.2  # or the comparison would be of zeros
    order = [list(qrels.keys()).index(f"q{q}") for q in range(len(task))]
    for ours, name in theirs.items():
        np.testing.assert_allclose(m.AT_K[ours](hits, counts, k), found[f"{name}@{k}"][order], atol=1e-9, err_msg=name)
    # The library divides average precision by the number of targets; ours stops at min(k, targets).
    ours = m.average_precision(hits, counts, k) * np.minimum(counts, k) / counts
    np.testing.assert_allclose(ours, map_found[order], atol=1e-9)


@many
@given(seed=st.integers(0, 10_000))
def test_more_places_never_lose_a_hit(seed):
    task, queries, candidates = world(seed)
    hits, counts = hits_of(task, rank(queries, candidates, task, 30)), np.diff(task.targets.offsets)
    for name in ("recall", "hr", "mrr"):
        curve = np.stack([m.AT_K[name](hits, counts, k) for k in range(1, 31)])
        assert (np.diff(curve, axis=0) >= 0).all(), name
        assert ((curve >= 0) & (curve <= 1)).all()


@many
@given(seed=st.integers(0, 10_000), clock=st.booleans())
def test_auc_is_the_share_of_pairs_in_order(seed, clock):
    task, queries, candidates = world(seed, clock=clock)
    ranking = rank(queries, candidates, task, 40, target_ranks=True)
    found = m.auc(ranking.target_ranks, ranking.eligible)
    best = m.reciprocal_rank(ranking.target_ranks)
    for q, targets in enumerate(lists(task.targets)):
        shown = [i for i in ranking.items[q].tolist() if i >= 0]
        others = [i for i in shown if i not in targets]
        won = [t in shown and shown.index(t) < shown.index(o) for t in targets for o in others]
        reached = sum(t in shown for t in targets) / len(targets)
        assert found[q] == pytest.approx(np.mean(won) if others else reached)
        assert best[q] == (1 / (min(shown.index(t) for t in targets if t in shown) + 1) if reached else 0)


def test_coverage_counts_an_item_once_and_blanks_never():
    items = np.array([[5, 6, 7], [6, 5, -1]])
    assert m.coverage(items, 4, 1) == 2 / 4
    assert m.coverage(items, 4, 3) == 3 / 4


def test_places_are_found_in_any_number_of_steps(monkeypatch):
    items = np.array([[1, 2, 3], [4, 5, -1]])
    targets = ragged([[3, 9, 1], [5]])
    assert m.places(items, targets).tolist() == [3, 0, 1, 2]
    monkeypatch.setattr(m, "_COMPARED", 6)
    assert m.places(items, targets).tolist() == [3, 0, 1, 2]
