from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.model.helpers import full_model, infos
from tests.model.helpers import table as feature_table
from towers.errors import ConfigError
from towers.features import FIRST, PAD, FeatureInfo, Kind
from towers.index.towers_onnx import export_item_tower, export_user_tower
from towers.model.closed_form.factors import Factors, assign
from towers.model.encoders import Bag, EncoderSettings, HashedBag, HashedLookup, Lookup, encoder
from towers.model.hashed_tables import HashedTable, QuotientRemainderTable
from towers.model.tower import TowerSettings

KINDS = ["hashed", "quotient_remainder"]


def settings(kind: str, rows: int = 7, sparse_above: int | None = None) -> EncoderSettings:
    return EncoderSettings(table=kind, table_rows=rows, sparse_above=sparse_above)  # type: ignore[arg-type]


def test_quotient_and_remainder_by_hand() -> None:
    """10 ordinary values in 4 rows: value v = 3 + n stands at (n mod 4, n div 4), the special ids by themselves."""
    t = QuotientRemainderTable(13, 4, 1, sparse=False)
    assert (len(t.remainder.weight), len(t.quotient.weight)) == (3 + 4, 1 + 3)
    with torch.no_grad():
        t.remainder.weight[:, 0] = torch.tensor([20.0, 21, 22, 1, 2, 3, 4])
        t.quotient.weight[:, 0] = torch.tensor([1.0, 10, 100, 1000])
    wanted = [20, 21, 22, 10, 20, 30, 40, 100, 200, 300, 400, 1000, 2000]
    assert t(torch.arange(13)).squeeze(1).tolist() == wanted


def test_hashes_are_what_they_say() -> None:
    rows, v, p = 1000, 123_456_789, 2**31 - 1
    t = HashedTable(rows, 2, sparse=False)
    first = FIRST + (1_540_483_477 * v + 668_265_263) % p % rows
    second = FIRST + (1_103_515_245 * v + 374_761_393) % p % rows
    assert torch.equal(t(torch.tensor([v]))[0], t.table.weight[first] + t.table.weight[second])


def test_hashes_spread_values_evenly_and_independently() -> None:
    rows, n = 1000, 20_000
    t = HashedTable(rows, rows, sparse=False)
    with torch.no_grad():
        t.table.weight.copy_(torch.cat([torch.zeros(FIRST, rows), torch.eye(rows)]))
    used = t(torch.arange(FIRST, FIRST + n))  # [n, R]: ones at the two rows of each value
    load = used.sum(0)
    assert load.sum() == 2 * n
    assert load.max() < 2 * load.mean()
    pairs = {tuple(r.nonzero().flatten().tolist()) for r in used}
    assert len(pairs) > 0.97 * n  # of half a million pairs; one hash function would leave a thousand


@pytest.mark.parametrize("kind", KINDS)
def test_values_start_apart_with_an_expected_length_of_one_and_special_ids_at_zero(kind: str) -> None:
    torch.manual_seed(0)
    e = encoder(FeatureInfo("id", Kind.ID, 0, 5000), 64, settings(kind, 100))
    assert isinstance(e, HashedLookup)
    assert (e(torch.arange(FIRST)) == 0).all()
    vectors = e(torch.arange(FIRST, 5000)).detach()
    assert vectors.norm(dim=1).mean() == pytest.approx(1, abs=0.1)
    assert (vectors @ vectors.T).fill_diagonal_(0).abs().mean() < 0.15
    assert sum(p.numel() for p in e.parameters()) < 160 * 64


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_learn_by_themselves(kind: str) -> None:
    e = encoder(FeatureInfo("id", Kind.ID, 0, 50), 4, settings(kind))
    before = e(torch.arange(50)).detach().clone()
    rate = torch.optim.SGD(e.parameters(), 0.1)
    e(torch.tensor([2])).sum().backward()
    rate.step()
    after = e(torch.arange(50)).detach()
    assert (after[2] != 0).all()
    assert torch.equal(after[3:], before[3:])
    assert torch.equal(after[:2], before[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_hashed_bag_is_the_bag_of_a_full_table_with_the_same_vectors(kind: str) -> None:
    info = infos(40)[2]
    ours = encoder(info, 6, settings(kind))
    assert isinstance(ours, HashedBag)
    full = Bag(info, 6, sparse=False)
    with torch.no_grad():
        full.table.weight.copy_(ours.table(torch.arange(40)))
    ids = torch.tensor([[3, 39, 17, PAD], [2, 4, PAD, PAD], [PAD] * 4])
    assert torch.allclose(ours(ids), full(ids), atol=1e-6)
    ours(ids).sum().backward()
    learned = [p.grad for p in ours.parameters()]
    assert all(g is not None and g.isfinite().all() for g in learned)


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_gradients_are_those_of_the_dense_table(kind: str) -> None:
    grads: list[list[Tensor]] = []
    for above in (None, 5):
        torch.manual_seed(1)
        e = encoder(FeatureInfo("id", Kind.ID, 0, 60), 4, settings(kind, sparse_above=above))
        e(torch.tensor([3, 3, 40, 1])).square().sum().backward()
        tables = [m for m in e.modules() if isinstance(m, nn.Embedding)]
        assert all(m.weight.grad.is_sparse == (above is not None) for m in tables)
        grads.append([m.weight.grad.to_dense() for m in tables])
    assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True))


def test_few_values_keep_a_full_table() -> None:
    assert isinstance(encoder(FeatureInfo("id", Kind.ID, 0, 7), 4, settings("hashed", 7)), Lookup)
    assert isinstance(encoder(FeatureInfo("id", Kind.ID, 0, 8), 4, settings("hashed", 7)), HashedLookup)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_exported(kind: str) -> None:
    """The exporter compares ONNX Runtime with torch, for one row and many."""
    tower = TowerSettings(width=8, encoders=settings(kind))
    model = full_model(user=tower, item=tower)
    assert export_user_tower(model)
    assert export_item_tower(model)


def test_closed_forms_refuse_them() -> None:
    tower = TowerSettings(fusion="sum", body="none", include=["id"], encoders=settings("hashed"))
    model = full_model(item=tower, dim=8)
    with pytest.raises(ConfigError, match=r"\['id'\] share rows.*model\.item\.encoders\.table=full"):
        assign(model, Factors(torch.zeros(20, 8)), feature_table(infos(), 20))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"model\.item\.encoders\.table is 'md5'.*\n.*|table_rows is 0"):
        full_model(item=TowerSettings(encoders=settings("md5", 0)))
