from __future__ import annotations

import pytest
import torch

from towers.model.history import HistoryInputs, HistoryPooling, HistorySettings

POOLINGS = ["mean", "decay", "lags", "attention"]


def pooling(kind: str, dim: int = 3, jitter: bool = True) -> HistoryPooling:
    p = HistoryPooling(HistorySettings(pooling=kind, length=4), dim, n_actions=2)  # type: ignore[arg-type]
    if jitter:  # away from the special initial values
        with torch.no_grad():
            for w in p.parameters():
                w.add_(0.3 * torch.randn(w.shape, generator=torch.Generator().manual_seed(0)))
    return p


def inputs(mask: list[list[int]], seed: int = 0) -> HistoryInputs:
    m = torch.tensor(mask, dtype=torch.bool)
    g = torch.Generator().manual_seed(seed)
    return HistoryInputs(
        torch.randn(*m.shape, 3, generator=g), m, torch.ones_like(m, dtype=torch.long), torch.rand(m.shape, generator=g)
    )


@pytest.mark.parametrize("kind", POOLINGS)
def test_an_empty_history_is_a_learned_vector_and_never_nan(kind: str) -> None:
    p = pooling(kind)
    empty = p(inputs([[0, 0, 0], [0, 0, 0], [1, 1, 0]]))
    none = p(
        HistoryInputs(
            torch.zeros(1, 0, 3),
            torch.zeros(1, 0, dtype=torch.bool),
            torch.zeros(1, 0, dtype=torch.long),
            torch.zeros(1, 0),
        )
    )
    assert torch.equal(empty[0], p.no_history)
    assert torch.equal(empty[1], p.no_history)
    assert torch.equal(none[0], p.no_history)
    empty.square().sum().backward()
    assert all(w.grad is None or w.grad.isfinite().all() for w in p.parameters())
    assert (p.no_history.grad != 0).all()


@pytest.mark.parametrize("kind", POOLINGS)
def test_padding_changes_nothing_whatever_it_holds(kind: str) -> None:
    p = pooling(kind)
    h = inputs([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    nan = torch.full((3, 2, 3), float("nan"))
    longer = HistoryInputs(
        torch.cat([h.vectors, nan], 1),
        torch.cat([h.mask, torch.zeros(3, 2, dtype=torch.bool)], 1),
        torch.cat([h.action, torch.zeros(3, 2, dtype=torch.long)], 1),
        torch.cat([h.age, torch.full((3, 2), 9.0)], 1),
    )
    longer.vectors[:, 3:] = 1e6
    assert torch.allclose(p(h), p(longer), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "lags", "attention"])
def test_training_starts_at_the_mean(kind: str) -> None:
    p = pooling(kind, jitter=False)
    if kind == "attention":
        torch.nn.init.zeros_(p.attention.query.weight)
    h = inputs([[1, 1, 0]])
    assert torch.allclose(p(h)[0], h.vectors[0, :2].mean(0), atol=1e-6)


def test_decay_is_exponential_in_position_and_age() -> None:
    p = pooling("decay", jitter=False)
    by_lag, by_age = torch.nn.functional.softplus(p.rates).tolist()
    h = HistoryInputs(
        torch.eye(3)[None],
        torch.ones(1, 3, dtype=torch.bool),
        torch.zeros(1, 3, dtype=torch.long),
        torch.tensor([[0.0, 1.0, 5.0]]),
    )
    expected = torch.exp(-torch.tensor([0.0, by_lag + by_age, 2 * by_lag + 5 * by_age]))
    assert torch.allclose(p(h)[0], expected / expected.sum(), atol=1e-6)


def test_lag_weights_are_those_of_the_positions() -> None:
    p = pooling("lags", jitter=False)
    with torch.no_grad():
        p.lag_logit[:, 0] = torch.tensor([8.0, 4.0, 2.0, 1.0]).log()
    h = HistoryInputs(
        torch.eye(6)[None], torch.ones(1, 6, dtype=torch.bool), torch.zeros(1, 6, dtype=torch.long), torch.zeros(1, 6)
    )
    p.no_history = torch.nn.Parameter(torch.zeros(6))
    assert torch.allclose(p(h)[0], torch.tensor([8.0, 4, 2, 1, 1, 1]) / 17, atol=1e-6)


def test_an_action_weighs_what_it_has_learned() -> None:
    p = pooling("mean", jitter=False)
    with torch.no_grad():
        p.action_logit.weight[:, 0] = torch.tensor([1.0, 3.0]).log()
    h = HistoryInputs(
        torch.eye(3)[None, :2], torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 1]]), torch.zeros(1, 2)
    )
    assert torch.allclose(p(h)[0], torch.tensor([0.25, 0.75, 0.0]), atol=1e-6)
