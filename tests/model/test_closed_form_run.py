"""A closed form as a run: trained for no epoch, refitted, trained on from there, exported like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from torch import Tensor

from pipeline.datasets import ensure_prepared
from pipeline.evaluating import load
from pipeline.runs import Run
from pipeline.training import train
from towers.errors import ConfigError
from towers.index.towers_onnx import export_item_tower, export_user_tower
from towers.model.losses import sampled_softmax

CONFIGS = Path(__file__).parents[2] / "configs"
SETTINGS = ["data.generate.users=300", "data.generate.jobs=200", "data.generate.impressions=20000",
            "model=hybrid", "model.dim=16", "model.item.id_dropout=0", "model.similarity.kind=dot",
            "model.similarity.temperature=1", "negatives=uniform", "negatives.n=64", "logger=none", "threads=1",
            "evaluate=[]", "init=ials", "init.iterations=2", "model.history.pooling=ridge"]  # fmt: skip


def config(folder: Path, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [*SETTINGS, f"var={folder}/var", f"runs={folder}/runs", *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the small market is prepared once."""
    return tmp_path_factory.mktemp("closed")


@pytest.fixture(scope="module")
def untrained(folder: Path) -> Run:
    train(config(folder, "trainer.max_epochs=0"), folder / "untrained")
    return Run(folder / "untrained")


def backwards(positive: Tensor, negative: Tensor, weight: Tensor, **settings: float) -> Tensor:
    """A loss that wants the wrong thing."""
    return -sampled_softmax(positive, negative, weight)


def weights(run: Run) -> dict[str, Any]:
    return dict(torch.load(run.weights, weights_only=False)["state_dict"])


def test_no_epoch_is_a_run_with_a_value(untrained: Run) -> None:
    metrics = untrained.metrics
    assert metrics["best_epoch"] == metrics["epochs"] == metrics["steps"] == 0
    assert metrics["best"] > 0.0
    assert (untrained.checkpoints / "best.ckpt").is_file()


def test_it_can_be_exported(untrained: Run) -> None:
    model = load(untrained, ensure_prepared(untrained.config)).model
    export_user_tower(model)  # both check parity with torch
    export_item_tower(model)


def test_a_refit_trains_no_epoch_either_and_sees_validation(untrained: Run, folder: Path) -> None:
    assert train(config(folder, f"refit={untrained.folder}"), folder / "refit") is None
    refit = Run(folder / "refit")
    assert refit.metrics["epochs"] == 0
    assert refit.metrics["refitted"]
    table = "model.item_inputs.encoders.feature_job_id.table.weight"
    mine, theirs = weights(refit)[table], weights(untrained)[table]
    assert len(mine) > len(theirs), "validation brings jobs that training did not have"


def test_init_none_takes_the_closed_form_out(folder: Path) -> None:
    settings = config(folder, "trainer.max_epochs=0")
    settings.init["_target_"] = None  # what init=none gives, the experiment's other settings being left
    train(settings, folder / "random")
    start = weights(Run(folder / "random"))["model.item_inputs.encoders.feature_job_id.table.weight"]
    assert start.std(dim=0).min() > 0, "drawn at random, not left at zero"


def test_settings_of_no_method_are_refused(folder: Path) -> None:
    settings = config(folder, "trainer.max_epochs=0")
    settings.init = {"iterations": 2}
    with pytest.raises(ConfigError, match=r"init has settings, .*iterations.*, but no method"):
        train(settings, folder / "methodless")


def test_training_that_only_hurts_keeps_its_start(untrained: Run, folder: Path) -> None:
    run = config(
        folder,
        "trainer.max_epochs=1",
        "optimiser.learning_rate=0.01",
        "loss=bpr",
        f"loss._target_={__name__}.backwards",
    )
    value = train(run, folder / "worse")
    assert value == untrained.metrics["best"]
    worse = Run(folder / "worse")
    assert worse.metrics["best_epoch"] == 0
    assert worse.metrics["epochs"] == 1
    assert all(torch.equal(a, b) for a, b in zip(weights(worse).values(), weights(untrained).values(), strict=True))


def test_a_resumed_run_is_not_initialised_again(folder: Path) -> None:
    first = config(folder, "trainer.max_epochs=1")
    train(first, folder / "resumed")
    run = Run(folder / "resumed")
    trained = torch.load(run.checkpoints / "last.ckpt", weights_only=False)["state_dict"]
    train(config(folder, f"resume={run.folder}"), run.folder)
    again = torch.load(run.checkpoints / "last.ckpt", weights_only=False)["state_dict"]
    assert all(torch.equal(a, b) for a, b in zip(trained.values(), again.values(), strict=True))
    assert json.loads((run.folder / "metrics.json").read_text())["epochs"] == 1
