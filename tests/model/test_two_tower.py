from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu

from tests.model.helpers import N_ACTIONS, full_model, ids_only, infos, table
from towers.errors import ConfigError
from towers.features import OOV
from towers.model.encoders import EncoderSettings
from towers.model.history import HistoryInputs, HistorySettings
from towers.model.similarity import Similarity
from towers.model.tower import CrossLayer, Inputs, ResidualBlock, Tower, TowerSettings
from towers.model.two_tower import TwoTower

MF = TowerSettings(include=["id"], fusion="sum", body="none")


def test_matrix_factorisation_is_a_configuration() -> None:
    user, _ = ids_only(3)
    item, _ = ids_only(4)
    model = TwoTower(user, item, dim=5, user=MF, item=MF, history=HistorySettings(pooling="none"))
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == {
        "item_inputs.encoders.feature_id.table.weight": (7, 5),
        "user_inputs.encoders.feature_id.table.weight": (6, 5),
    }
    ids = torch.tensor([3, 5])
    assert torch.equal(model.embed_users({"id": ids}), model.user_inputs.encoders["feature_id"].table.weight[[3, 5]])


def test_a_history_pooled_model_without_user_features() -> None:
    item, items = ids_only(4)
    plain = TowerSettings(fusion="sum", body="none")
    model = TwoTower([], item, dim=5, user=plain, item=plain, history=HistorySettings(pooling="mean"))
    vectors = model.history_inputs(items(torch.tensor([1, 2])))
    h = HistoryInputs(
        vectors[None], torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2)
    )
    assert torch.allclose(model.embed_users({}, h)[0], vectors.mean(0), atol=1e-6)


@pytest.mark.parametrize("body", ["none", "mlp", "dense", "cross"])
@pytest.mark.parametrize("pooling", ["none", "mean", "decay", "lags", "attention"])
@pytest.mark.parametrize("which", ["shared", "separate"])
def test_every_shape_embeds_both_sides(body: str, pooling: str, which: str) -> None:
    history = HistorySettings(pooling=pooling, table=which, length=3)  # type: ignore[arg-type]
    tower = TowerSettings(width=10, body=body, layers=2, dropout=0.1)  # type: ignore[arg-type]
    model = full_model(user=tower, item=tower, history=history)
    users, items, context = table(infos(), 4), table(infos(), 6, 1), table(infos()[1:3], 4, 2)
    rows = torch.tensor([[0, 1, 5, 2]]).expand(4, 4)
    inputs = None
    if pooling != "none":
        vectors = model.history_inputs(items(rows.reshape(-1))).view(4, 4, -1)
        assert vectors.shape[-1] == model.history_dim
        inputs = HistoryInputs(
            vectors, torch.ones(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.long), torch.ones(4, 4)
        )
    four = torch.arange(4)
    q, c = model.embed_users(users(four), inputs, context(four)), model.embed_items(items(torch.arange(6)))
    assert (q.shape, c.shape) == ((4, 8), (6, 8))
    assert torch.allclose(q.norm(dim=1), torch.ones(4), atol=1e-5)  # a cosine's vectors have unit length
    (q @ c.T).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_dense_body_is_a_plain_perceptron() -> None:
    settings = TowerSettings(width=5, body="dense", layers=2)
    tower, x = Tower(5, 3, settings), torch.randn(4, 5)  # x: what the linear layer of a concat made
    hidden, last = tower.body[1].inner[0], tower.project
    by_hand = gelu(gelu(x) @ hidden.weight.T + hidden.bias) @ last.weight.T + last.bias
    assert torch.allclose(tower(x), by_hand, atol=1e-6)
    assert sum(isinstance(m, torch.nn.Linear) for m in tower.modules()) == 2


def test_all_problems_are_told_at_once_with_their_cures() -> None:
    with pytest.raises(ConfigError) as e:
        TwoTower(
            infos(),
            infos(),
            user=TowerSettings(include=["id"], id_dropout=0.5, width=0),
            item=TowerSettings(exclude=["skillz"], dropout=1.0, body="deep"),  # type: ignore[arg-type]
            history=HistorySettings(pooling="none", heads=0),
        )
    told = str(e.value)
    for part in (
        "model.user.width is 0",
        "model.user.id_dropout leaves nothing",
        "skillz",
        "model.item.dropout is 1.0",
        "model.item.body is 'deep'",
        "model.history.heads is 0",
    ):
        assert part in told
    assert told.count("\n") == 6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"item": TowerSettings(fusion="sum", body="dense")}, "set model.item.fusion=concat"),
        ({"user": TowerSettings(body="mlp", rank=4)}, "model.user.rank is of the body cross, not of mlp"),
        ({"item": TowerSettings(include=[])}, "the item tower reads no feature"),
        ({"user": TowerSettings(include=[]), "history": HistorySettings(pooling="none")}, "the user tower reads no"),
        ({"user": TowerSettings(fusion="sum"), "item": TowerSettings(width=9)}, "but a history has 9"),
        ({"item": TowerSettings(fusion="sum", encoders=EncoderSettings(dim=4, vector="identity"))}, "['vec'] differ"),
    ],
)
def test_settings_that_do_not_fit_together(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("[", r"\[").replace("]", r"\]")):
        full_model(**changes)


def test_id_dropout_replaces_the_stated_share_of_ids_in_training_only() -> None:
    seen: list[torch.Tensor] = []
    inputs = Inputs(infos()[:2], TowerSettings(id_dropout=0.3, fusion="sum"), 4)
    inputs.encoders["feature_id"].register_forward_hook(lambda _m, x, _o: seen.append(x[0]))
    inputs.encoders["feature_type"].register_forward_hook(lambda _m, x, _o: seen.append(x[0]))
    ids = torch.full((20_000,), 5)
    torch.manual_seed(0)
    inputs({"id": ids, "type": ids})
    dropped, other = seen
    assert set(dropped.unique().tolist()) == {OOV, 5}
    assert abs((dropped == OOV).float().mean() - 0.3) < 4 * (0.3 * 0.7 / 20_000) ** 0.5
    assert torch.equal(other, ids)  # only ids are dropped
    inputs.eval()
    inputs({"id": ids, "type": ids})
    assert torch.equal(seen[2], ids)


def test_a_cold_item_is_scored_from_its_content() -> None:
    """An item whose id training never saw differs from others by its content, and equals one of the same content."""
    model = full_model().eval()
    items = table(infos(), 2)(torch.tensor([0, 0, 1]))
    items["id"] = torch.tensor([OOV, OOV, OOV])
    a, b, c = model.embed_items(items)
    assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(a, c, atol=1e-2)


def test_a_residual_block_starts_as_the_identity() -> None:
    x = torch.randn(3, 4)
    assert torch.equal(ResidualBlock(4, 0.5)(x, x), x)


def test_a_cross_layer_is_its_equation() -> None:
    layer = CrossLayer(2, 0.0)
    assert isinstance(layer.linear, torch.nn.Linear)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        layer.linear.bias.copy_(torch.tensor([1.0, 0.0]))
    out = layer(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 3.0]]))
    assert out.tolist() == [[2 * (1 + 2 + 1) + 1, 3 * 1 + 1]]


def test_similarity_is_said_once() -> None:
    s = Similarity("cosine", 0.05)
    assert s.to_manifest() == {"kind": "cosine", "temperature": 0.05}
    assert torch.allclose(s.normalise(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))
    assert torch.allclose(s.cool(torch.tensor([1.0])), torch.tensor([20.0]))
    learned = Similarity("dot", 0.5, learn_temperature=True)
    x = torch.tensor([[3.0, 4.0]])
    assert torch.equal(learned.normalise(x), x)
    assert torch.allclose(learned.cool(x), 2 * x)
    assert learned.to_manifest()["temperature"] == pytest.approx(0.5)
    assert [n for n, _ in learned.named_parameters()] == ["log_temperature"]
    for bad in ({"kind": "l2"}, {"temperature": 0.0}):
        with pytest.raises(ConfigError, match=r"model\.similarity"):
            Similarity(**bad)  # type: ignore[arg-type]


def test_action_codes_are_those_of_the_schema() -> None:
    pooling = full_model().pooling
    assert pooling is not None
    assert pooling.action_logit.num_embeddings == N_ACTIONS


def test_a_cross_layer_of_low_rank_is_a_full_one_with_the_product_as_its_matrix() -> None:
    low, full = CrossLayer(6, 0.0, rank=2), CrossLayer(6, 0.0)
    assert isinstance(low.linear, torch.nn.Sequential)
    assert isinstance(full.linear, torch.nn.Linear)
    down, up = low.linear
    with torch.no_grad():
        up.bias.normal_()
        full.linear.weight.copy_(up.weight @ down.weight)
        full.linear.bias.copy_(up.bias)
    x, x0 = torch.randn(3, 6), torch.randn(3, 6)
    assert torch.allclose(low(x, x0), full(x, x0), atol=1e-6)
    assert sum(p.numel() for p in low.parameters()) == 2 * 6 * 2 + 6
