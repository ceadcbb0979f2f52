"""Evaluating a run: its best weights, a task, the numbers and the predictions in ``eval/TASK/``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, open_dict

from data.prepared import PreparedDataset
from data.queries import histories_window
from data.tasks import build_task
from pipeline import build
from pipeline.console import err, progress, say
from pipeline.describing import cold_share, examples, slices
from pipeline.fusing import fused
from pipeline.oracle import share_of_best
from pipeline.runs import Run
from towers.errors import ConfigError
from towers.evaluation.evaluate import METRICS, evaluate, evaluate_scores
from towers.evaluation.report import write_report
from towers.evaluation.results import Evaluation
from towers.evaluation.table import table
from towers.evaluation.task import Task
from towers.index.fusion import Fusion
from towers.model import checkpoints
from towers.model.baselines import fitted
from towers.model.baselines.fitted import Fitted
from towers.model.mixture import Reranked
from towers.model.module import Retrieval

WHOLE = 1 << 40  # events of a history: baselines read it whole
_SAID = {
    "share_of_best_recall@100": "recall@100 as a share of the best achievable",
    "cold_share_of_targets": "targets that training never saw",
}


def load(
    run: Run,
    dataset: PreparedDataset,
    device: str | None = None,
    dim: int | None = None,
    aggregate: Mapping[str, Any] | None = None,
    scratch: Path | None = None,
) -> Retrieval:
    """The trained module of a run, in evaluation mode, on the GPU if there is one.

    Args:
        run: the run.
        dataset: what it was trained on.
        device: where to; None: the GPU if there is one.
        dim: dimensions to which its vectors are cut; None: all.
        aggregate: settings of aggregation that replace the run's own.
        scratch: where the items' features are to lie, see ``build.retrieval``.
    """
    config = run.config
    if aggregate:
        with open_dict(config):
            config.aggregate = {**config.get("aggregate", {}), **aggregate}
    module = build.retrieval(config, dataset, scratch=scratch)
    module.load_state_dict(checkpoints.read(run.weights)["state_dict"])
    if dim is not None:
        module.model.truncate(dim)
    return module.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_model(
    run: Run, dataset: PreparedDataset, dim: int | None = None, aggregate: Mapping[str, Any] | None = None
) -> Retrieval | Fitted:
    """The trained module of a run, its vectors cut to ``dim`` and aggregated, or its fitted baseline."""
    baseline = build.baseline(run.config)
    if baseline is None:
        return load(run, dataset, dim=dim, aggregate=aggregate)
    if dim is not None or aggregate:
        named = "aggregate" if dim is None else f"dim={dim}"
        raise ConfigError(f"{named}: a baseline has no vectors of its own; leave {named.partition('=')[0]} out")
    return Fitted(baseline, fitted.load(run.weights), dataset.encoded("user"))


def evaluate_run(
    run: Run,
    tasks: Sequence[str],
    *,
    dataset: PreparedDataset,
    module: Retrieval | Fitted | None = None,
    dim: int | None = None,
    fusion: Fusion | None = None,
    rerank: int | None = None,
    aggregate: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Rank these tasks with a run's best weights; write ``eval/TASK/``; return all metrics, keyed ``TASK/METRIC``.

    With ``dim``, vectors are cut to so many dimensions, and the folder is ``eval/TASK-DIM``; with ``fusion``, the words
    of the queries are searched by BM25 too, and it is ``eval/TASK-METHOD``; with ``rerank``, so many of the first are
    ordered anew by the model's second stage, and it is ``eval/TASK-rerank``; with ``aggregate``, items move towards
    their neighbours with these settings instead of the run's own, and it is ``eval/TASK-aggregate``.
    """
    module = module or load_model(run, dataset, dim, aggregate)
    if rerank is not None and (dim is not None or fusion is not None or not _has_second_stage(module)):
        raise ConfigError(
            f"rerank={rerank} is for the whole vectors of a run with model.mixture (model=mixture), without fusion"
        )
    out: dict[str, float] = {}
    window = histories_window(dataset, build.memory_budget(run.config))
    for name in tasks:
        length = WHOLE if isinstance(module, Fitted) else dataset.schema.history_length
        task = build_task(dataset, name, history_length=length, window=window)
        result, extra = evaluate_task(run, task, dataset, module, fusion, rerank)
        marks = [name, *([] if dim is None else [str(dim)]), *([] if fusion is None else [fusion.method])]
        marks += [] if rerank is None else ["rerank"]
        marks += ["aggregate"] if aggregate else []
        folder = run.folder / "eval" / "-".join(marks)
        asking, found = ("user", "item") if task.retrieve == "items" else ("item", "user")
        result.save(folder, dataset.ids(asking).take(task.query), dataset.ids(found), extra)
        out |= result.flat(name) | {f"{name}/{k}": v for k, v in extra.items() if isinstance(v, float)}
        write_report(folder / "report.html", result, examples(result, dataset), {**extra, **_origin(run)})
        err.print(table(result))
        for key, label in _SAID.items():
            if key in extra:
                say(f"  {label}: {extra[key]:.1%}")
        if dataset.refit:
            say("  refitted on train + validation")
        say(f"metrics, predictions and report: {folder}")
    return out


def _has_second_stage(module: Retrieval | Fitted) -> bool:
    return isinstance(module, Retrieval) and module.model.mixture is not None


def _origin(run: Run) -> dict[str, Any]:
    """What the report says of where its numbers come from."""
    origin = run.provenance
    return {
        "commit": f"{origin['git_sha']}{' with changes' if origin['git_dirty'] else ''}",
        "dataset": origin["dataset"],
        "seed": origin["seed"],
        "selected by": run.metrics.get("monitor"),
        "epochs": run.metrics.get("best_epoch"),
    }


def evaluate_task(
    run: Run,
    task: Task,
    dataset: PreparedDataset,
    module: Retrieval | Fitted,
    fusion: Fusion | None = None,
    rerank: int | None = None,
) -> tuple[Evaluation, dict[str, Any]]:
    """One task, with the slices of ``pipeline.describing``."""
    config = run.config
    if task.retrieve == "users" and (fusion is not None or rerank is not None):
        raise ConfigError(f"task {task.name!r} retrieves users; fusion and rerank are for tasks that retrieve items")
    with progress(f"evaluate {task.name}") as tell:
        ranked = Counter[str]()

        def count(more: int) -> None:
            ranked["queries"] += more
            tell("ranking", ranked["queries"] / len(task))

        options: Any = {
            "ks": tuple(config.ks),
            "metrics": (*METRICS, "auc"),
            "slices": slices(task, dataset),
            "progress": count,
        }
        if isinstance(module, Fitted):
            if fusion is not None:
                raise ConfigError("a baseline is not fused; leave fusion.method out")
            tell("scoring", 0.0)
            result = evaluate_scores(task, module.scorer(task), **options)
        else:
            tell("embedding the candidates", 0.0)
            queries, candidates = module.embedder().sides(task)
            if rerank is not None and module.model.mixture is not None:
                second = Reranked(torch.cat(list(queries)), candidates, module.model.mixture, rerank)
                result = evaluate_scores(task, second, **options)
            elif fusion is None:
                result = evaluate(task, queries, candidates, **options)
            else:
                result = evaluate_scores(task, fused(task, dataset, queries, candidates, fusion), **options)
    extra: dict[str, Any] = {
        "refitted": dataset.refit,
        "run": str(run.folder),
        "cold_share_of_targets": cold_share(task, dataset),
        **({} if fusion is None else {"fusion": asdict(fusion)}),
        **aggregation_of(module),
    }
    source = Path(config.data.get("source") or "")
    if (source / "truth").is_dir():
        extra |= share_of_best(result, source, dataset)
    return result, extra


def aggregation_of(module: Retrieval | Fitted) -> dict[str, Any]:
    """The settings of aggregation under their name, for reports and manifests; nothing where there is none."""
    if not isinstance(module, Retrieval) or module.aggregation is None:
        return {}
    return {"aggregate": asdict(module.aggregation.settings)}


def given(aggregate: DictConfig) -> dict[str, Any]:
    """The settings of aggregation that a command line gives; null stands for the run's own."""
    return {str(k): v for k, v in aggregate.items() if v is not None}
