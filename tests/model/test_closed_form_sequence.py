from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.helpers import ids_only
from towers.errors import ConfigError, DataError
from towers.model.closed_form.factors import assign
from towers.model.closed_form.interactions import Interactions
from towers.model.closed_form.sequence import followers, sequence_svd
from towers.model.history import HistoryInputs, HistorySettings
from towers.model.tower import TowerSettings
from towers.model.two_tower import TwoTower


def log(*users: list[int], items: int, time: list[int] | None = None) -> Interactions:
    user = np.repeat(np.arange(len(users)), [len(u) for u in users])
    item = np.array([i for u in users for i in u], np.int64)
    order = np.concatenate([np.arange(len(u)) for u in users]) if time is None else np.array(time)
    return Interactions(user, item, np.ones(len(item), np.float32), len(users), items, order)


def silent(what: str, share: float) -> None:
    pass


def test_followers_by_hand() -> None:
    counts = followers(log([0, 1, 2], [1, 2], items=4), decay=0.5, backward=0.0).toarray()
    assert counts.tolist() == [[0, 1, 0.5, 0], [0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    both = followers(log([0, 1, 2], [1, 2], items=4), decay=0.5, backward=0.1).toarray()
    assert np.allclose(both, counts + 0.1 * counts.T)


def test_events_at_one_time_do_not_follow_one_another_nor_an_item_itself() -> None:
    counts = followers(log([0, 1, 2, 0], items=3, time=[0, 1, 1, 2]), decay=1.0, backward=0.0).toarray()
    assert counts.tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    users=st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=5),
    decay=st.sampled_from([1.0, 0.85, 0.3]),
    backward=st.sampled_from([0.0, 0.4]),
)
def test_followers_are_counted_pair_by_pair(users: list[list[int]], decay: float, backward: float) -> None:
    wanted = np.zeros((6, 6))
    for u in users:
        for a in range(len(u)):
            for b in range(a + 1, len(u)):
                if u[a] != u[b]:
                    wanted[u[a], u[b]] += decay ** (b - a - 1)
                    wanted[u[b], u[a]] += backward * decay ** (b - a - 1)
    assert np.allclose(followers(log(*users, items=6), decay, backward).toarray(), wanted)


def random_log(seed: int = 0, items: int = 12) -> Interactions:
    rng = np.random.default_rng(seed)
    return log(*(rng.permutation(items - 1)[: rng.integers(2, 8)].tolist() for _ in range(60)), items=items)


def test_factors_are_the_best_approximation_of_the_normalised_matrix() -> None:
    data, a, b = random_log(), 0.25, 0.4
    f = sequence_svd(data, 5, history_power=a, candidate_power=b, progress=silent)
    events = np.maximum(np.bincount(data.item, minlength=12), 1.0)
    matrix = events[:, None] ** -a * followers(data, 0.85, 0.3).toarray() * events**-b
    u, s, v = np.linalg.svd(matrix)
    best = (u[:, :5] * s[:5]) @ v[:5]
    assert f.history is not None
    ours = (f.history @ f.item.T).double().numpy()
    scale = (ours * best).sum() / (ours * ours).sum()
    assert np.allclose(scale * ours, best, atol=1e-5 * np.abs(best).max())
    for table in (f.item, f.history):
        assert torch.allclose(table[11], torch.zeros(5), atol=1e-6)  # it has no event
        assert float(table[:11].square().sum(1).mean()) == pytest.approx(1.0, abs=1e-5)
    again = sequence_svd(data, 5, history_power=a, candidate_power=b, progress=silent)
    assert torch.equal(f.item, again.item)


def test_a_model_that_starts_from_them_is_sequence_knn() -> None:
    """With (almost) all factors, scores are those of the matrix itself, weighted by the lags."""
    data = random_log()
    infos, table = ids_only(12)
    tower = TowerSettings(fusion="sum", body="none")
    pooling = HistorySettings(pooling="lags", table="separate", lag_decay=0.6)
    model = TwoTower([], infos, dim=11, user=tower, item=tower, history=pooling).eval()
    assign(model, sequence_svd(data, 11, history_power=0.0, candidate_power=0.0, progress=silent), table)
    vectors = model.history_inputs(table(torch.tensor([3, 7])))  # 3 is the newest
    one = torch.zeros(1, 2)
    query = model.embed_users({}, HistoryInputs(vectors[None], one == 0, one.long(), one))
    scores = (query @ model.embed_items(table(torch.arange(12))).T)[0].detach().numpy()
    matrix = followers(data, 0.85, 0.3).toarray()
    wanted = matrix[3] + 0.6 * matrix[7]
    assert np.corrcoef(scores, wanted)[0, 1] > 1 - 1e-6


def test_a_log_without_order_is_refused() -> None:
    data = random_log()
    untimed = Interactions(data.user, data.item, data.weight, data.n_users, data.n_items)
    with pytest.raises(DataError, match="order"):
        sequence_svd(untimed, 4, progress=silent)


def test_more_factors_than_items_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lower model\.dim"):
        sequence_svd(random_log(), 12, progress=silent)
