"""From a composed config to objects: the one place, with the verbs, where Hydra instantiates."""

from __future__ import annotations

import hydra.utils
from omegaconf import DictConfig

from data.module import RetrievalData
from data.prepared import PreparedDataset
from towers.model.module import Retrieval, TrainingData
from towers.model.tables import FeatureTable


def datamodule(config: DictConfig, dataset: PreparedDataset) -> RetrievalData:
    """Training batches and validation tasks."""
    validate = () if config.get("refit") else (config.data.select,) if "select" in config.data else ("valid",)
    return RetrievalData(dataset, batch_size=config.batch_size, seed=config.seed, validate=validate)


def retrieval(config: DictConfig, dataset: PreparedDataset, total_steps: int | None = None) -> Retrieval:
    """The untrained LightningModule of a config."""
    users, items = dataset.featurizer("user"), dataset.featurizer("item")
    model = hydra.utils.instantiate(config.model)(users.infos, items.infos, (), len(dataset.schema.actions))
    posted, expires = dataset.item_times()
    tables = TrainingData(
        FeatureTable(dataset.encoded("user"), len(dataset.users)),
        FeatureTable(dataset.encoded("item"), len(dataset.items)),
        dataset.events("item"),
        total_steps,
        posted,
        expires,
    )
    return Retrieval(
        model,
        tables,
        sampler=hydra.utils.instantiate(config.negatives),
        loss=hydra.utils.instantiate(config.loss),
        optimiser=hydra.utils.instantiate(config.optimiser),
        correct_positive=config.correct_positive,
        ks=tuple(config.ks),
        seed=config.seed,
    )


def monitor(config: DictConfig) -> str:
    """The validation metric that selects checkpoints and that sweeps optimise."""
    return f"{config.data.get('select', 'valid')}/{config.metric}"
