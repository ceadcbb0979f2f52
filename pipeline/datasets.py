"""From a data config to a prepared dataset, generated and prepared on the way if need be. No torch here."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data import market, melo, mixed
from data.fingerprint import is_current
from data.folders import put_back
from data.market import MarketConfig
from data.prepare import prepare
from data.prepared import PreparedDataset
from data.spec import DatasetSpec
from data.text_vectors import kept
from pipeline.console import progress, say
from pipeline.runs import Run
from towers.errors import ConfigError, DataError


def dataset_spec(config: DictConfig) -> DatasetSpec:
    """The checked data config; a refit's has validation moved into training."""
    if "data" not in config or not isinstance(config.data, DictConfig):
        raise ConfigError("no data config; pass data=NAME (python prepare.py --help lists them)")
    plain: Any = OmegaConf.to_container(config.data, resolve=True)
    for name in ("generate", "memory_budget"):  # they change nothing of what is prepared
        plain.pop(name, None)
    spec = DatasetSpec.parse(plain)
    return spec.refitted() if config.get("refit") else spec


def ensure_prepared(config: DictConfig, *, force: bool = False) -> PreparedDataset:
    """The prepared dataset of a config; generated and prepared first if that has not been done."""
    spec = dataset_spec(config)
    target = Path(config.var) / "data" / spec.name
    with _alone(target):
        put_back(target)
        ensure_generated(config)
        if force or not is_current(spec, target):
            with progress(f"prepare {spec.name}") as tell:
                # vectors of texts outlive a dataset: another one, or a new version of it, has most of them in common
                encoders = kept(Path(config.var) / "text_vectors", lambda what, share: tell(what, 0.8 + 0.15 * share))
                prepare(
                    spec,
                    target,
                    progress=tell,
                    threads=config.threads,
                    memory=config.memory,
                    encoders=encoders,
                    whole=force,
                    say=say,
                )
            say(f"prepared {target}")
    return PreparedDataset(target)


def dataset_of(run: Run) -> PreparedDataset:
    """The dataset that a run was trained on; prepared again if something else has taken its place.

    Raises:
        ConfigError: the raw data are no longer what they were: rows of embedding tables would mean other values.
    """
    config, wanted = run.config, run.provenance.get("dataset_files_sha256")
    target = Path(config.var) / "data" / dataset_spec(config).name
    try:
        if (found := PreparedDataset(target)).files_sha256 == wanted:
            return found
    except DataError:  # nothing is there
        pass
    dataset = ensure_prepared(config)
    if wanted and dataset.files_sha256 != wanted:
        raise ConfigError(
            f"the data of {run.folder} have changed since it was trained, and its weights do not fit what is now "
            f"at {config.data.get('source') or dataset.folder}; restore the files of that time, or train again"
        )
    return dataset


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Let one process at a time prepare a dataset; those that waited find it done."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {target}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# What `generate.kind` of a data config may say: settings, what writes the files, the file that records the settings.
_GENERATORS: dict[str, tuple[Any, Any, str]] = {
    "market": (MarketConfig, market.generate, "market.json"),
    "melo": (melo.MeloConfig, melo.generate, melo.RECORD),
    "mixed": (mixed.MixedConfig, mixed.generate, mixed.RECORD),
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
