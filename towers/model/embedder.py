"""Embedding users and items outside training: for validation, evaluation and export.

Shapes: ``B`` queries, ``I`` items, ``H`` width of what an item contributes to a history, ``D`` dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from towers.evaluation.task import Task
from towers.features import Batch
from towers.model.aggregation import Aggregation
from towers.model.history import HistoryInputs
from towers.model.tables import FeatureTable
from towers.model.two_tower import RetrievalModel


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch as tensors on a device, whatever it was."""
    return batch.map(lambda a: torch.as_tensor(a, device=device))


def history_of(batch: Batch, vectors: Tensor, rows: Tensor | None = None) -> HistoryInputs:
    """The batch's histories, given what each item contributes.

    Args:
        batch: ``B`` examples.
        vectors: ``[I, H]``, or ``[n, H]`` of some items.
        rows: ``[B, L]`` where the events' vectors stand; by default, item rows.
    """
    rows = (batch.history if rows is None else rows).clamp(min=0)
    return HistoryInputs(vectors, batch.history >= 0, batch.history_action.long(), batch.history_age, rows)


def means(vectors: Tensor, groups: Tensor) -> Tensor:
    """The mean of each vector's group.

    Args:
        vectors: ``[I, D]``.
        groups: ``[I]`` int64 groups, of any numbers.

    Returns:
        ``[I, D]``.
    """
    _, code, count = torch.unique(groups.to(vectors.device), return_inverse=True, return_counts=True)
    sums = vectors.new_zeros(len(count), vectors.shape[1]).index_add_(0, code, vectors)
    out: Tensor = (sums / count.unsqueeze(1)).index_select(0, code)
    return out


class Embedder:
    """A trained model with its feature tables, ready to embed. Make a new one when the weights have changed.

    The model runs in evaluation mode and is left in the mode in which it was.

    Args:
        model: the towers.
        users: features of all users.
        items: features of all items.
        block: items embedded at once.
        contexts: features of all contexts, if the model reads any.
        groups: ``[I]`` int64 group of each item (reposts of one job, labels of one occupation), or None.
        group_weight: what the mean of an item's group adds to the item's vector, beside 1: members of a group speak
            for each other. A step of smoothing after training, which costs nothing in it; histories do not see it.
        aggregation: moves items towards their co-clicked neighbours, after their groups; histories do not see it.
    """

    def __init__(
        self,
        model: RetrievalModel,
        users: FeatureTable,
        items: FeatureTable,
        block: int = 8192,
        contexts: FeatureTable | None = None,
        groups: Tensor | None = None,
        group_weight: float = 0.0,
        aggregation: Aggregation | None = None,
    ) -> None:
        self.model, self.block = model, block
        self.contexts = (contexts or FeatureTable({})).select(model.context_features)
        self.users, self.items = users.select(model.user_features), items.select(model.item_features)
        self.device = next(model.parameters()).device
        self.groups, self.group_weight = groups if group_weight else None, group_weight
        self.aggregation = aggregation
        self._history: Tensor | None = None
        self._history_stays = False
        self._smoothed: Tensor | None = None

    def item_blocks(self, rows: Any | None = None) -> Iterator[Tensor]:
        """``[n, D]`` embeddings, block by block.

        Args:
            rows: ``[N]`` item rows, by default all.
        """
        if self.groups is None and self.aggregation is None:
            yield from self._blocks(self.model.embed_items, rows)
            return
        if self._smoothed is None:
            self._smoothed = self._smooth(torch.cat(list(self._blocks(self.model.embed_items, None))))
        chosen = torch.arange(len(self.items)) if rows is None else torch.tensor(rows)
        for part in torch.split(chosen, self.block):
            yield self._smoothed[part.to(self.device)]

    def embed_items(self, rows: Any | None = None) -> Tensor:
        """``[N, D]`` embeddings of item rows, by default all."""
        return torch.cat(list(self.item_blocks(rows)))

    def sides(self, task: Task) -> tuple[Iterable[Tensor], Tensor]:
        """A task's queries, ``[Q, D]`` in blocks that are made as they are asked for, and candidates ``[N, D]``."""
        if task.retrieve == "users":
            return self.item_blocks(task.query), torch.cat(list(self.embed_queries(task.batches)))
        return self.embed_queries(task.batches), self.embed_items(task.candidates)

    def history_blocks(self) -> Iterator[Tensor]:
        """``[n, H]``: what each item contributes to a history, block by block."""
        yield from self._blocks(self.model.history_inputs, None)

    def history_table(self) -> Tensor:
        """``[I, H]``: what each item contributes to a history; computed once."""
        if self._history is None:
            self._history = torch.cat(list(self.history_blocks()))
        return self._history

    def keep_history(self, vectors: Tensor) -> None:
        """Take ``history_table`` from here, where it stays: of each batch, the rows it needs go to the device.

        Args:
            vectors: ``[I, H]`` what ``history_blocks`` gave, possibly memory-mapped.
        """
        self._history, self._history_stays = vectors, True

    def embed_queries(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """``[B, D]`` embeddings of each batch of queries.

        Args:
            batches: batches of arrays or tensors, on any device.
        """
        for batch in batches:
            here = to_device(batch, self.device)
            yield self._run(self._queries, here, self._history_of(here) if self.model.history_dim else None)

    def _history_of(self, batch: Batch) -> HistoryInputs:
        vectors = self.history_table()
        if not self._history_stays:
            return history_of(batch, vectors)
        rows, place = batch.history.clamp(min=0).unique(return_inverse=True)
        return history_of(batch, vectors[rows.cpu()].to(self.device), place)

    def _smooth(self, every: Tensor) -> Tensor:
        """``[I, D]`` → ``[I, D]``: what items say of each other, outside the model."""
        normalise = self.model.normalise
        if self.groups is not None:
            every = normalise(every + self.group_weight * normalise(means(every, self.groups)))
        return every if self.aggregation is None else normalise(self.aggregation(every))

    def _queries(self, batch: Batch, history: HistoryInputs | None) -> Tensor:
        context = None if batch.context is None else self.contexts(batch.context)
        return self.model.embed_users(self.users(batch.user), history, context)

    def _blocks(self, embed: Any, rows: Any | None) -> Iterator[Tensor]:
        rows = torch.arange(len(self.items)) if rows is None else torch.tensor(rows)  # a copy: arrays may be read-only
        for part in torch.split(rows, self.block):
            yield self._run(lambda r: embed(self.items(r.to(self.device))), part)

    def _run(self, f: Any, *args: Any) -> Tensor:
        """One call in evaluation mode and without gradients; in between, the caller may do as she likes."""
        was = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                out: Tensor = f(*args).float()
                return out
        finally:
            self.model.train(was)
