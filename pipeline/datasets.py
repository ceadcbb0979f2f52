"""From a data config to a prepared dataset, generated and prepared on the way if need be. No torch here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data.market import MarketConfig, generate
from data.prepare import is_current, prepare
from data.prepared import PreparedDataset
from data.spec import DatasetSpec
from pipeline.console import progress, say
from towers.errors import ConfigError


def dataset_spec(config: DictConfig) -> DatasetSpec:
    """The checked data config; a refit's has validation moved into training."""
    if "data" not in config or not isinstance(config.data, DictConfig):
        raise ConfigError("no data config; pass data=NAME (python prepare.py --help lists them)")
    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    plain.pop("generate", None)
    spec = DatasetSpec.parse(plain)
    return spec.refitted() if config.get("refit") else spec


def ensure_prepared(config: DictConfig, *, force: bool = False) -> PreparedDataset:
    """The prepared dataset of a config; generated and prepared first if that has not been done."""
    spec = dataset_spec(config)
    ensure_generated(config)
    target = Path(config.var) / "data" / spec.name
    if force or not is_current(spec, target):
        with progress(f"prepare {spec.name}") as tell:
            prepare(spec, target, progress=tell, threads=config.threads, memory=config.memory)
        say(f"prepared {target}")
    return PreparedDataset(target)


def ensure_generated(config: DictConfig) -> None:
    """Generate the synthetic job market, if the data config asks for it and it is not there yet."""
    settings = config.data.get("generate")
    if settings is None:
        return
    folder = Path(config.data.source)
    plain: Any = OmegaConf.to_container(settings, resolve=True)
    wanted = MarketConfig(**plain)
    record = folder / "market.json"
    if record.is_file() and json.loads(record.read_text())["config"] == asdict(wanted):
        return
    with progress("generate the job market") as tell:
        generate(wanted, folder, tell)
