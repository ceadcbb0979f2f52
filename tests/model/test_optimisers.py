from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from towers.errors import ConfigError
from towers.model.optimisers import (
    CompositeOptimizer,
    OptimiserSettings,
    RowwiseAdagrad,
    build,
    learning_rate_factor,
    schedule,
)


def sparse(rows: list[int], values: list[list[float]], n: int) -> Tensor:
    return torch.sparse_coo_tensor(
        torch.tensor([rows]), torch.tensor(values), (n, len(values[0])), check_invariants=False
    )


def test_rowwise_adagrad_by_hand() -> None:
    """Row 1 occurs twice: its gradient is the sum, (3, 4), and its accumulator the mean square, 12.5."""
    table = nn.Parameter(torch.ones(3, 2))
    optimiser = RowwiseAdagrad([table], lr=0.1, eps=0.0)
    table.grad = sparse([1, 1, 2], [[1.0, 4.0], [2.0, 0.0], [2.0, 0.0]], 3)
    optimiser.step()
    g = 12.5**0.5
    expected = torch.tensor([[1.0, 1.0], [1 - 0.3 / g, 1 - 0.4 / g], [1 - 0.2 / 2**0.5, 1.0]])
    assert torch.allclose(table.detach(), expected)
    assert optimiser.state[table]["sum"].tolist() == pytest.approx([0.0, 12.5, 2.0])
    table.grad = sparse([2], [[0.0, 2.0]], 3)
    optimiser.step()
    assert torch.allclose(table.detach()[2], torch.tensor([1 - 0.2 / 2**0.5, 1 - 0.2 / 2.0]))
    assert torch.allclose(table.detach()[:2], expected[:2])


def test_of_width_one_it_is_adagrad() -> None:
    ours, theirs = nn.Parameter(torch.ones(4, 1)), nn.Parameter(torch.ones(4, 1))
    a, b = RowwiseAdagrad([ours], lr=0.3, eps=1e-8), torch.optim.Adagrad([theirs], lr=0.3, eps=1e-8)
    for step in range(5):
        g = torch.randn(4, 1, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = g, g.clone()
        a.step()
        b.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_sparse_and_dense_gradients_give_the_same_weights() -> None:
    tables = [nn.Embedding(6, 3, sparse=s) for s in (True, False)]
    tables[1].load_state_dict(tables[0].state_dict())
    optimisers = [RowwiseAdagrad(t.parameters(), lr=0.1) for t in tables]
    for rows in ([0, 1, 1], [5], [1, 4, 0]):
        for table, optimiser in zip(tables, optimisers, strict=True):
            optimiser.zero_grad()
            table(torch.tensor(rows)).square().sum().backward()
            optimiser.step()
    assert torch.allclose(tables[0].weight, tables[1].weight, atol=1e-6)


class Model(nn.Module):
    def __init__(self, sparse: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(8, 4, sparse=sparse)
        self.linear = nn.Linear(4, 2)

    def loss(self, step: int) -> Tensor:
        rows = torch.randint(8, (5,), generator=torch.Generator().manual_seed(step))
        out: Tensor = self.linear(self.table(rows)).square().mean()
        return out


def train(model: Model, optimiser: Any, steps: range) -> None:
    for step in steps:
        optimiser.zero_grad()
        model.loss(step).backward()
        optimiser.step()


def test_the_parts_do_what_they_would_do_alone() -> None:
    together, alone = Model(), Model()
    composite = CompositeOptimizer(
        [torch.optim.AdamW(together.linear.parameters(), 0.01), RowwiseAdagrad(together.table.parameters(), 0.1)]
    )
    parts = [torch.optim.AdamW(alone.linear.parameters(), 0.01), RowwiseAdagrad(alone.table.parameters(), 0.1)]
    train(together, composite, range(6))
    for step in range(6):
        alone.zero_grad()
        alone.loss(step).backward()
        for part in parts:
            part.step()
    for a, b in zip(together.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("table_optimiser", ["rowwise_adagrad", "sparse_adam"])
def test_state_goes_through_a_checkpoint(table_optimiser: str, tmp_path: Any) -> None:
    settings = OptimiserSettings(table_optimiser=table_optimiser, schedule="cosine", warmup=2)  # type: ignore[arg-type]

    def make() -> tuple[Model, Any, Any]:
        model = Model()
        optimiser = build(model, settings)
        return model, optimiser, schedule(optimiser, settings, 10)

    def run(model: Model, optimiser: Any, rates: Any, steps: range) -> None:
        for step in steps:
            train(model, optimiser, range(step, step + 1))
            rates.step()

    straight = make()
    run(*straight, range(8))

    first = make()
    run(*first, range(4))
    torch.save([x.state_dict() for x in first], tmp_path / "c.pt")
    resumed = make()
    for x, state in zip(resumed, torch.load(tmp_path / "c.pt"), strict=True):
        x.load_state_dict(state)
    run(*resumed, range(4, 8))
    for a, b in zip(straight[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)
    composite = resumed[1]
    assert all(part.state is composite.state for part in composite.parts)


def test_a_copy_is_independent() -> None:
    model = Model()
    optimiser = build(model, OptimiserSettings())
    train(model, optimiser, range(2))
    state = copy.deepcopy(optimiser.state_dict())
    train(model, optimiser, range(2, 4))
    optimiser.load_state_dict(state)
    assert {len(optimiser.state[p]) for p in model.parameters()} == {3, 1}  # AdamW keeps three things, Adagrad one


def test_a_schedule_drives_all_parts() -> None:
    model = Model()
    settings = OptimiserSettings(learning_rate=1.0, table_learning_rate=10.0, schedule="linear", warmup=2, final=0.1)
    optimiser = build(model, settings)
    rates = schedule(optimiser, settings, 4)
    seen = []
    for step in range(5):
        seen.append([part.param_groups[0]["lr"] for part in optimiser.parts])  # type: ignore[attr-defined]
        train(model, optimiser, range(step, step + 1))
        rates.step()
    assert [a for a, _ in seen] == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1])
    assert [b for _, b in seen] == pytest.approx([5.0, 10.0, 10.0, 5.5, 1.0])


def test_the_schedule_in_closed_form() -> None:
    def factors(steps: int, **changes: Any) -> list[float]:
        return [learning_rate_factor(t, OptimiserSettings(**changes), steps) for t in range(steps + 1)]

    assert factors(3) == [1.0] * 4
    assert factors(4, schedule="cosine") == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0])
    assert factors(4, warmup=0.5) == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert factors(2, schedule="linear", warmup=10) == pytest.approx([0.1, 0.2, 0.3])  # warm-up outlasts the run


def test_weights_decay_but_biases_and_temperatures_do_not() -> None:
    optimiser = build(Model(sparse=False), OptimiserSettings(weight_decay=0.1))
    assert not isinstance(optimiser, CompositeOptimizer)
    assert [(g["weight_decay"], len(g["params"])) for g in optimiser.param_groups] == [(0.1, 2), (0.0, 1)]


def test_a_model_of_sparse_tables_alone() -> None:
    assert isinstance(build(nn.Embedding(3, 2, sparse=True), OptimiserSettings()), RowwiseAdagrad)


def test_settings_are_checked_together() -> None:
    with pytest.raises(ConfigError) as e:
        OptimiserSettings(learning_rate=0, warmup=-1, schedule="step")  # type: ignore[arg-type]
    for part in ("learning_rate is 0", "warmup is -1", "schedule is 'step'"):
        assert part in str(e.value)


@pytest.mark.parametrize("table_optimiser", ["rowwise_adagrad", "sparse_adam"])
def test_accumulated_halves_are_the_whole(table_optimiser: str) -> None:
    """Sparse gradients of several backward passes add up, also where they meet in a row."""
    whole, halves = Model(), Model()
    rows = torch.tensor([0, 5, 5, 7])
    settings = OptimiserSettings(table_optimiser=table_optimiser)  # type: ignore[arg-type]
    for model, parts in ((whole, [rows]), (halves, [rows[:2], rows[2:]])):
        optimiser = build(model, settings)
        for _ in range(3):
            optimiser.zero_grad()
            for part in parts:
                (model.linear(model.table(part)).square().sum() / len(rows)).backward()
            assert model.table.weight.grad is not None
            assert model.table.weight.grad.is_sparse
            optimiser.step()
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
