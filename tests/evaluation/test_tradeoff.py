"""The curve of new items against known ones, held against ranking everything anew at every point."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.worlds import make_task
from towers.errors import DataError
from towers.evaluation.evaluate import evaluate
from towers.evaluation.tradeoff import Point, Tradeoff, choose

# Two queries; candidates 0 and 1 are known, 2 and 3 new. Scores of the first: 4 3 2 1, of the second: 1 2 3 4.
SCORES = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
NEW = np.array([False, False, True, True])


def tradeoff(k: int = 1) -> Tradeoff:
    task = make_task([[0, 2], [0, 3]], [0, 1, 2, 3])
    return Tradeoff(task, SCORES, torch.eye(4), NEW, k=k)


@pytest.mark.parametrize(
    ("k", "scale", "offset", "joint", "new", "known", "share"),
    [
        (1, 1.0, 0.0, 0.5, 0.5, 0.5, 0.5),  # known 0 is first of the one, new 3 of the other
        (1, 1.0, -9.0, 0.25, 0.0, 0.5, 0.0),  # known ones first: 0 is found, and 1 stands before 0
        (1, 1.0, 9.0, 0.5, 1.0, 0.0, 1.0),
        (1, 3.0, -4.0, 0.5, 0.5, 0.5, 0.5),  # 2 becomes 2 and stays below 4
        (2, 1.0, -9.0, 0.5, 0.0, 1.0, 0.0),
    ],
)
def test_by_hand(k: int, scale: float, offset: float, joint: float, new: float, known: float, share: float) -> None:
    assert tradeoff(k).at(scale, offset) == Point(scale, offset, joint, new, known, share)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), scale=st.floats(0.2, 4.0), offset=st.floats(-3, 3), k=st.integers(1, 9))
def test_every_point_is_what_a_whole_ranking_of_the_calibrated_vectors_gives(
    seed: int, scale: float, offset: float, k: int
) -> None:
    rng = np.random.default_rng(seed)
    new = np.arange(12) % 3 == 0
    known_one, new_one = rng.choice(np.flatnonzero(~new), 8), rng.choice(np.flatnonzero(new), 8)
    targets = [[int(a), int(b)] if q % 3 else [int(b)] for q, (a, b) in enumerate(zip(known_one, new_one, strict=True))]
    exclude = [rng.choice(np.setdiff1d(np.arange(12), t), 3, replace=False) for t in targets]
    task = make_task([[t + 5 for t in row] for row in targets], np.arange(12) + 5, [e + 5 for e in exclude])
    queries, candidates = (torch.from_numpy(rng.normal(size=(n, 3))).float() for n in (8, 12))
    point = Tradeoff(task, queries, candidates, new, k=k, block=3).at(scale, offset)
    a = torch.where(torch.from_numpy(new), scale, 1.0).float().unsqueeze(1)
    b = torch.where(torch.from_numpy(new), offset, 0.0).float().unsqueeze(1)
    whole = evaluate(
        task, torch.cat([queries, torch.ones(8, 1)], 1), torch.cat([candidates * a, b], 1), ks=[k], metrics=("recall",)
    )
    top = whole.ranking.items[:, :k]
    assert point.joint == pytest.approx(whole.flat("t")[f"t/recall@{k}"])
    is_new = new[top - 5]
    assert point.share == pytest.approx(is_new.mean())
    for kind, got in ((True, point.new), (False, point.known)):
        kept = [[t for t in row if new[t] == kind] for row in targets]
        recalls = [np.mean([t + 5 in top[q] for t in row]) for q, row in enumerate(kept) if row]
        assert got == pytest.approx(np.mean(recalls))


def test_some_rows_are_those_queries_alone() -> None:
    task = make_task([[0, 2], [0, 3], [1, 3]], [0, 1, 2, 3])
    queries = torch.cat([SCORES, SCORES.flip(1)[:1]])
    some = Tradeoff(task, queries, torch.eye(4), NEW, k=1, rows=np.array([0, 1]))
    assert some.at() == tradeoff().at()


def test_a_curve_goes_from_the_known_items_to_the_new() -> None:
    rng = np.random.default_rng(0)
    new = np.arange(40) % 2 == 0
    task = make_task([[2 * q, 2 * q + 1] for q in range(20)], np.arange(40))
    queries, candidates = (torch.from_numpy(rng.normal(size=(n, 4))).float() for n in (20, 40))
    curve = Tradeoff(task, queries, candidates, new, k=5).curve(scale=2.0, points=9)
    assert [p.offset for p in curve] == sorted(p.offset for p in curve)
    assert (np.diff([p.share for p in curve]) >= 0).all()
    assert (np.diff([p.new for p in curve]) >= 0).all()
    assert (np.diff([p.known for p in curve]) <= 0).all()
    assert curve[0].share < 0.2
    assert curve[-1].share > 0.8


def test_the_point_with_the_largest_joint_recall_that_keeps_the_known() -> None:
    a, b, c = Point(1, 0, 0.1, 0.1, 1.0, 0.1), Point(1, 1, 0.3, 0.3, 0.95, 0.2), Point(2, 2, 0.5, 0.6, 0.5, 0.9)
    assert choose([[a, b], [c]], keep=0.95) == b
    assert choose([[a, b], [c]], keep=0.4) == c
    assert choose([[a, b], [c]], keep=1.0) == a


def test_both_kinds_must_be_wanted() -> None:
    with pytest.raises(DataError, match="0 of 2 targets are on new items"):
        Tradeoff(make_task([[0], [1]], [0, 1, 2, 3]), SCORES, torch.eye(4), NEW)
