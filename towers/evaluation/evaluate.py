"""A task and scores, or the vectors that they are products of → an ``Evaluation``.

Shapes: ``Q`` queries, ``N`` candidates, ``D`` dimensions, ``T`` targets of all queries end to end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from towers.errors import ConfigError, DataError
from towers.evaluation import metrics as m
from towers.evaluation.ranking import Ranking, Scorer, rank, rank_scores
from towers.evaluation.results import DEPTH, Evaluation, Scores
from towers.evaluation.slices import Slice
from towers.evaluation.task import Task
from towers.features import Ragged

COVERAGE = "coverage"
METRICS = ("recall", "ndcg", "hr", "precision", "mrr", "map", COVERAGE)
"""Metrics computed by default. ``auc`` and ``mrr@all`` must be asked for: they look at every candidate again."""


def evaluate(
    task: Task,
    query_blocks: Tensor | Iterable[Tensor],
    candidates: Tensor,
    *,
    ks: Sequence[int] = (10, 20, 100),
    metrics: Sequence[str] = METRICS,
    slices: Mapping[str, Slice] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Rank exactly, then measure.

    Args:
        task: what is asked.
        query_blocks: ``[Q, D]`` query vectors, or blocks of them in query order; blocks that are made on
            the fly are counted in ``seconds``.
        candidates: ``[N, D]`` candidate vectors in the order of ``task.candidates``.
        ks: cut-offs.
        metrics: names, see ``METRICS``.
        slices: divisions by name, each measured part by part.
        progress: called with the number of queries ranked after each block.

    Raises:
        ConfigError: an unknown metric, or a cut-off below 1.
        DataError: the task has no queries, or vectors are not finite.
    """

    def ranked(k: int, target_ranks: bool) -> Ranking:
        return rank(query_blocks, candidates, task, k, target_ranks=target_ranks, progress=progress)

    return _evaluate(task, ranked, ks, metrics, slices)


def evaluate_scores(
    task: Task,
    scorer: Scorer,
    *,
    ks: Sequence[int] = (10, 20, 100),
    metrics: Sequence[str] = METRICS,
    slices: Mapping[str, Slice] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """``evaluate`` for scores that are not products of two vectors.

    Args:
        task: what is asked.
        scorer: scores the task's queries against its candidates; its work is counted in ``seconds``.
        ks: cut-offs.
        metrics: names, see ``METRICS``.
        slices: divisions by name, each measured part by part.
        progress: called with the number of queries ranked after each block.

    Raises:
        ConfigError: an unknown metric, or a cut-off below 1.
        DataError: the task has no queries, or a score is no number.
    """

    def ranked(k: int, target_ranks: bool) -> Ranking:
        return rank_scores(scorer, task, k, target_ranks=target_ranks, progress=progress)

    return _evaluate(task, ranked, ks, metrics, slices)


def _evaluate(
    task: Task,
    ranked: Callable[[int, bool], Ranking],
    ks: Sequence[int],
    metrics: Sequence[str],
    slices: Mapping[str, Slice] | None,
) -> Evaluation:
    """Check the question, rank to the depth that it needs, measure."""
    known = (*METRICS, *m.WITHOUT_CUT)
    if unknown := [x for x in metrics if x not in known]:
        raise ConfigError(f"unknown metrics {unknown}; known are {list(known)}")
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks={list(ks)}: set cut-offs of at least 1")
    if not len(task):
        raise DataError(
            "an evaluation without queries", where=f"task {task.name!r}", cure="give its split events, or drop the task"
        )
    start = time.perf_counter()
    every_rank = any(x in m.WITHOUT_CUT for x in metrics)
    ranking = ranked(max(DEPTH, *ks), every_rank)
    place = m.places(ranking.items, task.targets)

    def part(keep: NDArray[np.bool_] | None = None) -> Scores:
        return _measure(task, ranking, place, keep, ks, metrics)

    whole = part()
    parts = {}
    for name, division in (slices or {}).items():
        codes = division.by_target(task.targets)
        present = [(i, label) for i, label in enumerate(division.labels) if (codes == i).any()]
        parts[name] = {label: part(codes == i) for i, label in present}
    return Evaluation(task, ranking, whole, parts, tuple(ks), time.perf_counter() - start)


def _measure(
    task: Task,
    ranking: Ranking,
    place: NDArray[np.int64],
    keep: NDArray[np.bool_] | None,
    ks: Sequence[int],
    names: Sequence[str],
) -> Scores:
    """Metrics over some of the targets (None: all) and the queries that have any of them."""
    query = np.repeat(np.arange(len(task)), np.diff(task.targets.offsets))
    ranks = ranking.target_ranks.values if ranking.target_ranks else None
    if keep is not None:
        query, place, ranks = query[keep], place[keep], ranks[keep] if ranks is not None else None
    queries, compact, count = np.unique(query, return_inverse=True, return_counts=True)
    hit = m.hits(place, compact, len(queries), max(ks))
    per_query = {f"{name}@{k}": m.AT_K[name](hit, count, k) for name in names if name in m.AT_K for k in ks}
    if ranks is not None and ranking.eligible is not None:
        lists = Ragged(np.concatenate([[0], np.cumsum(count)]), ranks)
        if "auc" in names:
            per_query["auc"] = m.auc(lists, ranking.eligible[queries])
        if "mrr@all" in names:
            per_query["mrr@all"] = m.reciprocal_rank(lists)
    totals = {}
    if keep is None and COVERAGE in names:
        totals = {f"{COVERAGE}@{k}": m.coverage(ranking.items, len(task.candidates), k) for k in ks}
    several = len(np.unique(task.query)) < len(task)
    return Scores(queries, len(query), per_query, totals, task.query[queries] if several else None)
