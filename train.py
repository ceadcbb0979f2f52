"""Prepared dataset → trained run: ``python train.py experiment=NAME`` writes ``runs/NAME/DATE``."""

from datetime import datetime
from itertools import chain, count
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pipeline.console import user_errors
from pipeline.runs import Run
from pipeline.training import train


@user_errors
def run_folder(resume: str | None, runs: str, name: str, refit: str | None, init_from: str | None = None) -> str:
    """The folder of a new run, or the one to go on with; Hydra makes it."""
    if resume:
        return str(Run.open(resume).folder)
    earlier = refit or init_from
    parent = Run.open(earlier).folder.parent if earlier else Path(runs) / name
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S") + ("-refit" if refit else "")
    free = chain([now], (f"{now}-{n}" for n in count(2)))  # two runs may begin in one second
    return str(parent / next(x for x in free if not (parent / x).exists()))


OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True)


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
@user_errors
def main(config: DictConfig) -> float | None:
    """Train, evaluate, and return the metric that a sweep optimises."""
    told = HydraConfig.get()
    return train(config, Path(told.runtime.output_dir), told.overrides.task)


if __name__ == "__main__":
    main()
