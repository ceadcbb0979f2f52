"""The model configs, as Hydra builds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from tests.model.helpers import infos
from towers.errors import ConfigError
from towers.index.towers_onnx import export_item_tower
from towers.model.two_tower import RetrievalModel

FOLDER = Path(__file__).parents[2] / "configs"
NAMES = sorted(p.stem for p in (FOLDER / "model").glob("*.yaml") if "towers.model.baselines" not in p.read_text())


def build(name: str, *overrides: str) -> RetrievalModel:
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        config = compose(overrides=[f"+model={name}", *overrides])
    model = instantiate(config.model)(infos(), infos(), infos()[1:2], 2)
    assert isinstance(model, RetrievalModel)
    return model


# what needs more than features: names of blocks, a graph, a log with queries and titles
NOT_ALONE = {"blocks", "light_gcn", "text_blocks"}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NOT_ALONE])
def test_every_model_builds(name: str) -> None:
    model = build(name)
    assert model.dim == 64
    export_item_tower(model)


@pytest.mark.parametrize("name", NAMES)
def test_its_first_line_is_the_command_that_uses_it(name: str) -> None:
    first = (FOLDER / "model" / f"{name}.yaml").read_text().partition("\n")[0]
    experiment = first.removeprefix("# python train.py experiment=")
    if name in NOT_ALONE and experiment != first:
        assert f"override /model: {name}\n" in (FOLDER / "experiment" / f"{experiment}.yaml").read_text()
    else:
        assert first == f"# python train.py model={name}"


def test_blocks_are_those_that_are_named_and_no_others() -> None:
    with pytest.raises(ConfigError, match=r"model\.blocks is empty; name some"):
        build("blocks")
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        named = compose("train", ["experiment=xing16_blocks"]).model.blocks
    assert set(named) == {"ials", "content"}


def test_what_the_names_promise() -> None:
    mf = build("matrix_factorisation", "model.dim=16")
    assert sorted(tuple(p.shape) for p in mf.parameters()) == [(12, 16), (12, 16)]
    assert mf.similarity.kind == "dot"
    content = build("content")
    assert "id" not in content.item_features + content.user_features
    hybrid = build("hybrid")
    assert hybrid.item_inputs.id_dropout == 0.4
    assert "id" in hybrid.item_features
    assert "id" not in hybrid.user_features


def test_settings_of_the_item_encoders_follow_the_users_unless_given() -> None:
    model = build("two_tower", "model.user.encoders.dim=8")
    assert model.item_inputs.encoders["feature_id"].dim == 8
