"""Baselines against their definitions, written as loops, as ordinary regressions, and by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from towers.errors import ConfigError
from towers.evaluation.ranking import rank, rank_scores
from towers.evaluation.task import Task
from towers.features import FIRST, MISSING, OOV, PAD, Batch, Ragged
from towers.model.baselines import fitted
from towers.model.baselines.bags import bag, crossed, inverse_document_frequency, weighted
from towers.model.baselines.baseline import Baseline, histories, strongest
from towers.model.baselines.ease import EASE, inverse
from towers.model.baselines.fitted import Fitted, WideProducts
from towers.model.baselines.item_knn import ItemKNN
from towers.model.baselines.kernel_ridge import KernelRidge
from towers.model.baselines.popularity import Popularity
from towers.model.baselines.sequence_knn import SequenceKNN
from towers.model.baselines.tfidf import Tfidf
from towers.model.closed_form.interactions import Interactions

USERS, ITEMS = 9, 7
DAY = 86_400_000_000
seeds = st.integers(0, 10_000)
many = settings(derandomize=True, deadline=None, max_examples=25)


def quiet(what: str, share: float) -> None:
    """No progress bar."""


def log(sequences: list[list[int]], items: int = ITEMS, *, order: bool = True, **more: Any) -> Interactions:
    """One user for each sequence of items, the oldest first."""
    user = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    item = np.array([i for s in sequences for i in s], np.int64)
    time = np.array([t for s in sequences for t in range(len(s))], np.int64) if order else None
    ones = np.ones(len(item), np.float32)
    return Interactions(user, item, ones, len(sequences), items, time, clock="order" if order else "none", **more)


def random_log(seed: int, *, order: bool = True, **more: Any) -> tuple[Interactions, list[list[int]]]:
    rng = np.random.default_rng(seed)
    sequences = [rng.permutation(ITEMS)[: rng.integers(0, ITEMS)].tolist() for _ in range(USERS)]
    return log(sequences, order=order, **more), sequences


def batch(newest_first: list[list[int]], users: list[int] | None = None) -> Batch:
    n, longest = len(newest_first), max(1, *(len(h) for h in newest_first))
    history = torch.tensor([h + [-1] * (longest - len(h)) for h in newest_first])
    nothing = torch.zeros_like(history)
    rows = torch.arange(n) if users is None else torch.tensor(users)
    none = Ragged(torch.zeros(n + 1, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    return Batch(rows, torch.full((n,), -1), torch.zeros(n), history, nothing, nothing.float(), none)


def dense(matrix: Any) -> NDArray[Any]:
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix)


def scores(baseline: Baseline, x: Interactions, queries: Batch, rows: list[int] | None = None) -> NDArray[Any]:
    state = baseline.fit(x, quiet)
    items = np.arange(x.n_items) if rows is None else np.array(rows)
    wide = baseline.queries(state, queries, x.user_features)
    return dense(wide) @ dense(baseline.items(state, items))


# Histories


def test_the_newest_event_of_a_history_counts_whole_and_each_older_one_less() -> None:
    found = histories(batch([[2, 0, 2], [], [1]]), 4, 0.5).toarray()
    assert found.tolist() == [[0.5, 0, 1 + 0.25, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_a_decay_of_zero_leaves_the_newest_alone_and_of_one_counts_all() -> None:
    queries = batch([[2, 0, 1]])
    assert histories(queries, 3, 0.0).toarray().tolist() == [[0, 0, 1]]
    assert histories(queries, 3, 1.0).toarray().tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("method", [ItemKNN, EASE])
def test_a_decay_needs_an_order(method: Any) -> None:
    with pytest.raises(ConfigError, match=r"no order; set model\.decay=1"):
        method(decay=0.5).fit(log([[0, 1]], order=False), quiet)
    with pytest.raises(ConfigError, match="between 0"):
        method(decay=1.5).fit(log([[0, 1]]), quiet)


# Popularity


def test_popularity_is_the_share_of_the_most_popular_and_the_same_for_all() -> None:
    found = scores(Popularity(), log([[0, 1], [1], [1, 2]], 4), batch([[0], []]), rows=[3, 1, 0])
    np.testing.assert_allclose(found, [[0, 1, 1 / 3]] * 2)


def test_recent_popularity_halves_after_each_half_life() -> None:
    x = Interactions(
        np.array([0, 0, 1]), np.array([0, 1, 2]), np.ones(3, np.float32), 2, 3, np.array([0, 7 * DAY, 14 * DAY]),
        clock="time",
    )  # fmt: skip
    np.testing.assert_allclose(scores(Popularity(half_life_days=7), x, batch([[]])), [[1 / 4, 1 / 2, 1]])


@pytest.mark.parametrize(("days", "word"), [(0.0, "positive"), (7.0, "needs timestamps")])
def test_recent_popularity_needs_a_half_life_and_timestamps(days: float, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Popularity(half_life_days=days).fit(log([[0]]), quiet)


# Item-kNN


@many
@given(seed=seeds, a=st.sampled_from([0.0, 0.3, 1.0]), b=st.sampled_from([0.0, 0.6]), c=st.sampled_from([0.0, 0.5]))
def test_item_knn_is_its_definition(seed: int, a: float, b: float, c: float) -> None:
    x, sequences = random_log(seed, order=False)
    n = [max(1, sum(i in s for s in sequences)) for i in range(ITEMS)]
    similar = np.zeros((ITEMS, ITEMS))
    for s in sequences:
        for j in s:
            for i in s:
                if i != j:
                    similar[j, i] += len(s) ** -a * n[j] ** -b * n[i] ** -c
    found = scores(ItemKNN(user_power=a, history_power=b, item_power=c), x, batch([[1, 3], [], [2]]))
    np.testing.assert_allclose(found, [similar[1] + similar[3], np.zeros(ITEMS), similar[2]], rtol=1e-5, atol=1e-7)


def test_item_knn_with_halves_is_the_cosine_of_the_items_columns() -> None:
    x, _ = random_log(3, order=False)
    clicks = x.matrix().toarray()
    unit = clicks / np.maximum(np.linalg.norm(clicks, axis=0), 1)
    state = ItemKNN(user_power=0, history_power=0.5, item_power=0.5).fit(x, quiet)
    cosine = unit.T @ unit
    np.fill_diagonal(cosine, 0)
    np.testing.assert_allclose(dense(state["similarity"]), cosine, rtol=1e-5, atol=1e-7)


def test_only_the_nearest_neighbours_of_each_item_are_kept() -> None:
    matrix = sparse.csr_array(np.array([[0.0, 3, 1], [5, 0, 2], [4, 3, 0]]))
    assert strongest(matrix, 1).toarray().tolist() == [[0, 3, 0], [5, 0, 2], [0, 0, 0]]  # of equals the first row
    assert strongest(matrix, 9).toarray().tolist() == matrix.toarray().tolist()
    with pytest.raises(ConfigError, match="at least 1"):
        ItemKNN(neighbours=0).fit(log([[0]]), quiet)


@pytest.mark.parametrize("method", [ItemKNN(popularity=1e-3), EASE(regularisation=2.0, popularity=1e-3)])
def test_what_a_history_says_nothing_of_is_ordered_by_popularity(method: Any) -> None:
    x = log([[0, 1], [0, 1], [2, 3], [2, 4], [2, 4]], 6)
    without = scores(dataclasses.replace(method, popularity=0.0), x, batch([[0], []]))
    found = scores(method, x, batch([[0], []]))
    shares = np.array([2, 2, 3, 1, 2, 0]) / 3
    np.testing.assert_allclose(found, without + 1e-3 * shares, rtol=1e-5, atol=1e-7)
    assert list(np.argsort(-found[1], kind="stable")) == [2, 0, 1, 4, 3, 5], "of nothing, the most popular first"
    with pytest.raises(ConfigError, match=r"model\.popularity is -1"):
        dataclasses.replace(method, popularity=-1.0).fit(x, quiet)


# Sequence-kNN


@many
@given(
    seed=seeds,
    decay=st.sampled_from([0.0, 0.5, 1.0]),
    backward=st.sampled_from([0.0, 0.2, 1.0]),
    reach=st.sampled_from([None, 1, 2]),
)
def test_sequence_knn_is_its_definition(seed: int, decay: float, backward: float, reach: int | None) -> None:
    x, sequences = random_log(seed)
    a, b, c = 0.25, 0.5, 0.1
    n = [max(1, sum(i in s for s in sequences)) for i in range(ITEMS)]
    similar = np.zeros((ITEMS, ITEMS))
    for s in sequences:
        for first, j in enumerate(s):
            for second, i in enumerate(s):
                if 0 < abs(second - first) <= (reach or len(s)):
                    weight = decay ** (abs(second - first) - 1) * (1 if first < second else backward)
                    similar[j, i] += weight * len(s) ** -a * n[j] ** -b * n[i] ** -c
    powers = {"user_power": a, "history_power": b, "item_power": c}
    method = SequenceKNN(decay=0.5, lag_decay=decay, backward=backward, reach=reach, **powers)
    found = scores(method, x, batch([[1, 3], []]))
    np.testing.assert_allclose(found, [similar[1] + 0.5 * similar[3], np.zeros(ITEMS)], rtol=1e-5, atol=1e-7)


def test_with_any_distance_and_no_order_it_is_item_knn() -> None:
    x, _ = random_log(5)
    sequence = SequenceKNN(decay=1, lag_decay=1, backward=1, user_power=0.3, history_power=0.4, item_power=0.2)
    item = ItemKNN(decay=1, user_power=0.3, history_power=0.4, item_power=0.2)
    queries = batch([[0, 1], [4]])
    np.testing.assert_allclose(scores(sequence, x, queries), scores(item, x, queries), rtol=1e-5)


def test_sequence_knn_needs_an_order_and_a_decay() -> None:
    with pytest.raises(ConfigError, match="use model=item_knn"):
        SequenceKNN().fit(log([[0, 1]], order=False), quiet)
    with pytest.raises(ConfigError, match="lag_decay is 2"):
        SequenceKNN(lag_decay=2.0).fit(log([[0, 1]]), quiet)
    with pytest.raises(ConfigError, match="reach is 0"):
        SequenceKNN(reach=0).fit(log([[0, 1]]), quiet)


# EASE


@many
@given(seed=seeds, ridge=st.sampled_from([0.5, 3.0]))
def test_ease_is_for_each_item_a_ridge_regression_on_all_others(seed: int, ridge: float) -> None:
    x, _ = random_log(seed, order=False)
    clicks = x.matrix().toarray().astype(np.float64)
    weights = np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        others = [j for j in range(ITEMS) if j != i]
        given_ = clicks[:, others]
        weights[others, i] = np.linalg.solve(given_.T @ given_ + ridge * np.eye(ITEMS - 1), given_.T @ clicks[:, i])
    found = scores(EASE(regularisation=ridge), x, batch([[1, 3], []]))
    np.testing.assert_allclose(found, [weights[1] + weights[3], np.zeros(ITEMS)], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [1, 5, 1024, 1500])
def test_the_inverse_is_one_on_both_sides_of_the_diagonal(size: int) -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(size, 8)).astype(np.float32)
    matrix = root @ root.T + np.eye(size, dtype=np.float32)
    found = inverse(matrix.copy())
    np.testing.assert_allclose(found, found.T)
    np.testing.assert_allclose(found @ matrix, np.eye(size), atol=2e-3)


def test_ease_refuses_what_would_not_fit_into_memory() -> None:
    with pytest.raises(ConfigError, match=r"40,000 by 40,000 items, 6\.4 GB, and model\.memory_gb is 4\.0"):
        EASE().fit(log([[0]], items=40_000), quiet)
    with pytest.raises(ConfigError, match="positive"):
        EASE(regularisation=0).fit(log([[0]]), quiet)


# Bags


def test_a_bag_counts_known_values_and_nothing_else() -> None:
    a, b, c = FIRST, FIRST + 1, FIRST + 2
    found = bag(np.array([[b, a, b], [OOV, c, PAD], [MISSING, PAD, PAD]]), 6)
    assert found.toarray()[:, FIRST:].tolist() == [[1, 2, 0], [0, 0, 1], [0, 0, 0]]
    assert found.toarray()[:, :FIRST].sum() == 0
    assert bag(np.array([a, MISSING, c]), 6).toarray()[:, FIRST:].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_rare_values_weigh_more_and_absent_ones_nothing() -> None:
    bags = sparse.csr_array(np.array([[1.0, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]], np.float32))
    np.testing.assert_allclose(inverse_document_frequency(bags), [0, math.log(2), 0], rtol=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.4, 1.0])
def test_bags_are_divided_by_a_power_of_their_length(power: float) -> None:
    bags = sparse.csr_array(np.array([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]], np.float32))
    found = weighted(bags, np.array([3.0, 4.0, 1.0], np.float32), power).toarray()
    np.testing.assert_allclose(found, [[3 / 5**power, 4 / 5**power, 0], [0, 4 / 4**power, 0], [0, 0, 0]], rtol=1e-6)


@many
@given(seed=seeds, parts=st.integers(1, 3))
def test_a_crossed_inner_product_is_the_product_of_the_parts(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    bags = [rng.random((6, 4)) * (rng.random((6, 4)) < 0.5) for _ in range(parts)]
    found = crossed([sparse.csr_array(b) for b in bags]).toarray()
    np.testing.assert_allclose(found @ found.T, np.prod([b @ b.T for b in bags], axis=0), rtol=1e-6, atol=1e-12)


# Tf-idf

CITY = np.array([FIRST, FIRST, FIRST + 1, FIRST + 1])
TITLE = np.array([[FIRST, FIRST + 1], [FIRST, PAD], [FIRST + 1, PAD], [MISSING, PAD]])
CONTENT = {"city": CITY, "title": TITLE, "salary": np.zeros((4, 2), np.float32)}


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0


def test_tfidf_by_hand() -> None:
    """Words 0 and 1 occur in two of four titles, hence both weigh log 2, and titles 0, 1, 2 are at 45 degrees or 90."""
    found = scores(Tfidf(features={"title": 1.0}), log([[0]], 4, item_features=CONTENT), batch([[1], [0, 2], [3]]))
    half = math.sqrt(1 / 2)
    np.testing.assert_allclose(found, [[half, 1, 0, 0], [1 + half, half, half + 1, 0], [0] * 4], rtol=1e-6)


def test_the_powers_of_tfidf_by_hand() -> None:
    """The history's title 0 has two words and length √2 log² 2; the candidates' lengths do not count."""
    method = Tfidf(features={"title": 1.0}, idf_power=2.0, history_length_power=1.0, item_length_power=0.0)
    found = scores(method, log([[0]], 4, item_features=CONTENT), batch([[0]]))
    word = math.log(2) ** 2
    np.testing.assert_allclose(found, [[math.sqrt(2) * word, word / math.sqrt(2), word / math.sqrt(2), 0]], rtol=1e-6)


def test_features_add_up_by_weight_and_crossed_ones_multiply() -> None:
    x = log([[0]], 4, item_features=CONTENT)
    title = scores(Tfidf(features={"title": 1.0}), x, batch([[0]]))[0]
    city = np.array([1.0, 1, 0, 0])
    both = scores(Tfidf(features={"title": 0.5, "city": 2.0, "city*title": 3.0}), x, batch([[0]]))[0]
    np.testing.assert_allclose(both, 0.5 * title + 2 * city + 3 * city * title, rtol=1e-6)


@pytest.mark.parametrize(
    ("features", "word"),
    [(None, "set positive weights"), ({"title": 0.0}, "set positive weights"), ({"name": 1.0}, "names 'name'"),
     ({"city*salary": 1.0}, "'salary', which is a number")],
)  # fmt: skip
@pytest.mark.parametrize("side", ["item", "user"])
def test_features_that_cannot_be_compared_are_refused(side: str, features: dict[str, float], word: str) -> None:
    method = Tfidf(features=features) if side == "item" else KernelRidge(features=features)
    with pytest.raises(ConfigError, match=word) as e:
        method.fit(log([[0]], 4, **{f"{side}_features": CONTENT}), quiet)
    if "positive" not in word and "number" not in word:
        assert f"the {side} features are ['city', 'salary', 'title']" in str(e.value)


# Kernel ridge


@many
@given(seed=seeds)
def test_kernel_ridge_is_ridge_regression_on_the_weighted_bags(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text, place = rng.integers(MISSING, FIRST + 5, (USERS, 4)), rng.integers(MISSING, FIRST + 2, USERS)
    x, sequences = random_log(seed, order=False, user_features={"text": text, "place": place})
    trained = [u for u in range(USERS) if sequences[u]]
    parts = []
    for ids, weight in ((text, 0.7), (place[:, None], 0.2)):
        known = [[int(v) for v in row if v >= FIRST] for row in ids]
        df = {v: sum(v in known[u] for u in trained) for v in range(FIRST, FIRST + 5)}
        idf = {v: math.log(len(trained) / n) if n else 0.0 for v, n in df.items()}
        vectors = np.array([[idf[v] * row.count(v) for v in idf] for row in known])
        parts.append(math.sqrt(weight) * vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
    described, taken = np.hstack(parts), x.matrix().toarray().astype(np.float64)
    seen = described[trained]
    primal = np.linalg.solve(seen.T @ seen + 0.4 * np.eye(seen.shape[1]), seen.T @ taken[trained])
    method = KernelRidge(features={"text": 0.7, "place": 0.2}, regularisation=0.4)
    found = scores(method, x, batch([[]] * USERS))
    np.testing.assert_allclose(found, described @ primal, rtol=1e-4, atol=1e-5)


def test_kernel_ridge_needs_a_ridge() -> None:
    with pytest.raises(ConfigError, match="regularisation is 0"):
        KernelRidge(features={"city": 1.0}, regularisation=0).fit(log([[0]], user_features={"city": CITY[:1]}), quiet)


# Fitted

METHODS = [
    Popularity(),
    ItemKNN(decay=0.5),
    SequenceKNN(),
    EASE(),
    Tfidf(features={"title": 1.0}),
    KernelRidge(features={"city": 1.0}),
]


class Blocks:
    """Queries of a task, two at a time."""

    def __iter__(self) -> Any:
        return iter([batch([[0], [2, 1]], [0, 1]), batch([[], [3]], [2, 3])])

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_fitted_baseline_is_ranked_as_the_vectors_that_it_is_made_of(method: Baseline, tmp_path: Path) -> None:
    x = log([[0, 1], [2, 1, 3], [3]], 4, item_features=CONTENT, user_features=CONTENT)
    none = Ragged(np.zeros(5, np.int64), np.zeros(0, np.int64))
    wanted = Ragged(np.arange(5), np.array([1, 2, 3, 1]))
    task = Task("valid", np.arange(4), Blocks(), wanted, np.array([0, 2, 3]), none)
    state = method.fit(x, quiet)
    fitted.save(state, tmp_path / "checkpoints" / "baseline.npz")
    again = fitted.load(tmp_path / "checkpoints" / "baseline.npz")
    assert state.keys() == again.keys()
    for name, matrix in state.items():
        assert sparse.issparse(matrix) == sparse.issparse(again[name])
        np.testing.assert_array_equal(dense(matrix), dense(again[name]))
    scorer = Fitted(method, again, x.user_features).scorer(task)
    found = rank_scores(scorer, task, 3, block=3)
    wide = torch.from_numpy(dense(scorer.queries)).float(), torch.from_numpy(dense(scorer.items).T.copy()).float()
    expected = rank(*wide, task, 3)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
    assert all(parameter.dtype == np.float32 for parameter in state.values())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_items_that_ask_for_users_see_the_same_scores(method: Baseline) -> None:
    x = log([[0, 1], [2, 1, 3], [3]], 4, item_features=CONTENT, user_features=CONTENT)
    none = Ragged(np.zeros(5, np.int64), np.zeros(0, np.int64))
    known = Fitted(method, method.fit(x, quiet), x.user_features)
    users, items = np.arange(4), np.array([0, 2, 3])

    def table(task: Task) -> torch.Tensor:
        scorer = known.scorer(task)
        out = torch.empty(len(scorer), len(task.candidates))
        scorer.write(np.arange(len(scorer)), out)
        return out

    asked = table(Task("for users", users, Blocks(), Ragged(np.arange(5), items[[0, 1, 2, 1]]), items, none))
    wanted = Ragged(np.arange(4), users[:3])
    asking = table(
        Task("for items", items, Blocks(), wanted, users, Ragged(none.offsets[:4], none.values), retrieve="users")
    )
    assert asked.abs().sum() > 0
    torch.testing.assert_close(asking, asked.T)


def test_a_block_of_scores_may_lie_apart_in_memory() -> None:
    scorer = WideProducts(sparse.csr_array(np.eye(2, dtype=np.float32)), np.array([[1, 2], [3, 4]], np.float32))
    buffer = torch.full((2, 5), -1.0)
    scorer.write(np.array([1, 0]), buffer[:, :2])
    assert buffer.tolist() == [[3, 4, -1, -1, -1], [1, 2, -1, -1, -1]]
    assert len(scorer) == 2
