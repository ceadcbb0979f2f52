"""Several towers in one vector: scores add up, whatever each of the towers is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tests.model.helpers import N_ACTIONS, batch, infos, table
from towers.errors import ConfigError
from towers.index.towers_onnx import export_item_tower, export_user_tower
from towers.model.blocks import Blocks
from towers.model.embedder import Embedder
from towers.model.heads import HeadSettings
from towers.model.history import HistoryInputs, HistorySettings
from towers.model.mixture import MixtureSettings
from towers.model.similarity import Similarity
from towers.model.tower import TowerSettings
from towers.model.two_tower import TwoTower

SUM = TowerSettings(fusion="sum", body="none")


def block(dim: int, pooling: str, kind: str = "dot", **more: Any) -> Callable[..., TwoTower]:
    history = HistorySettings(pooling=pooling, length=6)  # type: ignore[arg-type]
    return partial(TwoTower, dim=dim, similarity=Similarity(kind), history=history, **more)  # type: ignore[arg-type]


IDS = TowerSettings(include=["id"], fusion="sum", body="none")
SKILLS = TowerSettings(include=["skills"], fusion="sum", body="none")
BLOCKS = {
    "ridge": block(4, "ridge", user=IDS, item=IDS),
    "content": block(6, "attention", "cosine", user=SKILLS, item=SKILLS),
    "mean": block(5, "mean", user=IDS, item=IDS),
    "users": block(3, "none", user=SUM, item=SUM),
}


def blocks(**more: Any) -> Blocks:
    return Blocks(infos(), infos(), infos()[1:3], N_ACTIONS, **{"blocks": BLOCKS, **more}).eval()


def test_the_score_is_the_weighted_sum_of_the_blocks_scores() -> None:
    weights = {"ridge": 0.5, "users": 3.0}
    m, users, items = blocks(weights=weights), table(infos(), 5), table(infos(), 9, seed=1)
    contexts = table(infos()[1:3], 9, seed=2)
    b = batch(6, 9)

    def scores(model: Any) -> torch.Tensor:
        e = Embedder(model, users, items, contexts=contexts)
        return next(iter(e.embed_queries([b]))) @ e.embed_items().T

    wanted = sum(weights.get(name, 1.0) * scores(m.block(name)) for name in BLOCKS)
    torch.testing.assert_close(scores(m), wanted)
    assert (m.dim, m.history_dim) == (18, 15)


def test_groups_move_each_block_by_its_own_similarity() -> None:
    m, users, items = blocks(), table(infos(), 5), table(infos(), 9, seed=1)
    contexts, groups = table(infos()[1:3], 9, seed=2), torch.tensor([0, 0, 0, 1, 2, 3, 4, 5, 6])

    def moved(model: Any) -> torch.Tensor:
        return Embedder(model, users, items, contexts=contexts, groups=groups, group_weight=2.0).embed_items()

    torch.testing.assert_close(moved(m), torch.cat([moved(m.block(name)) for name in BLOCKS], dim=1))


def test_features_are_read_once_and_only_where_a_block_reads_them() -> None:
    m = Blocks(infos(), infos(), blocks={k: BLOCKS[k] for k in ("ridge", "content")})
    assert m.item_features == m.user_features == ("id", "skills")
    assert m.context_features == ()


def test_it_exports() -> None:
    m = blocks(weights={"content": 0.3})
    export_user_tower(m)  # both check parity with torch
    export_item_tower(m)


def test_every_block_and_its_weight_is_trained() -> None:
    m, b = blocks().train(), batch(6, 9)
    e = m.embed_items(table(infos(), 9)(torch.arange(9)))
    e.sum().backward()  # type: ignore[no-untyped-call]
    vectors = table(infos(), 9)
    history = m.history_inputs(vectors(b.history.clamp(min=0).reshape(-1))).view(*b.history.shape, -1)
    inputs = HistoryInputs(history, b.history >= 0, b.history_action, b.history_age)
    q = m.embed_users(table(infos(), 5)(b.user), inputs, table(infos()[1:3], 4)(b.user % 4))
    q.square().sum().backward()  # type: ignore[no-untyped-call]
    assert m.log_weight.grad is not None
    assert (m.log_weight.grad != 0).all()
    for part in m.blocks:
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"blocks": {}}, "is empty"),
        ({"weights": {"other": 1.0}}, "other"),
        ({"weights": {"ridge": 0.0}}, "above 0"),
        ({"similarity": Similarity("cosine", 0.1)}, r"model\.similarity\.kind=dot"),
    ],
)
def test_what_cannot_be_built_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        blocks(**changes)


def test_the_temperature_is_that_of_the_whole() -> None:
    learning = partial(TwoTower, dim=3, similarity=Similarity("cosine", 0.1, learn_temperature=True))
    with pytest.raises(ConfigError, match=r"\['own'\] learn a temperature.*model\.similarity\.learn_temperature=true"):
        blocks(blocks={**BLOCKS, "own": learning})


@pytest.mark.parametrize("more", [{"mixture": MixtureSettings()}, {"heads": HeadSettings(calibrated=True)}])
def test_what_scores_one_vector_is_not_for_a_block(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"\['own'\] have a mixture or calibrated heads"):
        blocks(blocks={**BLOCKS, "own": block(4, "mean", **more)})


def test_a_block_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"'svd'.*\['ridge', 'content', 'mean', 'users'\]"):
        blocks().block("svd")


# --- blocks that stay as they are


def test_a_block_that_is_apart_joins_outside_training_only() -> None:
    weights = {"ridge": 0.5, "users": 3.0}
    m, users, items = blocks(weights=weights, apart=["ridge", "mean"]), table(infos(), 5), table(infos(), 9, seed=1)
    rows = torch.arange(9)
    assert m.embed_items(items(rows)).shape[1] == m.dim
    m.train()
    assert m.embed_items(items(rows)).shape[1] == 6 + 3
    vectors = m.history_inputs(items(rows))
    assert vectors.shape[1] == m.block("content").history_dim
    b = batch(6, 9)
    e = Embedder(m, users, items, contexts=table(infos()[1:3], 9, seed=2))
    whole = next(iter(e.embed_queries([b])))  # an embedder evaluates
    assert whole.shape[1] == m.dim
    assert m.training


def test_a_block_that_is_apart_has_no_gradients() -> None:
    m = blocks(apart=["ridge"])
    assert not any(p.requires_grad for p in m.block("ridge").parameters())
    assert all(p.requires_grad for p in m.block("content").parameters())


def test_histories_may_be_read_apart_only() -> None:
    m = blocks(blocks={k: BLOCKS[k] for k in ("ridge", "users")}, apart=["ridge"]).train()
    items = table(infos(), 9, seed=1)(torch.arange(9))
    vectors = m.history_inputs(items)
    assert vectors.shape == (9, 0)
    nothing = torch.zeros(2, 1, dtype=torch.long)
    h = HistoryInputs(vectors, nothing >= 0, nothing, nothing.float(), nothing)
    features = {k: v[:2] for k, v in table(infos(), 5)(torch.arange(5)).items()}
    contexts = table(infos()[1:3], 9, seed=2)(torch.arange(2))
    assert m.embed_users(features, h, contexts).shape == (2, 3)


@pytest.mark.parametrize("apart", [["nobody"], list(BLOCKS)])
def test_apart_names_some_of_the_blocks(apart: list[str]) -> None:
    with pytest.raises(ConfigError, match="and not all"):
        blocks(apart=apart)
