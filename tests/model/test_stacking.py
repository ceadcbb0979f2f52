"""Weights learned on held-out events: what is held out, the lists, what is learned of them, and that it is served."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from data.holdout import hold_out
from pipeline import build
from pipeline.datasets import ensure_prepared
from tests.model.helpers import N_ACTIONS, batch, infos, table
from towers.errors import ConfigError
from towers.features import OOV, Ragged
from towers.index.towers_onnx import export_item_tower, export_user_tower
from towers.model.blocks import Blocks
from towers.model.embedder import Embedder
from towers.model.history import HistorySettings
from towers.model.popularity import KNOTS, Popularity, basis
from towers.model.similarity import Similarity
from towers.model.stacking import Lists, StackingSettings, lists, stack
from towers.model.tower import TowerSettings
from towers.model.two_tower import TwoTower

CONFIGS = Path(__file__).parents[2] / "configs"
SUM = TowerSettings(include=["id", "skills"], fusion="sum", body="none")
ONE = partial(TwoTower, similarity=Similarity("dot"), user=SUM, item=SUM, history=HistorySettings("mean", length=6))


def ragged(*rows: list[int]) -> Ragged:
    return Ragged(np.cumsum([0, *map(len, rows)]), np.array([x for row in rows for x in row], np.int64))


# --- popularity


def test_numbers_of_events_lie_between_their_knots() -> None:
    found = basis(torch.tensor([0.0, 1.0, 3.0, 1023.0, 1e6]))
    assert found.argmax(1).tolist() == [0, 1, 2, KNOTS - 1, KNOTS - 1]
    assert found.sum(1).tolist() == pytest.approx([1.0] * 5)
    assert basis(torch.tensor([2.0**1.5 - 1]))[0, 1:3].tolist() == pytest.approx([0.5, 0.5])


def test_scores_are_scaled_by_block_and_shifted() -> None:
    p = Popularity(infos(), 2)
    one, new = torch.tensor([10]), torch.tensor([OOV])  # ids with 2 events, none
    assert p.events[10] == 2
    with torch.no_grad():
        p.log_scale[0] = torch.log(torch.tensor(3.0))
        p.offset[0] = 7.0
    queries = p.users(torch.ones(1, 2))
    for ids, score in ((one, 3.0 * 5 + 2), (new, 3.0 * 5 + 2 + 7)):
        parts = p.scaled([torch.tensor([[5.0]]), torch.tensor([[2.0]])], {"id": ids})
        assert (queries @ p.items(torch.cat(parts, 1), {"id": ids}).T).item() == pytest.approx(score)


def test_it_wants_an_id() -> None:
    with pytest.raises(ConfigError, match="item id"):
        Popularity([i for i in infos() if i.name != "id"], 1)


# --- lists


def test_lists_hold_the_best_by_the_sum_without_what_was_seen_and_only_users_who_find_something() -> None:
    first = (torch.eye(3), torch.tensor([[5.0, 0, 0], [4, 1, 0], [3, 0, 0], [0, 9, 1]]))
    second = (torch.ones(3, 1), torch.tensor([[0.0], [1], [4], [0]]))
    blocks = [([q[:2], q[2:]], c) for q, c in (first, second)]
    found = lists(blocks, torch.tensor([1.0, 0.5]), torch.arange(4.0), ragged([2], [0], [3]), ragged([0], [], [1]), 2)
    # sums of the first user: 5, 4.5, 5, 0; of the second 0, 1.5, 2, 9; of the third 0, .5, 2, 1
    assert found.events.tolist() == [[2, 1], [2, 3]]
    assert found.wanted.tolist() == [[True, False], [False, True]]
    assert found.scores.tolist() == [[[3, 4], [4, 1]], [[0, 4], [1, 0]]]


# --- what is learned


def simulated(users: int = 3000, candidates: int = 30) -> Lists:
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(users, candidates, 2, generator=g)
    events = torch.randint(0, 2, (users, candidates), generator=g) * 6.0 + 1.0  # 1 or 7
    logits = scores @ torch.tensor([2.0, 0.5]) + torch.where(events > 1, 1.0, 0.0)
    gumbel = -torch.empty_like(logits).exponential_(generator=g).log()
    wanted = torch.zeros_like(logits, dtype=torch.bool)
    wanted[torch.arange(users), (logits + gumbel).argmax(1)] = True
    return Lists(scores, events, wanted)


def test_choices_tell_the_weights_and_offsets_that_made_them() -> None:
    found = stack(simulated(), torch.tensor([1.0, 1.0]))
    scale = (found.weight.log() + basis(torch.tensor([1.0, 7.0])) @ found.log_scale.T).exp()
    torch.testing.assert_close(scale, torch.tensor([[2.0, 0.5], [2.0, 0.5]]), atol=0.15, rtol=0)
    assert float(found.offset[3] - found.offset[1]) == pytest.approx(1.0, abs=0.15)


def test_a_block_that_says_nothing_gets_almost_no_weight() -> None:
    some = simulated()
    noise = torch.randn(some.scores.shape[:2], generator=torch.Generator().manual_seed(1))
    both = torch.stack([some.scores[..., 0], noise], dim=-1)
    found = stack(Lists(both, some.events, some.wanted), torch.tensor([1.0, 1.0]))
    assert found.weight[1] < 0.1 * found.weight[0]


def test_nothing_to_learn_from_is_told() -> None:
    nothing = Lists(torch.zeros(0, 3, 2), torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool))
    with pytest.raises(ConfigError, match="stacking=null"):
        stack(nothing, torch.ones(2))


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"users": 0}, {"candidates": 1}])
def test_settings_that_cannot_work_are_told(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
        StackingSettings(**wrong)  # type: ignore[arg-type]


# --- in a model


def stacked() -> Blocks:
    torch.manual_seed(0)
    blocks = {"a": partial(ONE, dim=4), "b": partial(ONE, dim=3)}
    return Blocks(infos(), infos(), n_actions=N_ACTIONS, blocks=blocks, stacking=StackingSettings()).eval()


def test_a_model_s_scores_follow_the_formula() -> None:
    m, users, items, b = stacked(), table(infos(), 5), table(infos(), 9, seed=1), batch(6, 9)
    with torch.no_grad():
        m.popularity.log_scale.normal_()  # type: ignore[union-attr]
        m.popularity.offset.normal_()  # type: ignore[union-attr]
    near = basis(m.popularity.events[items.column("id").long()])  # type: ignore[union-attr]
    expected = (near @ m.popularity.offset).expand(6, 9).clone()  # type: ignore[union-attr]
    for k, part in enumerate(m.parts):
        e = Embedder(part, users, items)
        score = torch.cat(list(e.embed_queries([b]))) @ e.embed_items().T
        expected += m.log_weight[k].exp() * (near @ m.popularity.log_scale[k]).exp() * score  # type: ignore[union-attr]
    e = Embedder(m, users, items)
    torch.testing.assert_close(torch.cat(list(e.embed_queries([b]))) @ e.embed_items().T, expected)
    assert e.embed_items().shape[1] == m.dim == 8


def test_it_is_in_the_exported_item_tower() -> None:
    m = stacked()
    with torch.no_grad():
        m.popularity.offset[0] = 1.5  # type: ignore[union-attr]
    export_user_tower(m)  # both check parity with torch
    session = ort.InferenceSession(export_item_tower(m), providers=["CPUExecutionProvider"])
    features = table(infos(), 2)(torch.arange(2))
    features["id"] = torch.tensor([OOV, 3], dtype=torch.int32)
    given = {f"item.{n}": features[n].numpy() for n in m.item_features}
    assert session.run(["embedding"], given)[0][:, -1].tolist() == [1.5, 0.0]


# --- in a run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    folder = tmp_path_factory.mktemp("stacking")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [
            "experiment=clicks_svd", "data.generate.users=300", "data.generate.jobs=200",
            "data.generate.impressions=20000", "model.blocks.ials.dim=8", "model.blocks.svd.dim=12",
            "init.ials.iterations=2", "logger=none", "threads=1", f"var={folder}/var", f"runs={folder}/runs",
            "model.stacking={_target_: towers.model.stacking.StackingSettings, candidates: 50}",
        ])  # fmt: skip


def test_histories_and_what_is_held_out_of_them_are_what_there_was(config: DictConfig) -> None:
    data = ensure_prepared(config)
    log, held = data.history, hold_out(data, 0.3, 10**6, seed=0)
    (given,) = [np.concatenate([r[r >= 0].numpy() for b in held.queries for r in b.history])]
    assert len(given) == len(held.seen.values)
    total = 0
    for q, user in enumerate(held.user):
        events = log.item[log.offsets[user] : log.stage_ends[user, 0]]
        seen = held.seen.values[held.seen.offsets[q] : held.seen.offsets[q + 1]]
        targets = held.targets.values[held.targets.offsets[q] : held.targets.offsets[q + 1]]
        assert [*seen, *targets] == events.tolist()
        assert len(targets) == max(1, np.rint(0.3 * len(events)))
        assert len(seen)
        total += len(set(targets.tolist()))
    assert len(held.pairs) == total
    rest = build.interactions(data).without(held.pairs)
    assert not np.isin(rest.user * rest.n_items + rest.item, held.pairs).any()


def test_a_run_learns_weights_and_ends_with_blocks_of_all_events(config: DictConfig) -> None:
    data = ensure_prepared(config)
    module = build.retrieval(config, data)
    build.initialise(config, module, data)
    plain_config = config.copy()
    plain_config.model.stacking = None
    plain = build.retrieval(plain_config, data)
    build.initialise(plain_config, plain, data)
    for found, expected in zip(module.model.parts, plain.model.parts, strict=True):  # type: ignore[union-attr, arg-type]
        for a, b in zip(found.item_inputs.parameters(), expected.item_inputs.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    assert module.model.popularity.offset.abs().max() > 0  # type: ignore[union-attr]
    assert torch.isfinite(module.model.log_weight).all()  # type: ignore[arg-type]
