"""A training that is killed again and again ends with the very weights of one that was left alone."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from benchmarks.kills import composed, differences, outcome
from pipeline import training
from pipeline.runs import Run
from towers.errors import ConfigError
from towers.model import checkpoints
from towers.model.checkpoints import LAST
from towers.model.module import Retrieval

ROOT = Path(__file__).parent.parent
# fifteen batches an epoch
SMALL = [
    "experiment=market", "logger=none", "threads=1", "batch_size=64", "evaluate=[]", "trainer.max_epochs=3",
    "data.generate.users=300", "data.generate.jobs=200", "data.generate.impressions=20000",
]  # fmt: skip


class KilledError(Exception):
    """A kill."""


@contextmanager
def watched(stop: int | None, steps: list[int], validated: list[int]) -> Iterator[None]:
    """Notes the optimiser steps before each batch and each validation; kills in what follows ``stop`` batches."""
    train, validate = Retrieval.training_step, Retrieval.validation_step

    def training_step(self: Any, *args: Any) -> Any:
        if len(steps) == stop:
            raise KilledError
        steps.append(self.trainer.global_step)
        return train(self, *args)

    def validation_step(self: Any, *args: Any) -> Any:
        if len(steps) == stop:
            raise KilledError
        validated.append(self.trainer.global_step)
        return validate(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Retrieval, "training_step", training_step)
        patch.setattr(Retrieval, "validation_step", validation_step)
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Where the runs of this module find their data."""
    folder = tmp_path_factory.mktemp("resumed")
    return [f"var={folder / 'var'}", f"runs={folder / 'runs'}"]


def attempt(folder: Path, overrides: list[str], stop: int | None = None) -> tuple[list[int], list[int]]:
    """Train, or go on: the optimiser steps made before each of its batches, and before each of its validations."""
    resumed = [f"resume={folder}"] if (folder / "config.yaml").exists() else []
    steps: list[int] = []
    validated: list[int] = []
    with watched(stop, steps, validated):
        if stop is None:
            training.train(composed([*SMALL, *overrides, *resumed]), folder)
        else:
            with pytest.raises(KilledError):
                training.train(composed([*SMALL, *overrides, *resumed]), folder)
    return steps, validated


@pytest.mark.parametrize(
    ("settings", "stops", "begins"),
    [
        # one step an epoch, of all of its batches: saved when the next epoch starts
        (["trainer.accumulate_grad_batches=16"], (33, 14), (2, 2)),
        (["trainer.accumulate_grad_batches=16", "+trainer.max_steps=3", "trainer.max_epochs=9"], (33, 14), (2, 2)),
        # so is an epoch in which a validation follows each step
        (["+trainer.val_check_interval=1"], (17, 20), (15, 30)),
        (["+trainer.val_check_interval=1", "+trainer.check_val_every_n_epoch=null"], (17, 20), (15, 30)),
        # it dies in validations: what is saved is a step before
        (["+trainer.val_check_interval=4"], (4, 9, 23), (3, 11, 33)),
        (["+trainer.val_check_interval=4", "+trainer.check_val_every_n_epoch=null"], (4, 9, 21), (3, 11, 31)),
        # a part of each epoch
        (["+trainer.limit_train_batches=9"], (8, 2, 10), (8, 10, 20)),
        (["+trainer.limit_train_batches=0.6", "checkpoint_every=9"], (10,), (9,)),
        # patience ends before training may; it goes on to its fifth epoch, which is the best
        (["patience=1", "trainer.min_epochs=5", "trainer.max_epochs=8", "optimiser.learning_rate=0.1"], (70,), (60,)),
    ],
)
def test_a_run_that_was_stopped_anywhere_ends_as_if_it_had_not_been(
    settings: list[str], stops: tuple[int, ...], begins: tuple[int, ...], shared: list[str], tmp_path: Path
) -> None:
    overrides = [*shared, "checkpoint_every=1", "patience=null", *settings]
    _, all_validated = attempt(tmp_path / "a", overrides)
    validated: dict[int, None] = {}
    found: list[int] = []
    for stop in (*stops, None):
        steps, there = attempt(tmp_path / "b", overrides, stop)
        found.append(steps[0])
        validated |= dict.fromkeys(there)
    assert differences(outcome(tmp_path / "a"), outcome(tmp_path / "b")) == []
    assert list(validated) == all_validated, "none is left out"
    assert found == [0, *begins], "from the last step that could be saved"


def test_asking_for_the_number_of_steps_changes_nothing(
    shared: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes Lightning ask for the batches before it knows of the checkpoint."""
    overrides = [*shared, "checkpoint_every=3", "patience=null"]
    attempt(tmp_path / "a", overrides)
    configured, asked = Retrieval.configure_optimizers, []

    def asking(self: Any) -> Any:
        asked.append(self.trainer.estimated_stepping_batches)
        return configured(self)

    monkeypatch.setattr(Retrieval, "configure_optimizers", asking)
    attempt(tmp_path / "b", overrides, 20)
    attempt(tmp_path / "b", overrides)
    assert asked == [45, 45]
    assert differences(outcome(tmp_path / "a"), outcome(tmp_path / "b")) == []
    # nor may the run become another, whatever is asked
    path = tmp_path / "b" / "config.yaml"
    path.write_text(path.read_text().replace("batch_size: 64", "batch_size: 32"))
    with pytest.raises(ConfigError, match="batch_size was 64 and is 32"):
        attempt(tmp_path / "b", overrides)


def test_checkpoints_in_which_only_the_loader_knows_its_place_are_resumed(shared: list[str], tmp_path: Path) -> None:
    """Older ones: the datamodule said nothing, nor did a checkpoint say whether training was to stop."""
    overrides = [*shared, "checkpoint_every=3", "patience=null"]
    attempt(tmp_path / "a", overrides)
    attempt(tmp_path / "b", overrides, 20)
    last = tmp_path / "b" / "checkpoints" / LAST
    checkpoint = checkpoints.read(last)
    for key in ("RetrievalData", "stopping", "between_epochs"):
        del checkpoint[key]
    del checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["epoch"]
    checkpoints.write(checkpoint, last)
    with pytest.MonkeyPatch.context() as patch:
        configured = Retrieval.configure_optimizers
        patch.setattr(
            Retrieval, "configure_optimizers", lambda m: configured(m) if m.trainer.estimated_stepping_batches else None
        )
        steps, _ = attempt(tmp_path / "b", overrides)
    assert steps[0] == 18
    assert differences(outcome(tmp_path / "a"), outcome(tmp_path / "b")) == []


def test_a_run_that_stopped_early_does_not_go_on(
    shared: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died in its last evaluation: that alone is left to do."""
    overrides = [*shared, "patience=1", "trainer.max_epochs=20", "optimiser.learning_rate=0.1"]
    evaluate = training.evaluate_run

    def dies(*args: Any, **kw: Any) -> Any:
        raise KilledError

    attempt(tmp_path / "a", overrides)
    monkeypatch.setattr(training, "evaluate_run", dies)
    with pytest.raises(KilledError):
        attempt(tmp_path / "b", overrides)
    monkeypatch.setattr(training, "evaluate_run", evaluate)
    assert attempt(tmp_path / "b", overrides) == ([], [])
    told = outcome(tmp_path / "b")
    assert told["outcome"]["epochs"] < 20
    assert differences(outcome(tmp_path / "a"), told) == []


@pytest.mark.parametrize(
    ("trained", "schedule_epochs", "steps"),
    [
        ({"max_epochs": 4}, None, 4 * 8),
        ({"max_epochs": 4}, 6, 6 * 8),
        ({"max_epochs": 0}, None, 8),
        ({"max_epochs": 4, "accumulate_grad_batches": 1, "limit_train_batches": 0.5}, None, 4 * 7),
        ({"max_epochs": 4, "limit_train_batches": 5}, None, 4 * 3),
        ({"max_epochs": 4, "limit_train_batches": 99}, None, 4 * 8),
        ({"max_epochs": 4, "max_steps": 10}, None, 10),
        ({"max_epochs": 4, "max_steps": 99}, None, 4 * 8),
        ({"max_steps": 99}, None, 99),
    ],
)
def test_the_learning_rate_is_scheduled_over_the_steps_that_are_made(
    trained: dict[str, Any], schedule_epochs: int | None, steps: int
) -> None:
    data: Any = SimpleNamespace(batches_per_epoch=lambda world: 15)
    trainer = pl.Trainer(**{"accelerator": "cpu", "logger": False, "accumulate_grad_batches": 2, **trained})
    assert training._steps(data, trainer, schedule_epochs) == steps


@pytest.mark.parametrize("epochs", [-1, None])
def test_a_schedule_wants_an_end(epochs: int | None) -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, max_epochs=epochs)
    with pytest.raises(ConfigError, match=rf"max_epochs is {epochs}, which is no end.*set trainer.max_steps"):
        training._steps(SimpleNamespace(batches_per_epoch=lambda world: 15), trainer, None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "20", "--per-run", "10", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    told = dict(re.findall(r"name=kills/(\S+) value=(\d+)", done.stdout))
    assert told["runs_that_differ"] == "0"
    assert told["delivered"] == "20"
    # else they hit nothing that could break, and the test shows nothing
    assert all(int(told[stage]) for stage in ("start", "warm-up", "step", "save", "epoch-end")), told


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(training, "say", said.append)
    run = Run(tmp_path)
    last, previous = run.checkpoints / "last.ckpt", run.checkpoints / "previous.ckpt"
    assert training._newest(run) is None
    assert said == [f"no checkpoint in {run.checkpoints}: the run begins anew"]
    said.clear()
    for step in (1, 2):
        checkpoints.write({"global_step": step}, last, keep=previous)
    assert training._newest(run) == last
    assert not said
    last.write_bytes(last.read_bytes()[:-100])
    assert training._newest(run) == previous
    assert said == [f"{last} is damaged or missing; going on from previous.ckpt, the one before it"]
    assert run.weights == previous


def test_one_bit_is_a_difference() -> None:
    a = {"state_dict": {"w": torch.tensor([1.0, 2.0])}, "steps": 3, "groups": [{"lr": 0.1}, {"lr": 0.2}]}
    same = {"state_dict": {"w": torch.tensor([1.0, 2.0])}, "steps": 3, "groups": [{"lr": 0.1}, {"lr": 0.2}]}
    assert differences(a, same) == []
    bit = torch.tensor([1.0, 2.0]).view(torch.int32).bitwise_xor(torch.tensor([0, 1], dtype=torch.int32))
    assert differences(a, {**same, "state_dict": {"w": bit.view(torch.float32)}}) == [".state_dict.w"]
    assert differences(a, {**same, "state_dict": {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}}) != []
    assert differences(a, {**same, "steps": 4}) == [".steps: 3 and 4"]
    assert differences(a, {**same, "groups": [{"lr": 0.1}, {"lr": 0.3}]}) == [".groups[1].lr: 0.2 and 0.3"]
    assert differences(a, {**same, "groups": [{"lr": 0.1}]}) != []
    assert differences(a, {k: v for k, v in same.items() if k != "steps"}) != []
