from __future__ import annotations

import pytest
import torch

from tests.model.helpers import full_model
from towers.errors import ConfigError
from towers.index.towers_onnx import export_user_tower
from towers.model.history import HistoryInputs, HistoryPooling, HistorySettings
from towers.model.sequence import SequenceSettings

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


def test_nothing_may_say_nothing_and_stay_so() -> None:
    p = HistoryPooling(HistorySettings("mean", nothing="zero"), 3, n_actions=2)
    h = inputs([[1, 1], [0, 0]])
    out = p(h)
    out.sum().backward()
    assert out[1].tolist() == [0.0, 0.0, 0.0]
    assert torch.allclose(out[0], h.vectors[0].mean(0))
    assert p.no_history.grad is None


def test_an_action_weighs_what_it_has_learned() -> None:
    p = pooling("mean", jitter=False)
    with torch.no_grad():
        p.action_logit.weight[:, 0] = torch.tensor([1.0, 3.0]).log()
    h = HistoryInputs(
        torch.eye(3)[None, :2], torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 1]]), torch.zeros(1, 2)
    )
    assert torch.allclose(p(h)[0], torch.tensor([0.25, 0.75, 0.0]), atol=1e-6)


def test_lags_may_start_with_falling_weights() -> None:
    p = HistoryPooling(HistorySettings(pooling="lags", length=3, lag_decay=0.5), 4, n_actions=1)
    h = HistoryInputs(
        torch.eye(4)[None], torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4)
    )
    assert torch.allclose(p(h)[0], torch.tensor([4.0, 2, 1, 1]) / 8, atol=1e-6)


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("block", ["none", "sasrec"])
def test_a_table_and_rows_say_what_gathered_vectors_say(kind: str, block: str) -> None:
    settings = HistorySettings(pooling=kind, length=4, sequence=SequenceSettings(block=block, heads=1, dropout=0.0))  # type: ignore[arg-type]
    p = HistoryPooling(settings, 3, n_actions=2)
    h = inputs([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    table = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    rows = torch.tensor([[4, 2, 2], [0, 3, 3], [1, 1, 1]])
    by_rows, by_vectors = p(h._replace(vectors=table, rows=rows)), p(h._replace(vectors=table[rows]))
    assert torch.allclose(by_rows, by_vectors, atol=1e-6)
    grads = [torch.autograd.grad(out.square().sum(), [table, p.action_logit.weight]) for out in (by_rows, by_vectors)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_events_and_whole_histories_are_dropped_in_training_only() -> None:
    h = inputs([[1] * 20] * 500)
    for settings, gone in (
        (HistorySettings(event_dropout=0.25), 0.25),
        (HistorySettings(history_dropout=0.25), 0.25),
        (HistorySettings(event_dropout=0.5, history_dropout=0.5), 0.75),
    ):
        p = HistoryPooling(settings, 3, n_actions=2)
        torch.manual_seed(0)
        kept = p._kept(h.mask)
        assert kept.float().mean() == pytest.approx(1 - gone, abs=0.05)
        whole = ~kept.any(1)
        assert whole.float().mean() == pytest.approx(settings.history_dropout, abs=0.06)
        p.eval()
        assert torch.equal(p._kept(h.mask), h.mask)


def test_a_history_that_was_dropped_trains_the_vector_of_those_without_any() -> None:
    p = HistoryPooling(HistorySettings(history_dropout=0.999), 3, n_actions=2)
    torch.manual_seed(0)
    p(inputs([[1, 1, 1]])).sum().backward()
    assert p.no_history.grad is not None
    assert p.no_history.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("block", ["sasrec", "ligr", "hstu"])
def test_an_encoder_is_added_at_its_weight_or_stands_alone(block: str) -> None:
    sequence = SequenceSettings(block=block, heads=1, dropout=0.0, weight=0.3)  # type: ignore[arg-type]
    both = HistoryPooling(HistorySettings(pooling="lags", sequence=sequence), 3, n_actions=2)
    alone = HistoryPooling(HistorySettings(pooling="sequence", sequence=sequence), 3, n_actions=2)
    assert both.sequence is not None
    assert alone.sequence is not None
    alone.sequence.load_state_dict(both.sequence.state_dict())
    h = inputs([[1, 1, 0], [0, 0, 0]])
    assert torch.allclose(both(h)[0], both.pool(h)[0] + 0.3 * alone(h)[0], atol=1e-6)
    for p in (both, alone):
        assert torch.equal(p(h)[1], p.no_history)
        none = HistoryInputs(*(x[:, :0] for x in h[:4]))
        assert torch.equal(p(none)[0], p.no_history)
        p(h)[1].sum().backward()
        assert all(w.grad is None or w.grad.isfinite().all() for w in p.parameters())


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [(1.0, [0.25, 0.75, 0.0]), (0.0, [1.0, 3.0, 0.0]), (0.5, [0.5, 1.5, 0.0]), (2.0, [1 / 16, 3 / 16, 0.0])],
)
def test_a_history_is_divided_by_a_power_of_its_summed_weights(gamma: float, expected: list[float]) -> None:
    """Weights 1 and 3: (v_1 + 3 v_2) / 4^γ, whether the vectors are given or looked up."""
    p = HistoryPooling(HistorySettings(length_power=gamma), 3, n_actions=2)
    with torch.no_grad():
        p.action_logit.weight[:, 0] = torch.tensor([1.0, 3.0]).log()
    h = HistoryInputs(
        torch.eye(3)[None], torch.tensor([[True, True, False]]), torch.tensor([[0, 1, 1]]), torch.zeros(1, 3)
    )
    by_rows = h._replace(vectors=torch.eye(3), rows=torch.tensor([[0, 1, 2]]))
    for history in (h, by_rows):
        torch.testing.assert_close(p(history)[0], torch.tensor(expected))


@pytest.mark.parametrize("kind", ["mean", "decay", "lags"])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 1.8])
def test_the_power_learns_and_empty_histories_stay_finite(kind: str, gamma: float) -> None:
    p = HistoryPooling(HistorySettings(pooling=kind, length=4, length_power=gamma), 3, n_actions=2)  # type: ignore[arg-type]
    out = p(inputs([[1, 1, 1], [0, 0, 0], [1, 1, 0]]))
    assert torch.equal(out[1], p.no_history)
    out.square().sum().backward()
    assert p.length_power is not None
    assert p.length_power.grad is not None
    assert p.length_power.grad != 0
    assert all(w.grad is None or w.grad.isfinite().all() for w in p.parameters())


def test_without_a_power_the_longest_history_is_no_longer_than_its_events() -> None:
    same = HistoryInputs(
        torch.ones(1, 9, 3), torch.ones(1, 9, dtype=torch.bool), torch.zeros(1, 9, dtype=torch.long), torch.zeros(1, 9)
    )
    mean, root = (HistoryPooling(HistorySettings(length_power=g), 3, n_actions=1) for g in (None, 0.5))
    torch.testing.assert_close(mean(same), torch.ones(1, 3))
    torch.testing.assert_close(root(same), torch.full((1, 3), 3.0))


def test_the_tower_with_a_power_of_length_is_exported() -> None:
    for kind in ("mean", "decay", "lags"):
        model = full_model(history=HistorySettings(pooling=kind, length=4, length_power=0.6))  # type: ignore[arg-type]
        export_user_tower(model)  # checks parity, empty histories included
    with pytest.raises(ConfigError, match=r"length_power is of the poolings mean, decay and lags, not of attention"):
        full_model(history=HistorySettings(pooling="attention", length_power=0.6))
