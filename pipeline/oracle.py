"""Recall as a share of the best achievable, where the truth is known (the synthetic job market)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.market import Oracle
from data.prepared import PreparedDataset
from towers.evaluation.results import Evaluation

QUERIES = 4_000  # ranked by the truth; more would only cost time
BLOCK = 500
K = 100


def share_of_best(result: Evaluation, market: Path, dataset: PreparedDataset) -> dict[str, Any]:
    """The model's and the truth's recall@100 over the same queries, candidates and exclusions, and their ratio."""
    task = result.task
    if task.time is None:
        return {}
    oracle = Oracle.open(market)
    chosen = np.sort(np.random.default_rng(0).permutation(len(task))[:QUERIES])
    users, items = dataset.ids("user"), dataset.ids("item").take(task.candidates)
    column = np.full(len(dataset.items), -1)
    column[task.candidates] = np.arange(len(task.candidates))
    found = []
    for start in range(0, len(chosen), BLOCK):
        block = chosen[start : start + BLOCK]
        scores = torch.from_numpy(oracle.scores(users.take(task.query[block]), items, task.time[block]))
        for row, q in enumerate(block):
            out = column[task.exclude.values[task.exclude.offsets[q] : task.exclude.offsets[q + 1]]]
            scores[row, torch.from_numpy(out[out >= 0])] = -torch.inf
        found.append(task.candidates[scores.topk(min(K, scores.shape[1])).indices.numpy()])
    best = np.concatenate(found)
    lists = [task.targets.values[task.targets.offsets[q] : task.targets.offsets[q + 1]] for q in chosen]
    recall = float(np.mean([np.isin(t, row).mean() for t, row in zip(lists, best, strict=True)]))
    key = f"recall@{K}"
    mine = float(result.per_query[key][chosen].mean()) if key in result.per_query else float("nan")
    return {f"best_{key}": recall, f"share_of_best_{key}": mine / recall if recall else float("nan")}
