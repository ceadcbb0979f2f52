"""Exact ranking: against plain loops, and what must hold for any vectors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.worlds import brute_force, lists, make_task, world
from towers.errors import DataError
from towers.evaluation import topk
from towers.evaluation.eligibility import Clock
from towers.evaluation.ranking import rank, rank_scores
from towers.evaluation.topk import top_k

seeds = st.integers(0, 10_000)
many = settings(derandomize=True, deadline=None, max_examples=60)


@many
@given(seed=seeds, clock=st.booleans(), coarse=st.booleans(), block=st.sampled_from([1, 3, 100]), k=st.integers(1, 50))
def test_is_what_plain_loops_give(seed, clock, coarse, block, k):
    task, queries, candidates = world(seed, clock=clock, coarse=coarse)
    found = rank(queries, candidates, task, k, block=block, target_ranks=True)
    for q, expected in enumerate(brute_force(task, queries, candidates)):
        items = [item for item, _ in expected]
        assert found.items[q].tolist() == (items + [-1] * k)[:k]
        np.testing.assert_allclose(
            found.scores[q], ([s for _, s in expected] + [-math.inf] * k)[:k], rtol=1e-5, atol=1e-6
        )
        expected_ranks = [items.index(t) + 1 if t in items else 0 for t in lists(task.targets)[q]]
        assert lists(found.target_ranks)[q] == expected_ranks
        assert found.eligible[q] == len(items)


@many
@given(
    seed=seeds,
    rows=st.integers(1, 9),
    groups=st.integers(1, 90),
    k=st.integers(1, 10),
    levels=st.sampled_from([1, 3, 400, 4000, 20_000]),
)
def test_top_k_is_the_head_of_a_stable_sort(seed, rows, groups, k, levels):
    rng = np.random.default_rng(seed)
    scores = torch.tensor(rng.integers(0, levels, (rows, groups * topk.GROUP)), dtype=torch.float32)
    values, columns = top_k(scores, k)
    order = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
    assert columns.tolist() == order.tolist()
    assert values.tolist() == np.take_along_axis(scores.numpy(), order, 1).tolist()


def test_two_passes_are_taken_for_wide_rows(monkeypatch):
    seen = []
    inner = topk._select
    monkeypatch.setattr(topk, "_select", lambda x, k: seen.append(tuple(x.shape)) or inner(x, k))
    top_k(torch.zeros(2, 64 * topk.GROUP), 5)
    assert seen == [(2, 64), (2, 5 * topk.GROUP)]


def test_two_passes_keep_column_order_among_equals_of_different_groups():
    scores = torch.zeros(1, 64 * topk.GROUP)
    early, late = 2 * topk.GROUP, 5 * topk.GROUP
    scores[0, late], scores[0, late + 1], scores[0, early] = 9, 7, 7
    assert top_k(scores, 3)[1].tolist() == [[late, early, late + 1]]


def test_equal_scores_go_by_column_even_for_the_last_place():
    task = make_task([[0]], range(5000))
    found = rank(torch.ones(1, 1), torch.ones(5000, 1), task, 10, target_ranks=True)
    assert found.items.tolist() == [list(range(10))]
    assert found.target_ranks.values.tolist() == [1]


@many
@given(seed=seeds)
def test_the_order_of_candidates_changes_nothing(seed):
    """Candidates renumbered: the same items at the same scores (random vectors have no ties)."""
    task, queries, candidates = world(seed)
    n = len(task.candidates)
    new_row = np.random.default_rng(seed).permutation(task.candidates)  # of the item at each column

    def renumber(rows):
        column = {row: j for j, row in enumerate(task.candidates)}
        return [new_row[column[r]] if r in column else r for r in rows]

    order = np.argsort(new_row)
    renamed = make_task(
        [renumber(t) for t in lists(task.targets)], new_row[order], [renumber(e) for e in lists(task.exclude)]
    )
    before = rank(queries, candidates, task, n, target_ranks=True)
    after = rank(queries, candidates[torch.from_numpy(order)], renamed, n, target_ranks=True)
    np.testing.assert_allclose(after.scores, before.scores, rtol=1e-5, atol=1e-6)
    assert [renumber(row) for row in before.items] == after.items.tolist()
    assert before.target_ranks.values.tolist() == after.target_ranks.values.tolist()


@many
@given(seed=seeds)
def test_hidden_items_never_appear(seed):
    task, queries, candidates = world(seed, queries=20, clock=True, coarse=True)
    found = rank(queries, candidates, task, 40)
    column = {row: j for j, row in enumerate(task.candidates)}
    for q, excluded in enumerate(lists(task.exclude)):
        shown = [i for i in found.items[q].tolist() if i >= 0]
        assert not set(shown) & set(excluded)
        assert set(shown) <= set(column)
        assert all(task.posted[column[i]] <= task.time[q] < task.expires[column[i]] for i in shown)


@pytest.mark.parametrize("step", [1, 3, 100])
def test_the_clock_moves_on_within_a_block(monkeypatch, step):
    task, queries, candidates = world(6, queries=50, clock=True, coarse=True)
    monkeypatch.setattr(Clock, "__init__", after(Clock.__init__, lambda clock: setattr(clock, "_step", step)))
    found = rank(queries, candidates, task, 40, block=20)
    for q, expected in enumerate(brute_force(task, queries, candidates)):
        assert [i for i in found.items[q].tolist() if i >= 0] == [item for item, _ in expected]


def after(made, change):
    def init(self, *args):
        made(self, *args)
        change(self)

    return init


def test_an_item_is_live_from_posted_until_just_before_expiry():
    times = [4, 5, 9, 10]
    task = make_task([[0]] * 4, [0], time=times, posted=[5], expires=[10])
    found = rank(torch.ones(4, 1), torch.ones(1, 1), task, 1)
    assert found.items[:, 0].tolist() == [-1, 0, 0, -1]


@pytest.mark.parametrize(
    ("given", "shown"), [({"posted": [5]}, [-1, 0, 0, 0]), ({"expires": [10]}, [0, 0, 0, -1]), ({}, [0, 0, 0, 0])]
)
def test_a_moment_that_is_not_given_does_not_count(given, shown):
    task = make_task([[0]] * 4, [0], time=[4, 5, 9, 10], **given)
    assert rank(torch.ones(4, 1), torch.ones(1, 1), task, 1).items[:, 0].tolist() == shown


def test_without_query_times_every_candidate_is_live():
    task = make_task([[0]], [0], posted=[5], expires=[10])
    assert rank(torch.ones(1, 1), torch.ones(1, 1), task, 1).items.tolist() == [[0]]


def test_queries_may_come_in_blocks_and_in_half_precision():
    task, queries, candidates = world(3, queries=10, coarse=True)
    whole = rank(queries, candidates, task, 5)
    seen = []
    parts = (part.half() for part in queries.split(4))
    blocks = rank(parts, candidates.double(), task, 5, block=3, progress=seen.append)
    assert blocks.items.tolist() == whole.items.tolist()
    assert blocks.scores.dtype == np.float32
    assert seen == [3, 3, 3, 1]


class Given:
    """A scorer whose scores are written down."""

    device = torch.device("cpu")

    def __init__(self, scores):
        self.scores, self.asked = scores, []

    def __len__(self):
        return len(self.scores)

    def write(self, queries, out):
        self.asked.append(queries.tolist())
        out.copy_(self.scores[torch.from_numpy(queries)])


@many
@given(seed=seeds, clock=st.booleans(), coarse=st.booleans(), block=st.sampled_from([1, 3, 100]))
def test_scores_of_any_origin_are_ranked_as_inner_products_are(seed, clock, coarse, block):
    task, queries, candidates = world(seed, clock=clock, coarse=coarse)
    scorer = Given(queries @ candidates.T)
    found = rank_scores(scorer, task, 40, block=block, target_ranks=True)
    expected = rank(queries, candidates, task, 40, block=block, target_ranks=True)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
    assert found.target_ranks.values.tolist() == expected.target_ranks.values.tolist()
    assert found.eligible.tolist() == expected.eligible.tolist()
    asked = [q for block_ in scorer.asked for q in block_]
    assert sorted(asked) == list(range(len(task)))
    assert all(len(block_) <= block for block_ in scorer.asked)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("width", [40, 64 * topk.GROUP])
def test_a_scorer_that_gives_no_number_is_refused(value, width):
    task = make_task([[0], [0]], range(width))
    scores = torch.zeros(2, width)
    scores[1, width - 1] = value
    with pytest.raises(DataError, match="NaN or infinite") as e:
        rank_scores(Given(scores), task, 3)
    assert "query 1" in e.value.where


def test_a_scorer_may_leave_candidates_out():
    task = make_task([[0]], range(3))
    found = rank_scores(Given(torch.tensor([[-math.inf, 2.0, 1.0]])), task, 3)
    assert found.items.tolist() == [[1, 2, -1]]


def test_a_scorer_must_have_the_queries_of_the_task():
    with pytest.raises(ValueError, match="scores of 3 queries"):
        rank_scores(Given(torch.zeros(3, 2)), make_task([[0]], range(2)), 1)


def test_lower_training_precision_does_not_reach_the_ranking():
    torch.set_float32_matmul_precision("medium")
    try:
        task, queries, candidates = world(5)
        found = rank(queries.requires_grad_(), candidates.requires_grad_(), task, 40)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    expected = rank(queries, candidates, task, 40)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["query", "candidate"])
def test_vectors_that_are_not_finite_are_refused(side, value):
    task, queries, candidates = world(1)
    (queries if side == "query" else candidates)[0, 1] = value
    with pytest.raises(DataError, match=f"{side} vectors are not finite") as e:
        rank(queries, candidates, task, 5)
    assert f"{side} 0" in e.value.where
    assert "diverged" in e.value.cure


def test_scores_that_would_overflow_are_refused():
    task, queries, candidates = world(1)
    with pytest.raises(DataError, match="overflow"):
        rank(queries * 1e19, candidates * 1e19, task, 5)


@pytest.mark.parametrize("change", ["queries", "candidates", "dim", "k"])
def test_shapes_must_agree_with_the_task(change):
    task, queries, candidates = world(1)
    k = 5
    if change == "queries":
        queries = queries[1:]
    elif change == "candidates":
        candidates = candidates[1:]
    elif change == "dim":
        candidates = candidates[:, 1:]
    else:
        k = 0
    with pytest.raises(ValueError, match="has 7 queries and"):
        rank(queries, candidates, task, k)


@pytest.mark.parametrize(
    ("spoilt", "word"),
    [
        ({"candidates": [3, 1]}, "sorted"),
        ({"candidates": [1, 1]}, "distinct"),
        ({"targets": [[1], []]}, "needs a target"),
        ({"time": [1]}, "time has 1 rows, expected 2"),
        ({"posted": [1]}, "posted has 1 rows, expected 3"),
        ({"exclude": [[1]]}, "exclude has 1 rows, expected 2"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(spoilt, word):
    with pytest.raises(ValueError, match=word):
        make_task(**({"targets": [[1], [2]], "candidates": [1, 2, 3]} | spoilt))
