"""Fitting a baseline: the same run folder as a trained model's, in seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import DictConfig

from data.prepared import PreparedDataset
from pipeline import build
from pipeline.console import progress, say
from pipeline.evaluating import evaluate_run
from pipeline.runs import BASELINE, Run
from towers.errors import ConfigError
from towers.model.baselines import fitted
from towers.model.baselines.fitted import Fitted


def fit(config: DictConfig, run: Run, dataset: PreparedDataset, tasks: Sequence[str], logger: Any) -> float | None:
    """Fit a baseline, store it, evaluate it.

    Args:
        config: the composed config, whose model is a baseline.
        run: where it goes.
        dataset: the prepared dataset.
        tasks: what is ranked at the end, besides the selecting task.
        logger: where the metrics go; False: nowhere.

    Returns:
        The value of the validation metric; None for a refit, which has no validation.

    Raises:
        ConfigError: a setting cannot work with these data.
    """
    baseline = build.baseline(config)
    if baseline is None:
        raise ConfigError(f"model is {config.model._target_}, which is trained and not fitted")
    counts = dataset.info["counts"]
    what = f"{type(baseline).__name__} to {counts['users']:,} users and {counts['items']:,} items"
    say(f"fitting {what}; run {run.folder}")
    start = time.perf_counter()
    with progress("fit") as tell:
        state = baseline.fit(build.interactions(dataset), tell)
        tell("writing", 1.0)
        fitted.save(state, run.checkpoints / BASELINE)
    seconds = time.perf_counter() - start
    monitor = None if config.refit else build.monitor(config)
    selecting = [] if monitor is None else [monitor.partition("/")[0]]
    model = Fitted(baseline, state, dataset.encoded("user"))
    metrics = evaluate_run(run, list(dict.fromkeys([*selecting, *tasks])), dataset=dataset, module=model)
    value = None if monitor is None else metrics[monitor]
    outcome = {
        "name": config.name,
        "refitted": bool(config.refit),
        "monitor": monitor,
        "best": value,
        "best_epoch": 0,
        "epochs": 0,
        "steps": 0,
        "fit_seconds": round(seconds, 3),
        "metrics": metrics,
    }
    run.finish(outcome)
    close([logger] if logger else [], metrics, 0)
    return value


def close(loggers: Iterable[Any], metrics: dict[str, float], step: int) -> None:
    """Give the loggers the final metrics, and end their runs: a sweep in one process begins another."""
    for logger in loggers:
        logger.log_metrics(metrics, step=step)
        logger.finalize("success")
        if finish := getattr(getattr(logger, "experiment", None), "finish", None):
            finish()
