"""Closed forms: their values against dense algebra, and how they get into a model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.model.helpers import ids_only, infos, table
from towers.errors import ConfigError
from towers.features import FeatureInfo, Kind
from towers.model.closed_form.content import RIDGE, pooling_matrix
from towers.model.closed_form.factors import Factors, assign
from towers.model.closed_form.ials import eigenbasis, ials, solve
from towers.model.closed_form.interactions import Interactions
from towers.model.closed_form.svd import svd
from towers.model.encoders import Bag
from towers.model.history import HistoryInputs, HistorySettings
from towers.model.ridge import FoldIn, Ridge, conjugate_gradients
from towers.model.tables import FeatureTable
from towers.model.tower import TowerSettings
from towers.model.two_tower import TwoTower

SUM = TowerSettings(fusion="sum", body="none")
USERS, ITEMS = 12, 9


def quiet(what: str, share: float) -> None:
    """No progress bar."""


def clicks(seed: int = 0, users: int = USERS, items: int = ITEMS, share: float = 0.4, **more: Any) -> Interactions:
    """Random clicks; every user and every item has one."""
    rng = np.random.default_rng(seed)
    r = rng.random((users, items)) < share
    r[np.arange(users), np.arange(users) % items] = True
    user, item = np.nonzero(r)
    return Interactions(user, item, np.ones(len(user), np.float32), users, items, **more)


def model(dim: int, pooling: str = "mean", shared: str = "separate", items: int = ITEMS, **more: Any) -> TwoTower:
    item_infos, _ = ids_only(items)
    history = HistorySettings(pooling=pooling, table=shared)  # type: ignore[arg-type]
    return TwoTower([], item_infos, dim=dim, **{"user": SUM, "item": SUM, "history": history, **more}).eval()


def history_of(lists: list[list[int]], vectors: Tensor) -> HistoryInputs:
    longest = max(1, *map(len, lists))
    rows = torch.tensor([x + [-1] * (longest - len(x)) for x in lists])
    nothing = torch.zeros_like(rows)
    return HistoryInputs(vectors[rows.clamp(min=0)], rows >= 0, nothing, nothing.float())


def queries(m: TwoTower, items: FeatureTable, x: Interactions) -> Tensor:
    lists = [x.item[x.user == u].tolist() for u in range(x.n_users)]
    vectors = m.history_inputs(items(torch.arange(len(items))))
    return m.embed_users({}, history_of(lists, vectors))


def candidates(m: TwoTower, items: FeatureTable) -> Tensor:
    return m.embed_items(items(torch.arange(len(items))))


def test_the_matrix_holds_each_pair_once_with_its_largest_weight() -> None:
    x = Interactions(np.array([0, 0, 1]), np.array([2, 2, 0]), np.array([1.0, 3.0, 2.0], np.float32), 2, 3)
    assert x.matrix().toarray().tolist() == [[0, 0, 3], [2, 0, 0]]


# --- truncated SVD


@pytest.mark.parametrize(
    ("a", "b", "h", "c", "p"), [(0.5, 0.5, 0.5, 0.5, 0.0), (0.0, 0.0, 0.0, 0.0, 0.0), (0.3, 0.7, 0.4, 0.2, 1.0)]
)
def test_scores_of_the_svd_tower_are_those_of_a_dense_svd(a: float, b: float, h: float, c: float, p: float) -> None:
    x, dim = clicks(), 4
    m, (_, items) = model(dim), ids_only(ITEMS)
    f = svd(x, dim, user_power=a, item_power=b, history_power=h, candidate_power=c, spectrum=p, progress=quiet)
    assign(m, f, items)

    r = x.matrix().toarray().astype(float)
    du, di = r.sum(1), r.sum(0)
    _, s, q = np.linalg.svd(r / du[:, None] ** a / di**b)
    wanted = (r / di**h) @ (q[:dim].T * s[:dim] ** p) @ (q[:dim] * di**c)
    got = (queries(m, items, x) @ candidates(m, items).T).detach().numpy()
    wanted /= du[:, None]  # a mean divides by the number of events
    np.testing.assert_allclose(got / np.linalg.norm(got), wanted / np.linalg.norm(wanted), atol=1e-5)
    assert f.item.square().sum(1).mean() == pytest.approx(1.0)


def test_with_all_directions_and_the_spectrum_squared_it_is_item_knn() -> None:
    """Q S² Qᵀ = R̃ᵀ R̃: cosines between the items' columns, if users are not normalised."""
    x = clicks(users=30)
    f = svd(x, ITEMS - 1, user_power=0.0, history_power=0.0, candidate_power=0.0, spectrum=2.0, progress=quiet)
    r = x.matrix().toarray().astype(float)
    cosine = (r / np.linalg.norm(r, axis=0)).T @ (r / np.linalg.norm(r, axis=0))
    assert f.history is not None
    got = (f.history @ f.item.T).numpy()
    got *= np.linalg.eigvalsh(cosine)[-1] / np.linalg.norm(got, 2)  # factors have a scale of their own
    smallest = np.linalg.eigvalsh(cosine)[0]  # the one direction that is left out
    assert np.linalg.norm(got - cosine, 2) == pytest.approx(smallest, abs=1e-4)


def test_svd_wants_fewer_factors_than_items() -> None:
    with pytest.raises(ConfigError, match=r"lower model\.dim"):
        svd(clicks(), ITEMS, progress=quiet)


# --- iALS


def loss(u: Tensor, v: Tensor, r: Tensor, alpha0: float, reg: float, nu: float) -> Tensor:
    s, there = u @ v.T, (r > 0).double()
    n_u, n_i = r.sum(1) + alpha0 * r.shape[1], r.sum(0) + alpha0 * r.shape[0]
    fit = (r * (s - 1) ** 2 * there).sum() + alpha0 * (s**2).sum()
    return fit + reg * ((n_u**nu) @ (u**2).sum(1) + (n_i**nu) @ (v**2).sum(1))


@pytest.mark.parametrize("nu", [0.0, 0.7, 1.0])
def test_ials_ends_where_the_loss_is_flat(nu: float) -> None:
    x, alpha0, reg = clicks(), 0.1, 0.05
    f = ials(x, 3, alpha0=alpha0, reg=reg, nu=nu, iterations=300, progress=quiet)
    r = torch.from_numpy(x.matrix().toarray()).double()
    assert f.gram is not None
    assert f.ridge is not None
    u = solve(x.matrix(), f.item, f.gram, f.ridge).double().requires_grad_()
    v = f.item.double().requires_grad_()
    loss(u, v, r, alpha0, reg, nu).backward()  # type: ignore[no-untyped-call]
    scale = float(u.detach().norm())
    assert scale > 0.1
    assert u.grad is not None
    assert v.grad is not None
    assert float(u.grad.norm()) < 1e-3 * scale
    assert float(v.grad.norm()) < 1e-3 * scale


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), dim=st.integers(1, 12), alpha0=st.floats(0.0, 1.0), nu=st.floats(0.0, 1.0))
def test_every_row_solves_its_normal_equations(seed: int, dim: int, alpha0: float, nu: float) -> None:
    """Short rows go through Woodbury's identity and long ones do not: the answer is the same."""
    rng = np.random.default_rng(seed)
    x = clicks(seed, users=20, items=11).matrix()
    x.data[:] = rng.uniform(0.2, 2.0, len(x.data))
    v, g = eigenbasis(torch.from_numpy(rng.standard_normal((11, dim))).float())
    ridge = Ridge(0.1, nu, alpha0 * 11)
    got = solve(x, v, alpha0 * g, ridge).numpy()
    w, vectors = x.toarray(), v.numpy().astype(float)
    for u in range(20):
        lam = 0.1 * (w[u].sum() + alpha0 * 11) ** nu
        a = alpha0 * vectors.T @ vectors + lam * np.eye(dim) + vectors.T @ (w[u][:, None] * vectors)
        np.testing.assert_allclose(got[u], np.linalg.solve(a, vectors.T @ w[u]), rtol=1e-2, atol=1e-4)


def test_rows_without_events_stay_at_zero() -> None:
    x = Interactions(np.array([0]), np.array([0]), np.ones(1, np.float32), 3, 4)
    f = ials(x, 2, iterations=1, progress=quiet)
    assert (f.item[1:] == 0).all()
    assert (f.item[0] != 0).any()


def test_content_counts_as_users_who_clicked_what_has_it() -> None:
    """Two values with weight 1 are the same as two more users, seen from the items."""
    values = np.array([[3, 4], [3, 0], [4, 4]] * 3, np.int32)  # PAD and a value that stands twice are one or no click
    x = clicks(item_features={"skills": values})
    both = ials(x, 4, content={"skills": 1.0}, progress=quiet)
    rows = np.stack([(values == 3).any(1), (values == 4).any(1)])
    more = np.nonzero(rows)
    y = Interactions(
        np.r_[x.user, USERS + more[0]], np.r_[x.item, more[1]], np.ones(len(x.user) + len(more[0]), np.float32),
        USERS + 2, ITEMS,
    )  # fmt: skip
    torch.testing.assert_close(both.item, ials(y, 4, progress=quiet).item, rtol=1e-3, atol=1e-4)


def test_content_must_be_a_categorical_feature() -> None:
    x = clicks(item_features={"skills": np.zeros((ITEMS, 2), np.int32), "vec": np.zeros((ITEMS, 2), np.float32)})
    with pytest.raises(ConfigError, match=r"'vec'.*\['skills'\]"):
        ials(x, 4, content={"vec": 1.0}, progress=quiet)


def test_a_ridge_tower_is_the_fold_in() -> None:
    x, dim = clicks(), 5
    m, (_, items) = model(dim, "ridge", "shared"), ids_only(ITEMS)
    f = ials(x, dim, alpha0=0.1, reg=0.02, progress=quiet)
    assign(m, f, items)
    assert f.gram is not None
    assert f.ridge is not None
    torch.testing.assert_close(queries(m, items, x), solve(x.matrix(), f.item, f.gram, f.ridge), rtol=1e-3, atol=1e-5)


# --- the fold-in as a layer


@settings(derandomize=True, deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), length=st.integers(1, 40), spread=st.floats(0.0, 3.0))
def test_conjugate_gradients_solve(seed: int, length: int, spread: float) -> None:
    """Long and short vectors side by side are what the preconditioner is for."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, length, 64)) * np.exp(spread * rng.standard_normal((3, length, 1))) / 8
    k, b = x @ x.transpose(0, 2, 1), rng.standard_normal((3, length))
    wanted = np.linalg.solve(np.eye(length) + k, b[..., None])[..., 0]
    diagonal = np.einsum("bii->bi", k).copy()
    got = conjugate_gradients(*map(torch.from_numpy, (k, diagonal, b))).numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-3 * np.abs(wanted).max())


def test_the_fold_in_weighs_events_ignores_padding_and_is_zero_without_any() -> None:
    layer = FoldIn(2)
    layer.set(torch.tensor([0.5, 1.5]), Ridge(0.25, 1.0, 2.0))
    v = torch.tensor([[[1.0, 0.0], [1.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    log_w = torch.tensor([[0.0, math.log(3.0), -1e30], [-1e30, -1e30, -1e30]])
    # Σ w v vᵀ = [[4, 6], [6, 12]], Σ w v = [4, 6], λ = .25 (4 + 2) = 1.5
    wanted = np.linalg.solve(np.array([[4 + 0.5 + 1.5, 6.0], [6.0, 12 + 1.5 + 1.5]]), [4.0, 6.0])
    got = layer(v, log_w).detach().numpy()
    np.testing.assert_allclose(got[0], wanted, rtol=1e-5)
    assert (got[1] == 0).all()


def test_the_fold_in_has_gradients() -> None:
    layer = FoldIn(3).double()
    v = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (v, w))
    empty = torch.full((2, 4), -1e30, dtype=torch.float64, requires_grad=True)
    layer(v, empty).sum().backward()
    assert torch.isfinite(v.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(empty.grad).all()  # type: ignore[arg-type]


# --- assigning


def hybrid(items: list[FeatureInfo], **more: Any) -> TwoTower:
    history = HistorySettings(pooling="mean", table="separate")
    return TwoTower(infos()[1:2], items, **{"dim": 4, "user": SUM, "item": SUM, "history": history, **more}).eval()


CONTENT = [infos()[0], infos()[2]]  # an id and a list of skills


def distinct(n: int = ITEMS) -> FeatureTable:
    """Items with ids of their own, the last of which training never saw."""
    some = table(CONTENT, n)
    ids = torch.arange(n, dtype=torch.int32) + 3
    ids[-1] = 2
    return FeatureTable({"id": ids, "skills": some.column("skills")})


def test_known_items_get_their_factors() -> None:
    m, items = hybrid(CONTENT), distinct()
    f = Factors(torch.randn(ITEMS, 4), torch.randn(ITEMS, 4))
    assign(m, f, items)
    torch.testing.assert_close(candidates(m, items)[:-1], f.item[:-1])
    assert f.history is not None
    torch.testing.assert_close(m.history_inputs(items(torch.arange(ITEMS - 1))), f.history[:-1])


def test_new_items_get_what_content_says_of_the_known_ones() -> None:
    """Ridge regression on the weights with which the bag pools its values, solved densely here."""
    m, items = hybrid(CONTENT), distinct()
    f = Factors(torch.randn(ITEMS, 4), torch.randn(ITEMS, 4))
    bag = m.item_inputs.encoder("skills")
    assert isinstance(bag, Bag)
    x = pooling_matrix(bag, items.column("skills")).toarray()
    assert np.allclose(x.sum(1), 1.0)  # a mean, before training
    assign(m, f, items)
    known = x[:-1]
    wanted = x[-1] @ np.linalg.solve(known.T @ known + RIDGE * np.eye(x.shape[1]), known.T @ f.item[:-1].numpy())
    np.testing.assert_allclose(candidates(m, items)[-1].detach().numpy(), wanted, atol=1e-5)


def test_content_that_decides_the_factors_is_believed() -> None:
    """Where items of one category share a vector and are many, a new item of the category has it too."""
    category = FeatureInfo("category", Kind.CATEGORICAL, 0, 5)
    ids = torch.arange(201, dtype=torch.int32) + 3
    ids[-1] = 2
    items = FeatureTable({"id": ids, "category": torch.arange(201, dtype=torch.int32) % 2 + 3})
    m = TwoTower([], [FeatureInfo("id", Kind.ID, 0, 204), category], dim=4, user=SUM, item=SUM).eval()
    two = torch.randn(2, 4)
    assign(m, Factors(two[torch.arange(201) % 2]), items)
    torch.testing.assert_close(candidates(m, items)[-1], two[0], rtol=0.02, atol=0.02)


def test_user_features_start_silent() -> None:
    m, items = hybrid(CONTENT), distinct()
    assign(m, Factors(torch.randn(ITEMS, 4)), items)
    vectors = torch.randn(1, 2, 4)
    h = HistoryInputs(
        vectors, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2)
    )
    torch.testing.assert_close(m.embed_users({"type": torch.tensor([4])}, h), vectors.mean(1))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"item": TowerSettings(fusion="concat", width=4, body="none")}, r"model\.item\.fusion=sum"),
        ({"user": TowerSettings(fusion="concat", width=4, body="none")}, r"model\.user\.fusion=sum"),
        ({"item": TowerSettings(fusion="sum", body="mlp")}, r"model\.item\.body=none"),
        ({"user": TowerSettings(fusion="sum", body="mlp")}, r"model\.user\.body=none"),
        ({"item": TowerSettings(fusion="sum", body="none", exclude=["id"])}, "reads no id"),
        ({"history": HistorySettings(pooling="mean")}, r"model\.history\.table=separate"),
        ({"history": HistorySettings(pooling="none")}, r"model\.history\.pooling=mean"),
        ({"history": HistorySettings(pooling="ridge")}, "no fold-in"),
        ({"dim": 5}, r"set model\.dim=4"),
    ],
)
def test_what_does_not_fit_is_told_with_its_cure(changes: dict[str, Any], told: str) -> None:
    m = hybrid(CONTENT, **changes)
    with pytest.raises(ConfigError, match=told):
        assign(m, Factors(torch.randn(ITEMS, 4), torch.randn(ITEMS, 4)), distinct())


def test_an_id_that_items_share_is_not_theirs() -> None:
    """Employers have ids too; factors are written to the feature that tells every item apart."""
    employer = FeatureInfo("employer", Kind.ID, 0, 12)
    m = TwoTower([], [employer, CONTENT[0]], dim=4, user=SUM, item=SUM, history=HistorySettings()).eval()
    items = FeatureTable({"employer": torch.tensor([3, 3, 4], dtype=torch.int32), "id": torch.tensor([3, 4, 5])})
    f = Factors(torch.randn(3, 4))
    assign(m, f, items)
    torch.testing.assert_close(candidates(m, items), f.item)
