"""Evaluating a run: its best weights, a task, the numbers and the predictions in ``eval/TASK/``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.prepared import PreparedDataset
from data.tasks import build_task
from pipeline import build
from pipeline.console import say
from pipeline.oracle import share_of_best
from pipeline.runs import Run
from towers.evaluation.evaluate import METRICS, evaluate
from towers.evaluation.results import Evaluation
from towers.evaluation.slices import history_length, target_warmth
from towers.evaluation.task import Task
from towers.model.module import Retrieval


def load(run: Run, dataset: PreparedDataset, device: str | None = None) -> Retrieval:
    """The trained module of a run, in evaluation mode, on the GPU if there is one."""
    module = build.retrieval(run.config, dataset)
    state = torch.load(run.weights, map_location="cpu", weights_only=False)["state_dict"]
    module.load_state_dict(state)
    return module.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def evaluate_run(
    run: Run, tasks: Sequence[str], *, dataset: PreparedDataset, module: Retrieval | None = None
) -> dict[str, float]:
    """Rank these tasks with a run's best weights; write ``eval/TASK/``; return all metrics, keyed ``TASK/METRIC``."""
    module = module or load(run, dataset)
    out: dict[str, float] = {}
    for name in tasks:
        task = build_task(dataset, name, history_length=dataset.schema.history_length)
        result, extra = evaluate_task(run, task, dataset, module)
        folder = run.folder / "eval" / name
        result.save(folder, dataset.ids("user").take(task.user), dataset.ids("item"), extra)
        out |= result.flat(name) | {f"{name}/{k}": v for k, v in extra.items() if isinstance(v, float)}
        say(table(name, result, extra))
        say(f"predictions, metrics and per-query values: {folder}")
    return out


def evaluate_task(
    run: Run, task: Task, dataset: PreparedDataset, module: Retrieval
) -> tuple[Evaluation, dict[str, Any]]:
    """One task, with slices by history length and by whether a target was seen in training."""
    config = run.config
    lengths = np.concatenate([(b.history >= 0).sum(1).numpy() for b in task.batches])
    embedder = module.embedder()
    result = evaluate(
        task,
        embedder.embed_queries(task.batches),
        embedder.embed_items(task.candidates),
        ks=tuple(config.ks),
        metrics=(*METRICS, "auc"),
        slices={
            "history length": history_length(lengths),
            "target": target_warmth(task.targets, dataset.events("item")),
        },
    )
    warm = dataset.events("item")[task.targets.values] > 0
    extra: dict[str, Any] = {
        "refitted": dataset.refit,
        "run": str(run.folder),
        "cold_share_of_targets": float(1 - warm.mean()),
    }
    source = Path(config.data.get("source") or "")
    if (source / "truth").is_dir():
        extra |= share_of_best(result, source, dataset)
    return result, extra


def table(name: str, result: Evaluation, extra: dict[str, Any]) -> str:
    """Metrics with their intervals, as lines of text."""
    mark = "  (refitted on train + validation)" if extra.get("refitted") else ""
    lines = [f"{name}: {len(result.task):,} queries, {len(result.task.candidates):,} candidates{mark}"]
    for metric in ("recall", "ndcg", "hr"):
        cells = []
        for k in result.ks:
            key = f"{metric}@{k}"
            interval = result.intervals[key]
            cells.append(f"{key} {interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]")
        lines.append("  " + "   ".join(cells))
    for key, label in (
        ("share_of_best_recall@100", "recall@100 as a share of the best achievable"),
        ("cold_share_of_targets", "targets that training never saw"),
    ):
        if key in extra:
            lines.append(f"  {label}: {extra[key]:.1%}")
    for part, scores in result.slices.get("target", {}).items():
        k = max(result.ks)
        lines.append(f"  {part} targets: recall@{k} {scores.values[f'recall@{k}']:.4f} ({scores.targets:,})")
    return "\n".join(lines)
