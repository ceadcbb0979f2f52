"""`resume=RUN` and `refit=RUN` take the settings of that run: what else is said must agree with them."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from pipeline.settings import effective
from towers.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"


def composed(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A finished run, whose third epoch was the best."""
    config = composed("experiment=market", "batch_size=64", "seed=7", "threads=1", "trainer.max_epochs=9")
    OmegaConf.save(config, tmp_path / "config.yaml", resolve=True)
    (tmp_path / "metrics.json").write_text(json.dumps({"refitted": False, "best_epoch": 3}))
    return str(tmp_path)


def asked(*overrides: str) -> DictConfig:
    return effective(composed(*overrides), overrides)


def test_a_run_that_is_not_taken_up_has_its_own_settings() -> None:
    assert asked("batch_size=5").batch_size == 5


def test_a_resumed_run_goes_on_as_it_was(run: str) -> None:
    config = asked(f"resume={run}")
    assert (config.name, config.batch_size, config.seed, config.threads) == ("market", 64, 7, 1)
    assert config.resume == run
    assert asked(f"resume={run}", "threads=3", "evaluate=[]").threads == 3


def test_what_is_said_again_must_be_the_same(run: str) -> None:
    again = asked(f"resume={run}", "experiment=market", "batch_size=64", "seed=7", "trainer.max_epochs=9", "threads=2")
    assert again.threads == 2
    assert asked(f"resume={run}", "shard_above=1000").shard_above == 1000, "where rows lie is no setting of the run"
    assert asked(f"resume={run}", "negatives=uniform", "++batch_size=64").batch_size == 64


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("batch_size=128", "batch_size is 64 there and 128 here"),
        ("+trainer.limit_train_batches=3", "trainer.limit_train_batches is None there and 3 here"),
        ("trainer.max_epochs=20", "trainer.max_epochs is 9 there and 20 here"),
        ("model=matrix_factorisation", "model."),
        ("negatives=in_batch", "negatives._target_ is towers.model.negatives"),
        ("experiment=market", "batch_size is 64 there and 4096 here"),
        ("seed=8", "seed is 7 there and 8 here"),
        ("data=ml_100k", "data.name is market there and ml_100k here"),
    ],
)
def test_another_setting_is_refused_and_named(run: str, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as e:
        asked(f"resume={run}", override)
    assert said in str(e.value)
    assert (
        "Leave them out (only threads, workers, memory, evaluate, shard_above may differ), or start a new run"
        in str(e.value)
    )


def test_a_refit_repeats_the_run_for_the_epochs_that_it_chose(run: str) -> None:
    config = asked(f"refit={run}")
    assert (config.seed, config.batch_size, config.trainer.max_epochs, config.schedule_epochs) == (7, 64, 3, 9)
    assert config.evaluate is None, "the experiment's own list was of validation too"
    other = asked(f"refit={run}", "seed=8", "evaluate=[test]", "logger=none")
    assert (other.seed, list(other.evaluate), bool(other.logger)) == (8, ["test"], False)
    with pytest.raises(ConfigError, match="batch_size is 64 there and 128 here"):
        asked(f"refit={run}", "batch_size=128")


def test_only_one_at_a_time(run: str) -> None:
    with pytest.raises(ConfigError, match="not both"):
        asked(f"refit={run}", f"resume={run}")
