"""Heads for actions: alike at first, told apart by training, one vector when serving."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.model.helpers import N_ACTIONS, batch, full_model
from tests.model.test_module import ITEMS, USERS, retrieval
from towers.errors import ConfigError
from towers.features import Batch, Ragged
from towers.index.towers_onnx import export_user_tower
from towers.model.contrast import Contrast
from towers.model.heads import Heads, HeadSettings
from towers.model.history import HistorySettings
from towers.model.logits import item_columns
from towers.model.losses import binary
from towers.model.negatives import Negatives
from towers.model.similarity import Similarity

DIM = 8


def heads(serve: Any = None, seed: int = 0) -> Heads:
    torch.manual_seed(seed)
    out = Heads(HeadSettings(rank=2, serve=serve), dim=5, n_actions=3)
    torch.nn.init.normal_(out.up)
    return out


def test_all_heads_start_as_the_query_itself() -> None:
    fresh, q = Heads(HeadSettings(), 5, 3), torch.randn(4, 5)
    assert torch.equal(fresh.of_action(q, torch.tensor([0, 1, 2, 0])), q)
    assert torch.allclose(fresh.served(q, cosine=False), q)


def test_a_query_goes_through_the_head_of_its_action() -> None:
    h, q, action = heads(), torch.randn(4, 5), torch.tensor([2, 0, 2, 1])
    by_hand = torch.stack([x + x @ h.down[a] @ h.up[a] for x, a in zip(q, action.tolist(), strict=True)])
    assert torch.allclose(h.of_action(q, action), by_hand, atol=1e-6)


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_what_is_served_ranks_by_the_weighted_sum_of_the_heads_similarities(kind: Any) -> None:
    h, q, similarity = heads(serve=[1, 0, 3]), torch.randn(4, 5), Similarity(kind)
    items = similarity.normalise(torch.randn(7, 5))
    of = [similarity.normalise(h.of_action(q, torch.full((4,), a))) @ items.T for a in range(3)]
    wanted = 0.25 * of[0] + 0.75 * of[2]
    served = h.served(q, cosine=kind == "cosine")
    assert torch.allclose(served @ items.T, wanted, atol=1e-5)
    assert torch.equal((similarity.normalise(served) @ items.T).argsort(1), wanted.argsort(1))


def test_an_example_trains_the_head_of_its_own_action_only() -> None:
    h = heads()
    h.of_action(torch.randn(3, 5), torch.tensor([1, 1, 1])).sum().backward()
    assert h.up.grad is not None
    assert (h.up.grad.abs().sum((1, 2)) > 0).tolist() == [False, True, False]


def test_a_training_step_reads_the_actions_and_validation_serves_the_sum() -> None:
    module = retrieval()
    module.model.heads = heads_of(module.model.dim)
    one = batch(6, ITEMS, USERS, action=torch.tensor([0, 1, 2, 0, 1, 2]).numpy())
    module.eval()
    (served,) = module.embedder().embed_queries([one])
    trained = module.embed_users(one)
    base = torch.stack([module.embed_users(batch(6, ITEMS, USERS, action=[a] * 6)) for a in range(3)])
    assert torch.allclose(trained, base[[0, 1, 2, 0, 1, 2], torch.arange(6)], atol=1e-6)
    assert torch.allclose(served, F.normalize(base.mean(0), dim=1), atol=1e-5)


def heads_of(dim: int) -> Heads:
    out = Heads(HeadSettings(rank=2), dim, N_ACTIONS)
    torch.nn.init.normal_(out.up)
    return out


def test_the_exported_tower_asks_for_no_action() -> None:
    model = full_model(heads=HeadSettings(rank=2, serve=[0.0, 1.0, 2.0]), history=HistorySettings(pooling="mean"))
    assert model.heads is not None
    torch.nn.init.normal_(model.heads.up)
    export_user_tower(model)  # checks parity


def test_settings_that_cannot_work() -> None:
    for serve in ([1.0], [0.0, 0.0, 0.0], [1.0, -1.0, 1.0]):
        with pytest.raises(ConfigError, match=r"model\.heads\.serve"):
            Heads(HeadSettings(serve=serve), 5, 3)
    with pytest.raises(ConfigError, match=r"model\.heads\.rank"):
        Heads(HeadSettings(rank=0), 5, 3)
    with pytest.raises(ConfigError, match=r"model\.heads\.rank"):
        Heads(HeadSettings(rank=-1, calibrated=True), 5, 3)


def test_cosine_heads_are_unit_vectors_in_the_sum() -> None:
    h, q = heads(), torch.randn(2, 5)
    units = [F.normalize(h.of_action(q, torch.full((2,), a)), dim=1) for a in range(3)]
    assert torch.allclose(h.served(q, cosine=True), torch.stack(units).mean(0), atol=1e-6)


def calibrated(rank: int = 0) -> Heads:
    """Scales 1, 2, 1/2 and biases 0, -1, 3."""
    out = Heads(HeadSettings(rank=rank, calibrated=True), DIM, N_ACTIONS)
    assert out.calibration is not None
    with torch.no_grad():
        out.calibration.log_scale.copy_(torch.tensor([1.0, 2.0, 0.5]).log())
        out.calibration.bias.copy_(torch.tensor([0.0, -1.0, 3.0]))
    return out


def test_logits_are_the_scores_scaled_and_biased_by_action() -> None:
    """Scores of 4 and 6 (temperature 1/2): 4, 6; 2·4 - 1, 2·6 - 1; 4/2 + 3, 6/2 + 3. The corrections come after."""
    one, log_q = torch.zeros(3, 2), torch.tensor([0.25])
    one[:, 0] = 1.0
    step = Contrast(
        Batch(
            user=torch.arange(3), item=torch.zeros(3, dtype=torch.long), weight=torch.ones(3),
            history=torch.zeros(3, 0), history_action=torch.zeros(3, 0), history_age=torch.zeros(3, 0),
            known=Ragged(torch.zeros(4, dtype=torch.long), torch.zeros(0, dtype=torch.long)),
            action=torch.tensor([0, 1, 2]),
        ),
        Negatives(torch.tensor([1]), log_q),
        item_columns(torch.tensor([1]), 2),
        query=one,
        positive=2.0 * one,
        candidates=torch.tensor([[3.0, 9.0]]),
    )  # fmt: skip
    seen = step.cool(Similarity("dot", 0.5), calibrated())
    assert torch.allclose(seen.positive_logits(), torch.tensor([4.0, 7.0, 5.0]))
    assert torch.allclose(seen.negative_logits(), torch.tensor([[6.0], [11.0], [6.0]]) - log_q)
    plain = step.cool(Similarity("dot", 0.5), Heads(HeadSettings(), 2, 3))
    assert torch.allclose(plain.positive_logits(), torch.full((3,), 4.0))


def test_calibrations_are_learned_from_their_own_actions_and_not_served() -> None:
    module = retrieval(loss=binary, correct_negatives=False)
    module.model.heads = calibrated()
    module.model.heads.requires_grad_(True)
    contrast = module.contrast(batch(6, ITEMS, USERS, action=[1] * 6))
    module._loss(contrast).backward()
    for p in (module.model.heads.calibration.log_scale, module.model.heads.calibration.bias):
        assert (p.grad != 0).tolist() == [False, True, False]
    one = [batch(6, ITEMS, USERS)]
    (with_heads,) = module.embedder().embed_queries(one)
    module.model.heads = None
    (without,) = module.embedder().embed_queries(one)
    assert torch.equal(with_heads, without)  # rank 0: one query for all


def test_a_softmax_sees_no_bias() -> None:
    module = retrieval()
    module.model.heads = calibrated()
    module._loss(module.contrast(batch(6, ITEMS, USERS, action=[0, 1, 2] * 2))).backward()
    torch.testing.assert_close(module.model.heads.calibration.bias.grad, torch.zeros(N_ACTIONS), atol=1e-6, rtol=0)
    assert (module.model.heads.calibration.log_scale.grad != 0).all()


def test_a_tower_with_calibrated_heads_is_exported() -> None:
    for rank in (0, 2):
        export_user_tower(full_model(heads=HeadSettings(rank=rank, calibrated=True)))  # checks parity
