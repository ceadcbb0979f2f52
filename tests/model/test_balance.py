"""Blocks on one scale: what a spread is, and that a weight means the same whatever the blocks' scores were."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from torch import Tensor

from data.training_queries import training_queries
from pipeline import build
from pipeline.datasets import ensure_prepared
from tests.model.helpers import ids_only
from towers.model.blocks import Blocks
from towers.model.closed_form.balance import balance, spread
from towers.model.history import HistorySettings
from towers.model.tower import TowerSettings
from towers.model.two_tower import TwoTower

CONFIGS = Path(__file__).parents[2] / "configs"


def draw(rows: int, dim: int, seed: int) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


# --- spread


def test_a_spread_worked_by_hand() -> None:
    # scores 1 and 3 have a standard deviation of 1; 2 and 6 one of 2; the root mean square of 1 and 2 is √2.5
    assert spread(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]])) == pytest.approx(2.5**0.5)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), queries=st.integers(1, 7), items=st.integers(2, 9), dim=st.integers(1, 6))
def test_it_is_the_standard_deviation_of_each_querys_scores(seed: int, queries: int, items: int, dim: int) -> None:
    q, c = draw(queries, dim, seed), draw(items, dim, seed + 1)
    scores = (q @ c.T).numpy()
    assert spread(q, c) == pytest.approx(float(np.sqrt((scores.std(axis=1) ** 2).mean())), rel=1e-4)


def test_what_all_candidates_have_in_common_is_no_spread() -> None:
    q, c = draw(5, 4, 0), draw(9, 4, 1)
    assert spread(q, c + 7.0) == pytest.approx(spread(q, c), rel=1e-3)


# --- balance


def blocks(**weights: float) -> Blocks:
    items, _ = ids_only(9)
    users, _ = ids_only(9)
    one = TowerSettings(fusion="sum", body="none")
    make = partial(TwoTower, user=one, item=one, history=HistorySettings(pooling="none"))
    return Blocks(users, items, blocks={"a": partial(make, dim=3), "b": partial(make, dim=5)}, weights=weights,
                  balanced=True)  # fmt: skip


def scaled(model: Blocks, sizes: dict[str, float]) -> Callable[[TwoTower], tuple[Tensor, Tensor]]:
    """Random vectors for each block, whose scores are as many times as large."""
    vectors = {
        id(model.block(k)): (size * draw(6, 4, i), draw(8, 4, i + 9)) for i, (k, size) in enumerate(sizes.items())
    }
    return lambda part: vectors[id(part)]


def test_a_weight_is_the_spread_of_what_its_block_adds() -> None:
    model = blocks(a=0.5, b=3.0)
    embed = scaled(model, {"a": 20.0, "b": 0.01})
    balance(model, embed)
    weights = model.log_weight.exp()
    added = [spread(w * embed(model.block(k))[0], embed(model.block(k))[1]) for k, w in zip("ab", weights, strict=True)]
    assert added == pytest.approx([0.5, 3.0], rel=1e-4)


def test_a_block_that_says_nothing_keeps_its_weight() -> None:
    model = blocks(a=0.5)
    balance(model, scaled(model, {"a": 0.0, "b": 1.0}))
    assert model.log_weight[0].exp().item() == pytest.approx(0.5)
    assert torch.isfinite(model.log_weight).all()


# --- in a run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    folder = tmp_path_factory.mktemp("balance")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [
            "experiment=clicks_svd", "data.generate.users=300", "data.generate.jobs=200",
            "data.generate.impressions=20000", "model.blocks.ials.dim=8", "model.blocks.svd.dim=12",
            "init.ials.iterations=2", "+model.weights.ials=0.7", "model.weights.svd=2.0", "logger=none", "threads=1",
            f"var={folder}/var", f"runs={folder}/runs",
        ])  # fmt: skip


def test_the_recipe_for_clicks_starts_with_scores_of_the_weights_spread(config: DictConfig) -> None:
    dataset = ensure_prepared(config)
    module = build.retrieval(config, dataset)
    build.initialise(config, module, dataset)
    everyone = training_queries(dataset, len(dataset.users), seed=1)
    embedder = module.embedder()
    queries, items = torch.cat(list(embedder.embed_queries(everyone))), embedder.embed_items()
    found = [spread(q, c) for q, c in zip(queries.split([8, 12], 1), items.split([8, 12], 1), strict=True)]
    assert found == pytest.approx([0.7, 2.0], rel=1e-3)


def test_training_queries_hold_the_training_history_and_nothing_later(config: DictConfig) -> None:
    dataset = ensure_prepared(config)
    log = dataset.history
    (batch,) = training_queries(dataset, len(dataset.users), seed=1)
    assert batch.user.tolist() == np.flatnonzero(log.stage_ends[:, 0] > log.offsets[:-1]).tolist()
    for user, row in zip(batch.user.tolist(), batch.history, strict=True):
        newest_first = log.item[log.offsets[user] : log.stage_ends[user, 0]][::-1]
        assert row[row >= 0].tolist() == newest_first[: dataset.schema.history_length].tolist()
    (few,) = training_queries(dataset, 10, seed=1)
    assert len(few.user) == 10
    assert set(few.user.tolist()) < set(batch.user.tolist())
