"""Evaluating a tower fused with BM25: the scores that ``Retriever.recommend(fuse=…)`` ranks by, for a task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.prepared import PreparedDataset
from towers.errors import ConfigError
from towers.evaluation.task import Task
from towers.index.bm25 import Bm25
from towers.index.fusion import Fusion


class FusedScores:
    """A scorer (``towers.evaluation.ranking``) of queries against candidates, by vectors and by words.

    Args:
        queries: ``[Q, D]`` query vectors.
        candidates: ``[N, D]`` candidate vectors.
        texts: ``[Q]`` words of the queries.
        titles: ``[N]`` text of the candidates.
        fusion: how the two become one. Ranks are among all candidates, those excluded for the query too.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        queries: Tensor,
        candidates: Tensor,
        texts: Iterable[str | None],
        titles: Iterable[str | None],
        fusion: Fusion,
    ) -> None:
        self._queries, self._candidates = queries.cpu().numpy(), candidates.cpu().numpy()
        self._texts, self._bm25, self._fusion = list(texts), Bm25(titles), fusion

    def __len__(self) -> int:
        """``Q``."""
        return len(self._queries)

    def write(self, queries: NDArray[np.int64], out: Tensor) -> None:
        """Fused scores of a block."""
        tower = self._queries[queries] @ self._candidates.T
        texts = [self._texts[q] for q in queries]
        out.copy_(torch.from_numpy(self._fusion.scores(tower, self._bm25, texts)))


def fused(
    task: Task, dataset: PreparedDataset, queries: Iterable[Tensor], candidates: Tensor, fusion: Fusion
) -> FusedScores:
    """The scorer of a task whose queries are contexts with words.

    Raises:
        ConfigError: the data have no such column; says which there are.
    """
    words, titles = _column(dataset, "context", fusion.query, "query"), _column(dataset, "item", fusion.text, "text")
    asked = np.concatenate([b.context for b in task.batches])
    texts = words.take(asked).to_pylist()
    return FusedScores(torch.cat(list(queries)), candidates, texts, titles.take(task.candidates).to_pylist(), fusion)


def _column(dataset: PreparedDataset, side: str, name: str, setting: str) -> Any:
    raw = dataset.raw(side)
    if name not in raw.column_names:
        there = raw.column_names or "none"
        raise ConfigError(f"fusion.{setting}={name}: no such {side} column in {dataset.name}; there are {there}")
    return raw[name]
