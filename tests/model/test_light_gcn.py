"""LightGCN: against dense matrices and by hand; a step, an export, and what the graph does not know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tests.model.helpers import encoded, ids_only, infos
from towers.errors import ConfigError
from towers.features import OOV, FeatureInfo, Kind
from towers.index.towers_onnx import export_item_tower, export_user_tower
from towers.model.closed_form.interactions import Interactions
from towers.model.graph import Graph, normalised
from towers.model.history import HistoryInputs
from towers.model.light_gcn import LightGCN
from towers.model.similarity import Similarity
from towers.model.tables import FeatureTable

USERS, ITEMS, D = 6, 5, 4
many = settings(derandomize=True, deadline=None, max_examples=20)


def log(pairs: list[tuple[int, int]], weight: list[float] | None = None) -> Interactions:
    user, item = np.array(pairs, np.int64).T
    w = np.ones(len(user)) if weight is None else np.array(weight)
    return Interactions(user, item, w.astype(np.float32), USERS, ITEMS)


def random_log(seed: int) -> Interactions:
    rng = np.random.default_rng(seed)
    pairs = [(u, i) for u in range(USERS) for i in range(ITEMS) if rng.random() < 0.4] or [(0, 0)]
    return log(pairs, rng.uniform(0.5, 2.0, len(pairs)).tolist())


def model(x: Interactions, **changes: Any) -> tuple[LightGCN, FeatureTable, FeatureTable]:
    """A model of plain ids, whose rows are 3 and up."""
    torch.manual_seed(changes.pop("seed", 0))
    (users, user_table), (items, item_table) = ids_only(USERS), ids_only(ITEMS)
    m = LightGCN(users, items, dim=D, **changes)
    m.connect(x, user_table, item_table)
    return m, user_table, item_table


def every(table: FeatureTable, n: int) -> dict[str, torch.Tensor]:
    return table(torch.arange(n))


def raw(m: LightGCN) -> torch.Tensor:
    """``E⁰``."""
    tables = (m.user_inputs.encoder("id"), m.item_inputs.encoder("id"))
    return torch.cat([t.table.weight[3:] for t in tables]).detach()  # type: ignore[union-attr]


def dense_propagation(x: Interactions, e: np.ndarray, layers: int, weighted: bool) -> np.ndarray:
    """The definition, with the whole matrix."""
    a = np.zeros((USERS + ITEMS, USERS + ITEMS))
    for u, i, w in zip(x.user, x.item, x.weight, strict=True):
        a[u, USERS + i] = a[USERS + i, u] = w if weighted else 1.0
    d = a.sum(1)
    scale = np.array([v**-0.5 if v else 0.0 for v in d])
    a = scale[:, None] * a * scale
    return np.mean([np.linalg.matrix_power(a, k) @ e for k in range(layers + 1)], axis=0)


# The graph


def test_two_users_and_two_items_by_hand() -> None:
    """User 0 took both items, user 1 the second: degrees 2, 1 and 1, 2."""
    r = sparse.csr_array(np.array([[1.0, 1.0], [0.0, 1.0]]))
    half, root = 0.5, 2**-0.5
    wanted = [[0, 0, root, half], [0, 0, 0, root], [root, 0, 0, 0], [half, root, 0, 0]]
    assert np.allclose(normalised(r).toarray(), wanted)


@given(st.integers(0, 1000))
@many
def test_sums_over_neighbours_are_a_matrix_product_and_their_gradient_its_transpose(seed: int) -> None:
    rng = np.random.default_rng(seed)
    half = sparse.random_array((7, 7), density=0.3, rng=rng, dtype=np.float64)
    a = sparse.csr_array(half + half.T)
    x = torch.tensor(rng.standard_normal((7, 3)), dtype=torch.float32, requires_grad=True)
    up = torch.tensor(rng.standard_normal((7, 3)), dtype=torch.float32)
    y = Graph(a, symmetric=True)(x)
    (y * up).sum().backward()
    assert np.allclose(y.detach().numpy(), a.toarray() @ x.detach().numpy(), atol=1e-5)
    assert x.grad is not None
    assert np.allclose(x.grad.numpy(), a.toarray().T @ up.numpy(), atol=1e-5)


def test_a_graph_that_is_not_symmetric_has_the_gradient_of_its_transpose() -> None:
    """Node 0 sums twice node 1: what comes back to node 1 is twice what node 0 is given."""
    g = Graph(sparse.csr_array(np.array([[0.0, 2.0], [0.0, 0.0]])))
    x = torch.tensor([[5.0], [7.0]], requires_grad=True)
    y = g(x)
    assert y.tolist() == [[14.0], [0.0]]
    (y * torch.tensor([[3.0], [11.0]])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0], [6.0]]


# The vectors


@given(st.integers(0, 1000), st.integers(0, 4), st.booleans())
@many
def test_users_and_items_are_the_mean_of_the_layers(seed: int, layers: int, weighted: bool) -> None:
    x = random_log(seed)
    m, users, items = model(x, layers=layers, weighted=weighted)
    wanted = dense_propagation(x, raw(m).numpy(), layers, weighted)
    with torch.no_grad():
        got = torch.cat([m.embed_users(every(users, USERS)), m.embed_items(every(items, ITEMS))])
    assert np.allclose(got.numpy(), wanted, atol=1e-5)


@given(st.integers(0, 1000), st.integers(1, 4))
@many
def test_gradients_are_those_of_dense_matrices(seed: int, layers: int) -> None:
    x = random_log(seed)
    m, users, items = model(x, layers=layers)
    up = torch.from_numpy(np.random.default_rng(seed).standard_normal((USERS, ITEMS))).float()
    scores = m.embed_users(every(users, USERS)) @ m.embed_items(every(items, ITEMS)).T
    (scores * up).sum().backward()
    e = raw(m).double().requires_grad_()
    polynomial = torch.from_numpy(dense_propagation(x, np.eye(USERS + ITEMS), layers, False))
    final = polynomial @ e
    (final[:USERS] @ final[USERS:].T * up).sum().backward()
    got = torch.cat([t.encoder("id").table.weight.grad[3:] for t in (m.user_inputs, m.item_inputs)])  # type: ignore
    assert e.grad is not None
    assert torch.allclose(got.double(), e.grad, atol=1e-4)


@given(st.integers(0, 1000), st.integers(0, 3))
@many
def test_a_new_user_is_one_with_a_vector_of_zero_who_changes_no_neighbour(seed: int, layers: int) -> None:
    x = random_log(seed)
    m, _, items = model(x, layers=layers)
    rows = np.random.default_rng(seed).permutation(ITEMS)[:3]
    e = raw(m).numpy()
    degree = np.bincount(x.item, minlength=ITEMS)
    below = dense_propagation(x, e, layers - 1, False)[USERS:] * layers if layers else np.zeros((ITEMS, D))
    scale = np.where(degree > 0, np.maximum(degree, 1), 1.0) ** -0.5
    wanted = sum(scale[i] * below[i] for i in rows) / (layers + 1) / np.sqrt(len(rows))
    with torch.no_grad():
        table = m.history_inputs(every(items, ITEMS))
        mask = torch.tensor([[True, True, True, False]])
        place = torch.tensor([[*rows.tolist(), 0]])
        zeros = torch.zeros(1, 4)
        unknown = {"id": torch.tensor([OOV])}
        by_rows = m.embed_users(unknown, HistoryInputs(table, mask, zeros.long(), zeros, place))
        by_vectors = m.embed_users(unknown, HistoryInputs(table[place], mask, zeros.long(), zeros))
        nothing = m.embed_users(unknown, HistoryInputs(table, mask & False, zeros.long(), zeros, place))
    assert np.allclose(by_rows[0].numpy(), wanted, atol=1e-5)
    assert torch.allclose(by_rows, by_vectors, atol=1e-6)
    assert not nothing.any()


def test_a_known_users_history_is_in_the_graph_and_is_not_counted_again() -> None:
    m, users, items = model(random_log(1))
    with torch.no_grad():
        table = m.history_inputs(every(items, ITEMS))
        zeros = torch.zeros(USERS, 2)
        history = HistoryInputs(table, zeros == 0, zeros.long(), zeros, zeros.long())
        assert torch.equal(m.embed_users(every(users, USERS), history), m.embed_users(every(users, USERS)))


def content_model(**changes: Any) -> tuple[LightGCN, FeatureTable, list[FeatureInfo]]:
    some = [i for i in infos() if i.kind is not Kind.VECTOR]
    table = {**encoded(some, ITEMS), "id": np.array([3, 4, 5, 6, OOV], np.int32)}
    users, user_table = ids_only(USERS)
    m = LightGCN(users, some, dim=D, item_include=["id", "skills"], **changes)
    pairs = [(0, 0), (0, 1), (1, 1), (2, 4)]  # item 4 has an unknown id: its edge holds on to nothing
    m.connect(log(pairs), user_table, FeatureTable(table))
    return m, FeatureTable(table).select(m.item_features), some


def test_new_items_are_the_share_of_their_content() -> None:
    m, items, _ = content_model()
    assert m.item_features == ("id", "skills")
    fresh = {**items(torch.tensor([0])), "id": torch.tensor([OOV])}
    with torch.no_grad():
        assert torch.allclose(m.embed_items(fresh), m.item_inputs(fresh) / 4)
        assert torch.allclose(m.history_inputs(fresh), m.item_inputs(fresh) / 4)
        alone = m.embed_items(items(torch.tensor([2, 4])))  # in the table, without edges
        assert torch.allclose(alone, m.item_inputs(items(torch.tensor([2, 4]))) / 4, atol=1e-6)


def test_new_items_without_content_are_zero() -> None:
    m, _, _ = model(random_log(0))
    assert not m.embed_items({"id": torch.tensor([OOV])}).any()


def test_a_cosine_has_unit_vectors() -> None:
    m, users, _ = model(log([(u, u % ITEMS) for u in range(USERS)]), similarity=Similarity("cosine", 0.1))
    assert torch.allclose(m.embed_users(every(users, USERS)).norm(dim=1), torch.ones(USERS))


# Once for a step, and never from old weights


def counted(m: LightGCN) -> list[int]:
    calls: list[int] = []
    assert m.graph is not None
    m.graph.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_step_propagates_once_and_the_next_one_anew() -> None:
    m, users, items = model(random_log(2), layers=3)
    calls = counted(m)
    optimiser = torch.optim.SGD(m.parameters(), lr=0.01)
    values = []
    for step in range(3):
        loss = (m.embed_users(every(users, USERS)) @ m.embed_items(every(items, ITEMS)).T).square().sum()
        m.history_inputs(every(items, ITEMS))
        assert len(calls) == 3 * (step + 1)
        loss.backward()  # twice through one graph would be an error
        if step:
            optimiser.step()
            optimiser.zero_grad()
        values.append(loss.item())
    assert values[0] == pytest.approx(values[1])  # two batches accumulate before the weights move
    assert values[2] < values[1]


def test_evaluation_sees_the_present_weights() -> None:
    m, _, items = model(random_log(3))
    other, _, _ = model(random_log(3), seed=1)
    m.eval()
    calls = counted(m)
    with torch.no_grad():
        before = m.embed_items(every(items, ITEMS))
        assert torch.equal(before, m.embed_items(every(items, ITEMS)))
        assert not calls  # all was propagated when evaluation began
        m.load_state_dict(other.state_dict())
        assert torch.equal(m.embed_items(every(items, ITEMS)), other.embed_items(every(items, ITEMS)))
    assert not torch.equal(before, other.embed_items(every(items, ITEMS)))


@pytest.mark.parametrize("fused", [False, True])
def test_evaluation_between_steps_sees_each_of_them(fused: bool) -> None:
    m, users, items = model(random_log(3))
    optimiser = torch.optim.AdamW(m.parameters(), lr=0.1, fused=fused)
    for _ in range(3):
        m.train()
        (m.embed_users(every(users, USERS)) @ m.embed_items(every(items, ITEMS)).T).square().sum().backward()
        optimiser.step()
        m.eval()
        with torch.no_grad():
            got = torch.cat([m.embed_users(every(users, USERS)), m.embed_items(every(items, ITEMS))])
        assert np.allclose(got.numpy(), dense_propagation(random_log(3), raw(m).numpy(), 3, False), atol=1e-5)


def test_the_graph_is_no_part_of_a_checkpoint() -> None:
    m, _, _ = model(random_log(0))
    m.eval()
    assert {k.split(".")[-1] for k in m.state_dict()} == {"weight"}


def test_the_towers_are_exported_as_look_ups() -> None:
    """Both check parity with torch: known and unknown ids, histories of any length."""
    m, _, _ = content_model()
    m.eval()
    export_user_tower(m)
    export_item_tower(m)


# What cannot be


def test_problems_of_the_settings_are_told_together() -> None:
    with pytest.raises(ConfigError, match=r"layers is -1(.|\n)*dim is 0(.|\n)*user_include names no id"):
        LightGCN(infos(), infos(), dim=0, layers=-1, user_include=["type"])
    with pytest.raises(ConfigError, match="vec"):
        LightGCN(infos(), infos(), item_include=["id", "vec"])


def test_a_model_without_a_graph_says_so() -> None:
    users, _ = ids_only(USERS)
    m = LightGCN(users, users).eval()
    with pytest.raises(ConfigError, match="no graph yet"):
        m.embed_items({"id": torch.tensor([3])})


def test_rows_that_share_an_id_cannot_be_nodes() -> None:
    users, table = ids_only(USERS)
    m = LightGCN(users, users)
    with pytest.raises(ConfigError, match="no two users share"):
        m.connect(log([(0, 0)]), FeatureTable({"id": np.full(USERS, 3, np.int32)}), table)


def test_prefixes_of_the_vectors() -> None:
    m, users, _ = model(random_log(4))
    whole = m.embed_users(every(users, USERS))
    m.truncate(2)
    assert torch.equal(m.embed_users(every(users, USERS)), whole[:, :2])
    with pytest.raises(ConfigError, match="1 to 2"):
        m.truncate(3)
