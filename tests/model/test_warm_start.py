"""Going on from an older model: a value keeps what was learnt of it, bit for bit, and a new one has its prior."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.model.helpers import full_model, infos
from towers.errors import ConfigError
from towers.features import FIRST, OOV, FeatureInfo, Kind
from towers.features.alignment import UNKNOWN
from towers.model.encoders import EncoderSettings
from towers.model.history import HistorySettings
from towers.model.light_gcn import LightGCN
from towers.model.optimisers import OptimiserSettings, build
from towers.model.tower import TowerSettings
from towers.model.two_tower import TwoTower
from towers.model.warm_start import Places, carried, carried_state, kinds, rows_of

# Today's four values: yesterday's second, a new one, yesterday's first, a new one.
MOVED = np.array([0, 1, 2, FIRST + 1, UNKNOWN, FIRST, UNKNOWN])
SETTINGS: dict[str, Any] = {"dim": 4, "user": TowerSettings(width=4), "item": TowerSettings(width=4)}


def world(values: int) -> list[FeatureInfo]:
    counts = np.r_[0, 0, 0, np.arange(values, 0, -1)]
    return [FeatureInfo("job", Kind.ID, 0, FIRST + values, counts),
            FeatureInfo("skills", Kind.CATEGORICAL_LIST, 4, FIRST + values, counts),
            FeatureInfo("age", Kind.NUMERIC, 2, 0)]  # fmt: skip


def model(values: int, encoders: EncoderSettings | None = None, **changes: Any) -> TwoTower:
    settings = {**SETTINGS, **changes}
    if encoders is not None:
        settings |= {s: replace(settings[s], encoders=encoders) for s in ("user", "item")}
    shared = [FeatureInfo("skills", Kind.CATEGORICAL_LIST, 4, FIRST + values, None, "items.skills")]
    return TwoTower(world(values), world(values), shared, 2, **settings)


WHERE: Places = {s: {"job": MOVED, "skills": MOVED} for s in ("user", "item", "context")}


def trained(m: nn.Module, settings: OptimiserSettings, steps: int = 3) -> torch.optim.Optimizer:
    """An optimiser with state, after steps that touch every weight."""
    optimiser = build(m, settings)
    sparse = {id(e.weight) for e in m.modules() if isinstance(e, nn.Embedding) and e.sparse}
    for _ in range(steps):
        for p in m.parameters():
            p.grad = torch.randn_like(p)
            p.grad = p.grad.to_sparse(1) if id(p) in sparse else p.grad
        optimiser.step()
    return optimiser


def test_rows_go_with_values_and_new_ones_start_as_the_unknown() -> None:
    old, new = model(3), model(4)
    state = carried(new.state_dict(), old.state_dict(), rows := rows_of(new, WHERE))
    new.load_state_dict(state)
    tables = [n for n in state if n.endswith(("feature_job.table.weight", "skills.table.weight", "log_weight.weight"))]
    assert set(tables) == set(rows)
    assert len(tables) == 9 - 1, "job and skills with its weights: of items, of users, and skills of the context"
    for name, value in old.state_dict().items():
        if name not in rows:
            assert torch.equal(state[name], value), name
            continue
        assert torch.equal(state[name][[0, 1, 2, 3, 5]], value[[0, 1, 2, 4, 3]]), name
        assert torch.equal(state[name][[4, 6]], value[[OOV, OOV]]), name


def test_a_new_job_scores_as_it_did_when_it_was_unknown() -> None:
    old, new = model(3).eval(), model(4).eval()
    with torch.no_grad():
        for table in (old.item_inputs.encoder("job"), old.user_inputs.encoder("job")):
            table.table.weight[OOV] = torch.randn(4)  # type: ignore[union-attr, operator]
    new.load_state_dict(carried(new.state_dict(), old.state_dict(), rows_of(new, WHERE)))
    skills = torch.tensor([[3, 4, 0, 0], [4, 0, 0, 0]])
    yesterday = {"job": torch.tensor([OOV, 3]), "skills": skills, "age": torch.rand(2, 2)}
    moved = {3: 5, 4: 3, 0: 0}
    today = {**yesterday, "job": torch.tensor([6, 5]),
             "skills": torch.tensor([[moved[int(x)] for x in row] for row in skills])}  # fmt: skip
    assert torch.allclose(old.embed_items(yesterday), new.embed_items(today), atol=1e-6)


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "sparse_adam", "dense"])
def test_state_goes_with_its_rows_and_is_zero_for_new_values(kind: str) -> None:
    torch.manual_seed(0)
    encoders = EncoderSettings(sparse_above=None if kind == "dense" else 5)
    settings = OptimiserSettings(table_optimiser="sparse_adam" if kind == "sparse_adam" else "rowwise_adagrad")
    old, new = model(3, encoders), model(4, encoders)
    before, after = trained(old, settings), build(new, settings)
    rows = rows_of(new, WHERE)
    state = carried_state(before.state_dict()["state"], kinds(old, before), now := kinds(new, after), rows)
    after.load_state_dict({**after.state_dict(), "state": state})
    old_names, new_names = (dict(m.named_parameters()) for m in (old, new))
    assert {n for n, _ in now} == set(new_names)
    moments = 0
    for name, p in new_names.items():
        was, here = before.state[old_names[name]], after.state[p]
        assert was.keys() == here.keys() != set()
        for key, value in was.items():
            if name in rows and isinstance(value, Tensor) and value.dim():
                assert torch.equal(here[key][[0, 1, 2, 3, 5]], value[[0, 1, 2, 4, 3]]), (name, key)
                assert not here[key][[4, 6]].any()
                assert value[FIRST:].any()
                moments += 1
            else:
                assert torch.equal(torch.as_tensor(here[key]), torch.as_tensor(value)), (name, key)
    # 4 tables of jobs and skills, 2 of weights (the context shares the items'); the users' and the items'
    assert moments == {"rowwise_adagrad": 6, "sparse_adam": 12, "dense": 12}[kind]


def test_a_step_after_the_change_is_the_step_without_it() -> None:
    """Only the order of the values changes: training on equals training on, permuted."""
    order = np.array([0, 1, 2, 5, 3, 4])
    where: Places = {s: {"job": order, "skills": order} for s in ("user", "item", "context")}
    encoders, settings = EncoderSettings(sparse_above=5), OptimiserSettings()
    old, new = model(3, encoders), model(3, encoders)
    before, after = trained(old, settings), build(new, settings)
    rows = rows_of(new, where)
    new.load_state_dict(carried(new.state_dict(), old.state_dict(), rows))
    copied = copy.deepcopy(before.state_dict()["state"])  # as from a checkpoint: optimisers must not share counters
    state = carried_state(copied, kinds(old, before), kinds(new, after), rows)
    after.load_state_dict({**after.state_dict(), "state": state})
    theirs = dict(new.named_parameters())
    for name, p in old.named_parameters():
        p.grad = torch.randn(p.shape)
        theirs[name].grad = p.grad[torch.from_numpy(order)] if name in rows else p.grad.clone()
    before.step()
    after.step()
    for name, p in old.named_parameters():
        assert torch.equal(theirs[name], p[torch.from_numpy(order)] if name in rows else p), name


def test_a_table_that_another_optimiser_takes_over_starts_without_state() -> None:
    small, large = EncoderSettings(sparse_above=6), EncoderSettings(sparse_above=6)
    old, new = model(3, small), model(4, large)  # 6 rows are dense, 7 are not
    before, after = trained(old, OptimiserSettings()), build(new, OptimiserSettings())
    names = kinds(new, after)
    state = carried_state(before.state_dict()["state"], kinds(old, before), names, rows_of(new, WHERE))
    assert {k for _, k in names} == {"AdamW", "RowwiseAdagrad"}
    assert set(state) == {i for i, (_, k) in enumerate(names) if k == "AdamW"}


def test_a_separate_table_of_histories_and_light_gcn_go_on_too() -> None:
    new = model(4, history=HistorySettings(pooling="mean", table="separate"))
    assert "history_item_inputs.encoders.feature_job.table.weight" in rows_of(new, WHERE)
    graph = LightGCN(world(4), world(4), dim=4)
    assert set(rows_of(graph, WHERE)) == {f"{s}_inputs.encoders.feature_job.table.weight" for s in ("user", "item")}


def test_hashed_tables_need_no_rows_since_keys_go_with_values() -> None:
    keys = np.array([[0, 0]] * 3 + [[5, 6], [7, 8], [9, 10]], np.int32)

    def hashing(order: list[int]) -> TwoTower:
        some = [replace(i, keys=(lambda: keys[order]) if i.cardinality else None) for i in world(3)]
        item = TowerSettings(width=4, encoders=EncoderSettings(table="hashed", table_rows=2))
        return TwoTower(world(3), some, (), 2, dim=4, item=item, user=TowerSettings(width=4)).eval()

    order = [0, 1, 2, 5, 3, 4]
    old, new = hashing(list(range(6))), hashing(order)
    where: Places = {s: {"job": np.array(order), "skills": np.array(order)} for s in ("user", "item", "context")}
    rows = rows_of(new, where)
    assert "item_inputs.encoders.feature_skills.log_weight.weight" in rows
    assert not [n for n in rows if n.startswith("item") and "table.table" in n]
    new.load_state_dict(carried(new.state_dict(), old.state_dict(), rows))
    n = len(order)
    today = {"job": torch.arange(n), "skills": torch.arange(n).repeat(4, 1).T, "age": torch.zeros(n, 2)}
    was = torch.tensor(order)
    yesterday = {"job": was, "skills": was.repeat(4, 1).T, "age": torch.zeros(n, 2)}
    assert torch.equal(new.embed_items(today), old.embed_items(yesterday))


def test_quotients_and_remainders_belong_to_ranks() -> None:
    encoders = EncoderSettings(table="quotient_remainder", table_rows=2)
    with pytest.raises(ConfigError, match=r"job has table=quotient_remainder.*table=hashed"):
        rows_of(model(4, encoders), WHERE)
    still: Places = {s: {"job": np.arange(7), "skills": np.arange(7)} for s in WHERE}
    assert rows_of(model(4, encoders), still)


def test_another_model_is_refused_with_what_differs() -> None:
    old = model(3).state_dict()
    for other, said in (
        (model(4, dim=6), "is [6"),
        (model(4, history=HistorySettings(pooling="attention")), "was not there"),
        (model(4, history=HistorySettings(pooling="none")), "is not there any more"),
    ):
        with pytest.raises(ConfigError) as e:
            carried(other.state_dict(), old, rows_of(other, WHERE))
        assert said in str(e.value)
        assert "leave its settings as they were" in str(e.value)


def test_every_parameter_with_a_row_for_each_value_is_known() -> None:
    """Whatever grows with a vocabulary has its rows mapped: compare two models of different vocabularies."""
    settings: dict[str, Any] = {"user": TowerSettings(width=16), "item": TowerSettings(width=12)}
    small, large = full_model(**settings), TwoTower(infos(15), infos(15), infos(15)[1:3], 3, dim=8, **settings,
                                                    history=HistorySettings(pooling="attention", length=6))  # fmt: skip
    grown = {n for n, p in large.state_dict().items() if p.shape != small.state_dict()[n].shape}
    where = {i.name: np.arange(15) for i in infos(15) if i.cardinality == 15}
    found = rows_of(large, dict.fromkeys(WHERE, where))
    assert grown == set(found)
