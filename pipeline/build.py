"""From a composed config to objects: the one place, with the verbs, where Hydra instantiates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra.utils
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from data.batches import QueryBatches
from data.holdout import hold_out
from data.module import RetrievalData
from data.prepared import PreparedDataset
from data.settings import byte_size, strict
from data.training_queries import training_queries
from pipeline.checking import check_precision
from pipeline.console import progress, say
from towers.errors import ConfigError
from towers.model.aggregation import Aggregation, AggregationSettings
from towers.model.baselines.baseline import Baseline
from towers.model.blocks import Blocks
from towers.model.closed_form.balance import balance
from towers.model.closed_form.factors import ClosedForm, assign
from towers.model.closed_form.interactions import Interactions
from towers.model.embedder import Embedder
from towers.model.light_gcn import LightGCN
from towers.model.module import Retrieval, TrainingData
from towers.model.stacking import StackingSettings, lists, stack
from towers.model.tables import FeatureTable
from towers.model.two_tower import RetrievalModel, TwoTower

_SAMPLE = 2048  # users from whom the spread of scores is measured


def datamodule(config: DictConfig, dataset: PreparedDataset) -> RetrievalData:
    """Training batches and validation tasks."""
    validate = () if config.get("refit") else (config.data.select,) if "select" in config.data else ("valid",)
    return RetrievalData(
        dataset,
        batch_size=config.batch_size,
        seed=config.seed,
        validate=validate,
        impressions=config.get("impressions", 0),
        memory_budget=memory_budget(config),
        workers=config.get("workers", 1),
    )


def memory_budget(config: DictConfig) -> int | None:
    """Bytes that examples and histories may take; None: all that they need."""
    budget = config.data.get("memory_budget")
    return None if budget is None else byte_size(budget, "data.memory_budget")


def retrieval(
    config: DictConfig, dataset: PreparedDataset, total_steps: int | None = None, scratch: Path | None = None
) -> Retrieval:
    """The untrained LightningModule of a config.

    Args:
        config: of the run.
        dataset: what it trains on.
        total_steps: of the training, if it has an end.
        scratch: an empty folder, in which the items' features are to lie, memory-mapped; None: they are in memory.

    Raises:
        ConfigError: it cannot be trained with the trainer's precision.
    """
    check_precision(config)
    infos = [dataset.infos(side) for side in ("user", "item", "context")]
    actions = len(dataset.schema.actions)
    model = hydra.utils.instantiate(config.model)(*infos, actions)
    if isinstance(model, LightGCN):  # it reads all items at once
        scratch = None
    posted, expires = dataset.item_times()
    aggregate = AggregationSettings(**config.get("aggregate", {}))
    known = interactions(dataset) if aggregate.weight or isinstance(model, LightGCN) else None
    tables = TrainingData(
        FeatureTable(dataset.encoded("user"), len(dataset.users)),
        FeatureTable(dataset.encoded("item", scratch), len(dataset.items), stays=scratch is not None),
        dataset.events("item"),
        total_steps,
        posted,
        expires,
        FeatureTable(dataset.encoded("context"), len(dataset.contexts)),
        dataset.groups,
        Aggregation(known, aggregate) if known is not None and aggregate.weight else None,
    )
    if known is not None and isinstance(model, LightGCN):
        model.connect(known, tables.user_table, tables.item_table)
    return Retrieval(
        model,
        tables,
        sampler=hydra.utils.instantiate(config.negatives),
        loss=hydra.utils.instantiate(config.loss),
        optimiser=hydra.utils.instantiate(config.optimiser),
        correct_negatives=config.get("correct_negatives", True),
        correct_positive=config.correct_positive,
        matryoshka=tuple(config.get("matryoshka", ())),
        impression_weight=config.get("impression_weight", 1.0),
        group_weight=config.get("group_weight", 0.0),
        grad_cache=config.get("grad_cache"),
        shard_above=config.get("shard_above"),
        ks=tuple(config.ks),
        seed=config.seed,
    )


def baseline(config: DictConfig) -> Baseline | None:
    """The baseline that a config names as its model; None where it names towers."""
    settings: Any = OmegaConf.to_container(config.model, resolve=True)
    method = hydra.utils.get_object(settings.pop("_target_"))
    if not (isinstance(method, type) and issubclass(method, Baseline)):
        return None
    return method(**strict(method, settings, "model"))


def initialise(config: DictConfig, module: Retrieval, dataset: PreparedDataset) -> bool:
    """Give an untrained module the weights of the closed form named by ``init``; say whether one is named."""
    named = [] if config.get("init") is None else _initialised(config, module.model)
    if not named:
        if isinstance(module.model, Blocks) and (module.model.balanced or module.model.stacking is not None):
            raise ConfigError(
                "model.balanced and model.stacking weigh blocks that init has made, and init names none: set "
                "model.balanced=false model.stacking=null, or an init"
            )
        return False
    known, model = interactions(dataset), module.model
    if isinstance(model, Blocks) and model.stacking is not None:
        _stack(model, model.stacking, named, module, dataset, config.seed)
        _write(named, module, known)
        return True
    _write(named, module, known)
    if isinstance(model, Blocks) and model.balanced:
        users = training_queries(dataset, _SAMPLE, config.seed)
        balance(model, lambda part: _embedded(part, module, users))
    return True


def _write(named: Sequence[tuple[TwoTower, DictConfig]], module: Retrieval, known: Interactions) -> None:
    """Compute factors of these events, and write them into the parts."""
    for part, init in named:
        with progress("initialise") as tell:
            method: ClosedForm = hydra.utils.instantiate(init)
            factors = method(known, part.dim, progress=tell)
        assign(part, factors, module.items.select(part.item_features))


def _stack(
    model: Blocks,
    settings: StackingSettings,
    named: Sequence[tuple[TwoTower, DictConfig]],
    module: Retrieval,
    dataset: PreparedDataset,
    seed: int,
) -> None:
    """Learn the weights of the blocks while some events are held out; the blocks are then those of the rest."""
    assert model.popularity is not None
    held = hold_out(dataset, settings.share, settings.users, seed)
    rest = interactions(dataset).without(held.pairs)
    _write(named, module, rest)
    if model.balanced:
        balance(model, lambda part: _embedded(part, module, held.queries))
    with progress("stack") as tell, torch.no_grad():
        tell("scoring", 0.0)
        embedders = [Embedder(b, module.users, module.items, contexts=module.contexts) for b in model.parts]
        events = torch.from_numpy(np.bincount(rest.item, minlength=rest.n_items).astype(np.float32))
        found = lists(
            [(e.embed_queries(held.queries), e.embed_items()) for e in embedders],
            model.log_weight.exp(),
            events,
            held.targets,
            held.seen,
            settings.candidates,
        )
        tell("learning", 0.8)
    learned = stack(found, model.log_weight.detach().exp())
    with torch.no_grad():
        model.log_weight.copy_(learned.weight.log())
        model.popularity.log_scale.copy_(learned.log_scale)
        model.popularity.offset.copy_(learned.offset)
    say("weights " + ", ".join(f"{n} {float(w):.3g}" for n, w in zip(model.names, learned.weight, strict=True)))


def _embedded(part: TwoTower, module: Retrieval, users: QueryBatches) -> tuple[Tensor, Tensor]:
    """``[B, D]`` queries and ``[I, D]`` candidates of a block."""
    embedder = Embedder(part, module.users, module.items, contexts=module.contexts)
    return torch.cat(list(embedder.embed_queries(users))), embedder.embed_items()


def _initialised(config: DictConfig, model: RetrievalModel) -> list[tuple[TwoTower, DictConfig]]:
    """What is initialised, and how: the model by ``init``, or some of its blocks by ``init.NAME``."""
    if config.init.get("_target_", "") is None:  # init=none
        return []
    if isinstance(model, Blocks):
        if "_target_" in config.init:
            raise ConfigError("init must say which block it is for: /init@init.BLOCK in the experiment's defaults")
        named = [(model.block(str(name)), init) for name, init in config.init.items()]
    elif not isinstance(model, TwoTower):
        raise ConfigError(f"init writes the tables of two towers, and model is a {type(model).__name__}; set init=null")
    else:
        named = [(model, config.init)]
    for _, init in named:
        if "_target_" not in init:
            raise ConfigError(
                f"init has settings, {', '.join(map(str, init))}, but no method: add init=svd, ials, … or init=none"
            )
    return [(part, init) for part, init in named if init["_target_"] is not None]


def interactions(dataset: PreparedDataset) -> Interactions:
    """The positive training events."""
    e = dataset.examples("train")
    e = e.take(e.weight > 0)
    time = np.zeros(len(e), np.int64) if e.time is None else e.time
    e = e.take(np.lexsort((time, e.user)))
    return Interactions(
        e.user.astype(np.int64),
        e.item.astype(np.int64),
        e.weight,
        len(dataset.users),
        len(dataset.items),
        None if dataset.schema.clock == "none" else e.time,
        dataset.encoded("item"),
        dataset.encoded("user"),
        dataset.schema.clock,
    )


def monitor(config: DictConfig) -> str:
    """The validation metric that selects checkpoints and that sweeps optimise."""
    return f"{config.data.get('select', 'valid')}/{config.metric}"
