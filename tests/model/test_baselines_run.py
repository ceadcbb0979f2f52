"""A baseline as a run: fitted, evaluated, refitted by the same verbs as a model, and not exported."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from pipeline import build
from pipeline.datasets import ensure_prepared
from pipeline.evaluating import evaluate_run
from pipeline.exporting import export
from pipeline.runs import Run
from pipeline.training import train
from towers.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENTS = sorted(p.stem for p in (CONFIGS / "experiment" / "baselines").glob("*.yaml"))
SMALL = ["data.generate.users=300", "data.generate.jobs=200", "data.generate.impressions=20000", "threads=1"]
MODELS = {
    "popularity": ["model.half_life_days=7"],
    "item_knn": ["model.decay=0.9"],
    "sequence_knn": [],
    "ease": ["model.regularisation=10"],
    "tfidf": ["model.features={title: 1.0, place*skills: 0.5}"],
    "coclick_tfidf": ["model.features={skills: 1.0}"],
    "kernel_ridge": ["model.features={skills: 1.0}"],
}


def config(verb: str, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(verb, list(overrides))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the small market is prepared once."""
    return tmp_path_factory.mktemp("baselines")


def fit(folder: Path, name: str, *overrides: str) -> tuple[Run, float | None]:
    settings = [*SMALL, f"model={name}", *MODELS[name], f"var={folder}/var", f"runs={folder}/runs", "logger=none"]
    value = train(config("train", *settings, *overrides), folder / "runs" / name)
    return Run(folder / "runs" / name), value


@pytest.mark.parametrize("name", MODELS)
def test_it_is_fitted_evaluated_and_stored(folder: Path, name: str) -> None:
    run, value = fit(folder, name)
    assert run.metrics["monitor"] == "valid/ndcg@20"
    assert run.metrics["best"] == run.metrics["metrics"]["valid/ndcg@20"] == value
    assert value is not None
    assert 0 < value < 1
    assert {p.name for p in (run.folder / "eval" / "valid").iterdir()} == {
        "metrics.json", "per_query.parquet", "predictions.parquet", "report.html"
    }  # fmt: skip
    assert run.provenance["seed"] == 42
    assert (run.folder.parent / "latest").resolve() == run.folder
    # what was stored says what was fitted
    before = pq.read_table(run.folder / "eval" / "valid" / "predictions.parquet")
    again = evaluate_run(run, ["valid", "test"], dataset=ensure_prepared(run.config))
    assert again["valid/ndcg@20"] == value
    assert pq.read_table(run.folder / "eval" / "valid" / "predictions.parquet").equals(before)
    assert "test/recall@100" in again


def test_a_refit_has_the_settings_of_its_run_and_more_events(folder: Path) -> None:
    first, _ = fit(folder, "item_knn", "model.item_power=0.2")
    settings = config("train", f"refit={first.folder}", f"var={folder}/var", f"runs={folder}/runs", "threads=1")
    assert train(settings, folder / "runs" / "refitted") is None
    second = Run(folder / "runs" / "refitted")
    assert second.config.model == first.config.model
    assert second.metrics["refitted"]
    assert second.metrics["best"] is None
    assert {p.name for p in (second.folder / "eval").iterdir()} == {"test", "match_test"}, "no task of validation"
    events = [ensure_prepared(run.config).events("item").sum() for run in (first, second)]
    assert events[1] > events[0]


def test_other_tasks_are_ranked_besides_the_selecting_one(folder: Path) -> None:
    run, _ = fit(folder, "popularity", "evaluate=[test]")
    assert {key.partition("/")[0] for key in run.metrics["metrics"]} == {"valid", "test"}


def test_metrics_go_to_the_logger(folder: Path) -> None:
    run, value = fit(folder, "popularity", "logger=csv")
    logged = next(run.folder.rglob("metrics.csv")).read_text()
    assert "valid/ndcg@20" in logged
    assert str(value) in logged


def test_an_export_says_what_to_export_instead(folder: Path) -> None:
    run, _ = fit(folder, "sequence_knn")
    with pytest.raises(ConfigError, match=r"train\.py data=market model=sequential init=sequence_svd"):
        export(config("export", f"run={run.folder}"))
    assert not (run.folder / "bundle").exists()


@pytest.mark.parametrize("name", MODELS)
def test_what_is_exported_instead_is_a_run_of_two_towers(folder: Path, name: str) -> None:
    baseline = build.baseline(config("train", f"model={name}", *MODELS[name]))
    assert baseline is not None
    places = [f"var={folder}/var", f"runs={folder}/runs", "logger=none"]
    shorter = ["model.dim=8", "trainer.max_epochs=0"]  # given twice, the last counts
    towers = config("train", *SMALL, *places, *shlex.split(baseline.instead), *shorter)
    assert build.baseline(towers) is None
    value = train(towers, folder / "runs" / f"{name}_short")
    assert value is not None
    assert 0 < value < 1


def test_settings_that_do_not_exist_or_fit_are_refused() -> None:
    settings = config("train", "model=ease", "model.regularisation=much")
    with pytest.raises(ConfigError, match=r"model: regularisation is 'much'; expected float"):
        build.baseline(settings)
    with pytest.raises(ConfigError, match=r"unknown settings \['lambda'\]"):
        build.baseline(config("train", "model=ease", "+model.lambda=3"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_names_a_baseline_and_its_runs_after_itself(name: str) -> None:
    settings = config("train", f"experiment=baselines/{name}")
    assert build.baseline(settings) is not None
    assert settings.name == name
    assert settings.data.name.startswith(name.split("_")[0])


def test_a_sweep_can_set_every_setting(folder: Path) -> None:
    values = [fit(folder, "item_knn", f"model.item_power={p}")[1] for p in (0.0, 1.0)]
    assert values[0] != values[1]
    written = json.loads((folder / "runs" / "item_knn" / "metrics.json").read_text())
    assert written["best"] == values[1]
