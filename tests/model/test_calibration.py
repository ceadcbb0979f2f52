"""New items and known ones on one scale: what moves, what does not, and that it is served alike."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import onnxruntime as ort
import pytest
import torch

from tests.model.helpers import N_ACTIONS, batch, infos, table
from towers.errors import ConfigError
from towers.features import OOV
from towers.index.towers_onnx import export_item_tower, export_user_tower
from towers.model.blocks import Blocks
from towers.model.calibration import Calibration, CalibrationSettings
from towers.model.embedder import Embedder
from towers.model.history import HistorySettings
from towers.model.similarity import Similarity
from towers.model.tower import TowerSettings
from towers.model.two_tower import TwoTower

SUM = TowerSettings(include=["id", "skills"], fusion="sum", body="none")
ONE = partial(
    TwoTower, dim=4, similarity=Similarity("dot"), user=SUM, item=SUM, history=HistorySettings(pooling="mean", length=6)
)


def model(calibration: CalibrationSettings | None) -> Blocks:
    torch.manual_seed(0)
    return Blocks(infos(), infos(), n_actions=N_ACTIONS, blocks={"one": ONE}, calibration=calibration).eval()


def test_scores_of_new_items_are_scaled_and_shifted_and_others_stay() -> None:
    c = Calibration(CalibrationSettings(scale=0.5, offset=2.0), infos())
    queries, candidates = torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0, 2.0], [4.0, 2.0]])
    ids = torch.tensor([OOV, 9])  # new, known
    scores = c.users(queries) @ c.items(candidates, {"id": ids}).T
    assert scores.tolist() == [[0.5 * 10 + 2, 10]]


def test_a_model_s_scores_move_by_the_same_rule() -> None:
    plain, moved = model(None), model(CalibrationSettings(scale=0.7, offset=1.5))
    users, items, b = table(infos(), 5), table(infos(), 9, seed=1), batch(6, 9)
    new = torch.isin(torch.arange(9), torch.tensor([2, 5]))
    items.column("id").copy_(torch.where(new, OOV, 3 + torch.arange(9)))

    def scores(m: Blocks) -> torch.Tensor:
        e = Embedder(m, users, items)
        return torch.cat(list(e.embed_queries([b]))) @ e.embed_items().T

    before = scores(plain)
    torch.testing.assert_close(scores(moved), torch.where(new, 0.7 * before + 1.5, before))
    assert moved.dim == plain.dim + 1


def test_training_does_not_see_it() -> None:
    plain, moved = model(None).train(), model(CalibrationSettings(offset=1.5)).train()
    items = table(infos(), 9)(torch.arange(9))
    torch.testing.assert_close(moved.embed_items(items), plain.embed_items(items))


def test_it_is_in_the_exported_item_tower_and_new_items_are_known_by_their_id_there() -> None:
    m = model(CalibrationSettings(scale=0.7, offset=1.5))
    export_user_tower(m)  # both check parity with torch
    session = ort.InferenceSession(export_item_tower(m), providers=["CPUExecutionProvider"])
    features = table(infos(), 3)(torch.arange(3))
    features["id"] = torch.tensor([OOV, 3, 4], dtype=torch.int32)
    given = {f"item.{n}": features[n].numpy() for n in m.item_features}
    assert session.run(["embedding"], given)[0][:, -1].tolist() == [1.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (CalibrationSettings(scale=0.0), "scale=0.0"),
        (CalibrationSettings(offset=float("nan")), "offset=nan"),
        (CalibrationSettings(id="skills"), "'skills'"),
    ],
)
def test_what_cannot_work_is_told(settings: CalibrationSettings, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Calibration(settings, infos())


def test_which_id_is_meant_must_be_clear() -> None:
    own = next(i for i in infos() if i.name == "id")
    two = [own, replace(own, name="employer")]
    with pytest.raises(ConfigError, match=r"\['id', 'employer'\]"):
        Calibration(CalibrationSettings(), two)
    assert Calibration(CalibrationSettings(id="employer"), two).id == "employer"
    with pytest.raises(ConfigError, match="none"):
        Calibration(CalibrationSettings(), [])
