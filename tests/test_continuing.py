"""Monday's run goes on on Tuesday: `train.py init_from=RUN`, on a small market that is cut by time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from pipeline import continuing
from pipeline.datasets import dataset_of, ensure_generated
from pipeline.evaluating import load
from pipeline.runs import Run
from pipeline.settings import effective
from pipeline.training import train
from towers.errors import ConfigError
from towers.features import FIRST, OOV
from towers.features.alignment import UNKNOWN, places
from towers.model.tables import FeatureTable

CONFIGS = Path(__file__).parent.parent / "configs"
DAYS = 20
MARKET = ["experiment=market", "data.generate.users=800", "data.generate.jobs=250", f"data.generate.days={DAYS}",
          "data.generate.impressions=90000", "logger=none", "threads=1", "patience=null"]  # fmt: skip
SETTINGS = ["data.split.valid=2d", "data.split.test=1d", "batch_size=512", "trainer.max_epochs=4", "evaluate=[]",
            "model.user.encoders.sparse_above=100"]  # fmt: skip


def composed(folder: Path, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [*MARKET, f"var={folder}/var", f"runs={folder}/runs", *overrides])


def trained(folder: Path, name: str, days: int, *overrides: str) -> Run:
    """A run on the first days of the market."""
    parts = ",".join(f"events/{p.name}" for p in sorted((folder / "var/raw/market/events").iterdir())[:days])
    data = [f"data.name=until_{days}", f"data.source={folder}/var/raw/market", f"data.events.files=[{parts}]"]
    told = [*MARKET, *SETTINGS, *data, *overrides]
    train(composed(folder, *SETTINGS, *data, *overrides), folder / name, told)
    return Run(folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("days")
    ensure_generated(composed(out))
    return out


@pytest.fixture(scope="module")
def monday(folder: Path) -> Run:
    return trained(folder, "monday", DAYS - 3)


@pytest.fixture(scope="module")
def tuesday(folder: Path, monday: Run) -> Run:
    """Monday's weights on Tuesday's data, before the first step."""
    return trained(folder, "tuesday", DAYS, f"init_from={monday.folder}", "trainer.max_epochs=0")


def checkpoint(run: Run, name: str = "best") -> dict[str, Any]:
    return dict(torch.load(run.checkpoints / f"{name}.ckpt", weights_only=False))


def test_known_ids_keep_their_rows_and_new_ones_start_as_the_unknown(monday: Run, tuesday: Run) -> None:
    table = "model.item_inputs.encoders.feature_job_id.table.weight"
    before, after = (checkpoint(r)["state_dict"][table] for r in (monday, tuesday))
    old, new = (r.featurizer("item").vocabulary("job_id") for r in (monday, tuesday))
    assert old is not None
    assert new is not None
    was = {job: FIRST + i for i, job in enumerate(old.values.to_pylist())}
    jobs = new.values.to_pylist()
    fresh = [job for job in jobs if job not in was]
    assert len(fresh) > 10, "the days bring new jobs, or the test shows nothing"
    assert [was.get(j) for j in jobs] != list(range(FIRST, FIRST + len(jobs))), "ranks have changed"
    for i, job in enumerate(jobs):
        assert torch.equal(after[FIRST + i], before[was.get(job, OOV)])
    assert before[OOV].any(), "dropped ids have trained it"


def test_tuesday_begins_with_the_scores_of_monday(monday: Run, tuesday: Run) -> None:
    """Monday's model, on Tuesday's entities as Monday's vocabularies encode them, gives the same vectors."""
    now = dataset_of(tuesday)
    model, there = load(tuesday, now).model, load(monday, dataset_of(monday)).model
    old, new = (r.featurizer("item") for r in (monday, tuesday))
    raw = now.raw("item")
    yesterday, today = (FeatureTable(f.encode(raw)) for f in (old, new))
    where, rows = places(old, new, there.item_features), torch.arange(len(now.items))
    moved = (where["salary"] != range(len(where["salary"]))).any()
    with torch.no_grad():
        a, b = there.embed_items(yesterday.select(there.item_features)(rows)), model.embed_items(
            today.select(model.item_features)(rows))  # fmt: skip
    unseen = [n for n in ("title", "skills") if (where[n] == UNKNOWN).any()]
    same = torch.isclose(a, b, atol=1e-6).all(1)
    assert same.float().mean() > (0.7 if moved or unseen else 0.999), (moved, unseen)


def test_tuesday_starts_where_a_fresh_run_does_not_arrive(folder: Path, monday: Run, tuesday: Run) -> None:
    fresh = trained(folder, "fresh", DAYS, "trainer.max_epochs=1")
    went_on = trained(folder, "on", DAYS, f"init_from={monday.folder}", "trainer.max_epochs=1")
    start = tuesday.metrics["best"]
    assert start > 0.9 * monday.metrics["best"]
    assert start > 1.03 * fresh.metrics["best"]
    assert went_on.metrics["best"] >= start, "the start competes: going on never loses"


def test_the_optimiser_goes_on_where_it_was(folder: Path, monday: Run) -> None:
    """After one step of Tuesday, an id that it did not touch has Monday's accumulator, to the bit."""
    run = trained(
        folder,
        "step",
        DAYS,
        f"init_from={monday.folder}",
        "+trainer.limit_train_batches=1",
        "trainer.max_epochs=1",
        "batch_size=2",
    )
    before, after = checkpoint(monday), checkpoint(run, "last")
    name = "item_inputs.encoders.feature_job_id.table.weight"
    sums = []
    for c in (before, after):
        found = [i for i, (n, kind) in enumerate(c["optimised"]) if n == name and kind == "RowwiseAdagrad"]
        sums.append(c["optimizer_states"][0]["state"][found[0]]["sum"])
    where = places(monday.featurizer("item"), run.featurizer("item"), ["job_id"])["job_id"]
    known = torch.from_numpy(where >= FIRST)
    same = sums[1][known] == sums[0][torch.from_numpy(where)[known]]
    assert (~same).sum() > 0, "a uniform draw and two positives have been learnt from"
    assert same.any()
    assert (sums[1][known] >= sums[0][torch.from_numpy(where)[known]]).all(), "accumulators only grow"
    steps = {int(s["step"]) for s in after["optimizer_states"][0]["state"].values() if "step" in s}
    assert steps == {before["global_step"] + 1}, "Adam counts on"


def test_provenance_tells_the_parent(monday: Run, tuesday: Run) -> None:
    told = tuesday.provenance["init_from"]
    assert told["run"] == str(monday.folder)
    assert told["dataset_files_sha256"] == monday.provenance["dataset_files_sha256"]
    assert told["dataset_files_sha256"] != tuesday.provenance["dataset_files_sha256"]
    assert len(told["weights_sha256"]) == 64
    assert monday.provenance["init_from"] is None


def test_a_refit_goes_on_too_without_its_data(folder: Path, monday: Run) -> None:
    refit = folder / "refit"
    train(composed(folder, f"refit={monday.folder}"), refit, [f"refit={monday.folder}", "evaluate=[]"])
    shutil.rmtree(folder / f"var/data/until_{DAYS - 3}-refit")  # a run keeps what its weights mean
    run = trained(folder, "after_refit", DAYS, f"init_from={refit}", "trainer.max_epochs=0")
    assert run.config.refit is None
    assert run.metrics["best"] > 0
    again = folder / "wednesday"
    told = [f"refit={run.folder}", "evaluate=[]"]
    train(composed(folder, *told), again, told)
    assert Run(again).provenance["init_from"]["run"] == str(refit), "a refit of a run that went on begins where it did"


def test_settings_are_those_of_the_run_but_for_what_is_said(monday: Run) -> None:
    def asked(*overrides: str) -> DictConfig:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return effective(compose("train", list(overrides)), overrides)

    config = asked(f"init_from={monday.folder}")
    assert (config.batch_size, config.trainer.max_epochs, config.model.item.id_dropout) == (512, 4, 0.2)
    assert (config.init_from, config.resume, config.refit) == (str(monday.folder), None, None)
    config = asked(f"init_from={monday.folder}", "trainer.max_epochs=2", "optimiser.learning_rate=0.1", "seed=5")
    assert (config.batch_size, config.trainer.max_epochs, config.seed, config.optimiser.learning_rate) == (
        512,
        2,
        5,
        0.1,
    )
    config = asked(f"init_from={monday.folder}", "experiment=market", "trainer.max_epochs=2")
    assert (config.batch_size, config.trainer.max_epochs) == (4096, 2)
    with pytest.raises(ConfigError, match="not resume and init_from: not both"):
        asked(f"init_from={monday.folder}", f"resume={monday.folder}")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.item.exclude=[skills]"], "items.skills was read and is no longer"),
        (["model.dim=32"], "do not fit this model"),
        (["+data.items.features.salary.log=true"], "items.salary: log is True and was False"),
    ],
)
def test_what_does_not_go_on_is_refused(folder: Path, monday: Run, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        trained(folder, "-".join(overrides), DAYS - 3, f"init_from={monday.folder}", *overrides)


def test_baselines_are_fitted_anew(folder: Path, monday: Run) -> None:
    config = composed(folder)
    config.model, config.init_from = {"_target_": "towers.model.baselines.popularity.Popularity"}, str(monday.folder)
    with pytest.raises(ConfigError, match="is a baseline; fit it anew"):
        continuing.check(config)


def test_closed_forms_are_fitted_anew(folder: Path) -> None:
    form = trained(folder, "form", DAYS - 3, "init=svd", "model.similarity.kind=dot", "trainer.max_epochs=0",
                   "model.history.table=separate", "model.history.pooling=mean")  # fmt: skip
    with pytest.raises(ConfigError, match="was not trained: its best weights are those of its init"):
        trained(folder, "form_on", DAYS, f"init_from={form.folder}")
