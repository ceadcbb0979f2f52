"""The memory report of a run, from its config and its data, before the model is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hydra.utils
import torch
from omegaconf import DictConfig
from torch import Tensor

from data.prepared import PreparedDataset
from data.reading import bytes_in_memory
from pipeline.build import memory_budget
from towers.features import FeatureInfo
from towers.model import memory
from towers.model.fused_softmax import SampledSoftmax, block_rows
from towers.model.memory import MemoryReport, Step
from towers.model.mining import Mined
from towers.model.negatives import CrossBatch, InBatch, Sampler
from towers.model.two_tower import RetrievalModel


def report(config: DictConfig, dataset: PreparedDataset, device: torch.device, world: int = 1) -> MemoryReport:
    """What this run will hold at its peak, on one device.

    Args:
        config: the composed config of a trained model.
        dataset: the prepared dataset.
        device: where it trains.
        world: processes.
    """
    infos = [dataset.infos(side) for side in ("user", "item", "context")]

    def build() -> RetrievalModel:
        model: RetrievalModel = hydra.utils.instantiate(config.model)(*infos, len(dataset.schema.actions))
        return model

    with torch.device("meta"):
        model = build()
    events = torch.from_numpy(dataset.events("item"))
    sampler: Sampler = hydra.utils.instantiate(config.negatives)(events)
    step = _step(config, model, sampler, events, world, dataset.schema.history_length, device)
    read = [
        _bytes(model.user_infos, len(dataset.users)),
        _bytes(model.item_infos, len(dataset.items)),
        _bytes(model.context_infos, len(dataset.contexts)),
        *(b.numel() * b.element_size() for b in sampler.buffers()),
    ]
    free = memory.free_bytes(device)
    if free is not None and device.type == "cpu":
        free //= world  # all of them live here
    budget, shown = memory_budget(config), config.get("impressions", 0)
    data = bytes_in_memory(dataset, budget, shown) if device.type == "cpu" else 0  # a card sees batches of it
    return memory.report(
        model,
        hydra.utils.instantiate(config.optimiser),
        step,
        features=sum(read),
        activations=memory.activation_bytes(build, step) if model.row_by_row else None,
        data=data,
        free=free,
        shard_above=config.get("shard_above"),
        world=world,
    )


def _step(
    config: DictConfig,
    model: RetrievalModel,
    sampler: Sampler,
    events: Tensor,
    world: int,
    length: int,
    device: torch.device,
) -> Step:
    """How much one process looks at in a step."""
    examples, support = int(config.batch_size), events.nonzero().squeeze(1)
    for part in sampler.modules():
        if isinstance(part, CrossBatch):
            part.remembered = len(part.memory)  # once it is full
    drawn = int(sampler.inclusion(support, examples * world).sum())  # the expected size: what an inclusion means
    own = (sampler.n if isinstance(sampler, Mined) else 0) + int(config.get("impressions", 0))
    loss: Any = hydra.utils.instantiate(config.loss)
    rows = min(examples, block_rows(drawn, device)) if isinstance(loss, SampledSoftmax) else examples
    past = InBatch(events).inclusion(support, examples * length + 1).sum() if model.history_dim else 0
    return Step(
        examples=examples,
        candidates=-(-drawn // world) + (0 if sampler.holds_positives else examples) + examples * own,
        histories=int(past),
        length=length,
        pairs=rows * drawn + examples * own,
        chunk=config.get("grad_cache"),
    )


def _bytes(infos: Sequence[FeatureInfo], rows: int) -> int:
    """Of encoded features: four for each number."""
    return sum(4 * rows * max(i.width, 1) for i in infos)
