"""What is trained on a GPU to measure it: ids of many users and jobs, histories, batches made as for any dataset.

The model, its module, the sampler, the optimisers and what makes batches are the project's own. Only the log is drawn
at random, in memory: each user has the same number of events, jobs are drawn with a popularity that falls with the
square root of their rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.ceilings import Shapes
from data.batches import Collator, QueryBatches, TrainBatches, joined
from data.examples import Examples
from data.histories import HistoryLog
from data.sending import Sender, SentBatches
from towers.evaluation.task import Task
from towers.features import FIRST, Batch, FeatureInfo, Kind, Ragged
from towers.model import memory
from towers.model.encoders import EncoderSettings
from towers.model.history import HistorySettings
from towers.model.memory import MemoryReport, Step, activation_bytes
from towers.model.module import Retrieval, TrainingData
from towers.model.negatives import Uniform
from towers.model.optimisers import OptimiserSettings
from towers.model.similarity import Similarity
from towers.model.tables import FeatureTable
from towers.model.tower import TowerSettings
from towers.model.two_tower import TwoTower


@dataclass(frozen=True)
class Sizes:
    """Of the workload.

    Attributes:
        users, items: rows of the two tables.
        dim: width of the tables and of the vectors.
        events: of each user; the newest ``length`` before an example are its history.
        length: of histories.
        negatives: that are drawn in a step.
        logged: users who have events; examples are theirs. A log of all would fill the host's memory and show no more.
    """

    users: int = 10_000_000
    items: int = 10_000_000
    dim: int = 128
    events: int = 20
    length: int = 20
    negatives: int = 8192
    logged: int = 2_000_000


class Log:
    """Events of some users, and the batches of them.

    Args:
        sizes: see there.
        seed: of the events.
    """

    def __init__(self, sizes: Sizes, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.sizes, n = sizes, min(sizes.users, sizes.logged)
        ranks = rng.random(n * sizes.events, np.float32)
        item = np.minimum(ranks * ranks * sizes.items, sizes.items - 1).astype(np.int32)  # density ~ rank^-1/2
        self.offsets = np.arange(0, (n + 1) * sizes.events, sizes.events)
        stages = np.stack([self.offsets[1:], self.offsets[1:]], 1)
        self.history = HistoryLog(self.offsets, stages, item, np.zeros(len(item), np.int8), None)
        self.known = Ragged(self.offsets, item)
        # one part, all of it in memory: what ``TrainBatches`` asks of parts
        self.sizes_of_parts = np.array([len(item)])
        self.weights, self.capacity = np.array([0]), None

    @property
    def item_events(self) -> NDArray[np.int64]:
        """``[I]`` events of each job."""
        return np.bincount(self.history.item, minlength=self.sizes.items).astype(np.int64)

    def examples(self, rows: NDArray[np.int64]) -> Examples:
        """Events as examples: what came before each of them is its history."""
        user = (rows // self.sizes.events).astype(np.int32)
        ones = np.ones(len(rows), np.float32)
        return Examples(user, self.history.item[rows], None, ones, np.zeros(len(rows), np.int8), rows)

    def batches(self, size: int, workers: int, device: torch.device) -> Iterator[Batch]:
        """Training batches without end, made while the device works, by the project's own loader."""
        collate = Collator(self.history, "order", self.sizes.length, self.known)
        make = partial(SentBatches, Sender(device)) if device.type == "cuda" else TrainBatches[Batch]
        for epoch in count():
            yield from make(_OnePart(self, collate), joined, size, 0, epoch=partial(int, epoch), workers=workers)

    def task(self, queries: int) -> Task:
        """The last job of some users, sought among all jobs, the other jobs that they took left out."""
        queries = min(queries, len(self.offsets) - 1)
        users, last = np.arange(queries), self.offsets[1 : queries + 1] - 1
        before = Examples.queries(users, last)
        collate = Collator(self.history, "order", self.sizes.length)
        events = self.history.item[: queries * self.sizes.events].reshape(queries, -1).astype(np.int64)
        each = np.arange(queries + 1)
        return Task(
            name="gpu",
            query=users,
            batches=QueryBatches(before, collate, 8192),
            targets=Ragged(each, events[:, -1]),
            candidates=np.arange(self.sizes.items),
            exclude=Ragged(each * (self.sizes.events - 1), events[:, :-1].reshape(-1)),
        )


@dataclass(frozen=True)
class _OnePart:
    log: Log
    collate: Collator

    @property
    def sizes(self) -> NDArray[np.int64]:
        return self.log.sizes_of_parts

    @property
    def weights(self) -> NDArray[np.int64]:
        return self.log.weights

    @property
    def capacity(self) -> int | None:
        return self.log.capacity

    def open(self, parts: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], Batch]:
        """All events."""
        return lambda rows: self.collate(self.log.examples(rows))


def model(sizes: Sizes) -> TwoTower:
    """Ids and histories, one residual block in each tower; the gradients of both tables are sparse."""
    users, items = ([FeatureInfo("id", Kind.ID, 0, FIRST + n)] for n in (sizes.users, sizes.items))
    tower = TowerSettings(width=sizes.dim, encoders=EncoderSettings(sparse_above=0))
    return TwoTower(
        users, items, dim=sizes.dim, similarity=Similarity("cosine", 0.05), user=tower, item=tower,
        history=HistorySettings(pooling="mean"),
    )  # fmt: skip


def planned(sizes: Sizes, batch: int, free: int | None) -> MemoryReport:
    """What a training of it will hold; nothing is allocated."""
    with torch.device("meta"):
        empty = model(sizes)
    at_most = min(batch * sizes.length, sizes.items)
    step = Step(batch, batch + sizes.negatives, at_most, sizes.length, batch * sizes.negatives)
    kept = 4 * (sizes.users + sizes.items) + 24 * sizes.items  # feature tables; what the sampler keeps of each item
    held = activation_bytes(lambda: model(sizes), step)
    return memory.report(empty, OptimiserSettings(), step, features=kept, activations=held, free=free)


def module(sizes: Sizes, item_events: NDArray[np.int64], device: torch.device) -> Retrieval:
    """The Lightning module, made on the device; without a trainer."""
    with torch.device(device):
        tables = [
            FeatureTable({"id": torch.arange(FIRST, FIRST + n, dtype=torch.int32)}) for n in (sizes.users, sizes.items)
        ]
        out = Retrieval(
            model(sizes), TrainingData(*tables, item_events), sampler=partial(Uniform, n=sizes.negatives),
        )  # fmt: skip
    out._trainer = _Standing()  # type: ignore[assignment]
    return out.to(device)


def shapes(batch: Batch, module: Retrieval, sizes: Sizes, size: int) -> Shapes:
    """Of a step with this batch."""
    n, negatives = len(batch), len(module.sampler.start)
    histories = int(batch.history[batch.history >= 0].unique().numel())
    candidates = n + negatives
    return Shapes(
        examples=n,
        candidates=candidates,
        negatives=negatives,
        length=batch.history.shape[1],
        histories=histories,
        users=int(batch.user.unique().numel()),
        items=int(torch.cat([batch.history[batch.history >= 0], batch.item]).unique().numel()) + negatives,
        dim=sizes.dim,
        linears=linears(module.model, n, candidates, histories),
        size=size,
    )


def linears(model: nn.Module, users: int, items: int, histories: int) -> list[tuple[int, int, int]]:
    """Rows, inputs and outputs of each linear layer of the towers.

    Items of histories pass the fusion of the item tower and not its body.
    """
    out = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            rows = users if name.startswith("user_") else items + (histories if "item_inputs" in name else 0)
            out.append((rows, layer.in_features, layer.out_features))
    return out


class _Standing:
    """What ``training_step`` asks of a trainer."""

    log_every_n_steps = 10**9
    global_step = 0
    global_rank = 0
