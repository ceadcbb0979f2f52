"""From a data config to a prepared dataset, generated and prepared on the way if need be. No torch here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data import market, melo
from data.market import MarketConfig
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


# What `generate.kind` of a data config may say: settings, what writes the files, the file that records the settings.
_GENERATORS: dict[str, tuple[Any, Any, str]] = {
    "market": (MarketConfig, market.generate, "market.json"),
    "melo": (melo.MeloConfig, melo.generate, melo.RECORD),
}


def ensure_generated(config: DictConfig) -> None:
    """Write the raw files that a data config generates or derives from others, if they are not there yet."""
    settings = config.data.get("generate")
    if settings is None:
        return
    folder = Path(config.data.source)
    plain: Any = OmegaConf.to_container(settings, resolve=True)
    kind = plain.pop("kind", "market")
    if kind not in _GENERATORS:
        raise ConfigError(f"generate.kind {kind!r}; there are {list(_GENERATORS)}")
    settings_of, generate, name = _GENERATORS[kind]
    wanted = settings_of(**plain)
    record = folder / name
    if record.is_file() and json.loads(record.read_text())["config"] == asdict(wanted):
        return
    with progress(f"generate {config.data.name}") as tell:
        generate(wanted, folder, tell)
