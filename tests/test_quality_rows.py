"""The rows of the quality tables: each names a committed experiment, and an ablation takes something out of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from benchmarks import ablations, quality_table
from benchmarks.ingredients import ABLATIONS, Ablation
from benchmarks.protocols import METHODS, PROTOCOLS, Method

CONFIGS = Path(__file__).parents[1] / "configs"
ROWS = [(protocol, method) for protocol, methods in METHODS.items() for method in methods]
TAKEN_OUT = [(experiment, ablation) for experiment, ablations in ABLATIONS.items() for ablation in ablations]


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def quick(experiment: str, *overrides: str) -> DictConfig:
    method = next(m for methods in METHODS.values() for m in methods if m.experiment == experiment)
    return compose("train", [f"experiment={experiment}", *method.quick, *overrides])


@pytest.mark.parametrize(("protocol", "method"), ROWS, ids=lambda x: getattr(x, "name", x))
def test_a_row_and_its_quick_variant_compose(protocol: str, method: Method) -> None:
    experiment = method.experiment
    whole = compose("train", [f"experiment={experiment}"])
    assert protocol.startswith(whole.data.name.removesuffix("_sentences")), "it is measured on the protocol's data"
    if method.quick:
        assert quick(experiment) != whole


def test_goals_are_those_of_one_chosen_method() -> None:
    for name, protocol in PROTOCOLS.items():
        assert sum(m.chosen for m in METHODS[name]) == 1, name
        assert {key.split("/")[0].partition(":")[0] for key, _ in protocol.goals} <= set(protocol.tasks)
        assert {key for key, _ in protocol.stretch} >= {key for key, _ in protocol.goals} or not protocol.stretch


@pytest.mark.parametrize(("experiment", "ablation"), TAKEN_OUT, ids=lambda x: getattr(x, "label", x))
def test_an_ablation_changes_the_recipe(experiment: str, ablation: Ablation) -> None:
    assert quick(experiment, *ablation.overrides) != quick(experiment)


def test_no_recorded_ablation_changed_nothing() -> None:
    """An override may change the config and be read by nobody: then its metrics are the whole recipe's."""
    rows = json.loads(ablations.RESULTS.read_text())["rows"]
    assert ablations.unchanged(rows) == []
    whole = next(r for r in rows if r["label"] == ablations.WHOLE)
    assert ablations.unchanged([whole, whole | {"label": "idle"}]) == [f"{whole['experiment']}: idle"]


def test_the_readme_and_the_page_say_what_is_recorded() -> None:
    rows = quality_table.read()
    assert quality_table.summary(rows) in quality_table.README.read_text(), "write it: benchmarks/quality.py --table"
    assert quality_table.page(rows) == quality_table.PAGE.read_text(), "write it: benchmarks/quality.py --table"
