"""Training a run: fit, keep the best checkpoint, evaluate it, write what came out."""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra.utils
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from data.module import RetrievalData
from data.prepared import PreparedDataset
from pipeline import build, continuing, fitting, memory
from pipeline.checking import UNREAD_BY_BASELINES, check_loss, check_settings, check_unread
from pipeline.console import say
from pipeline.datasets import dataset_of, dataset_spec, ensure_prepared
from pipeline.evaluating import evaluate_run
from pipeline.runs import Run
from pipeline.settings import effective
from towers.errors import ConfigError
from towers.model import checkpoints
from towers.model.callbacks import ProgressBar, StopOnNonFiniteLoss, Throughput
from towers.model.compiling import compile_towers
from towers.model.module import Retrieval
from towers.model.saving import KeepLast, WholeCheckpoints

# Lightning's advice on DataLoader workers does not apply: batches are integer gathers from arrays in memory.
_NOISE = (".*does not have many workers.*", ".*`IterableDataset` has `__len__` defined.*", ".*log_every_n_steps.*",
          ".*Checkpoint directory .* exists and is not empty.*", ".*no logger configured.*",
          ".*You have overridden `transfer_batch_to_device`.*", ".*isinstance\\(treespec, LeafSpec\\).*")  # fmt: skip


def train(config: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> float | None:
    """Train one run in ``folder``.

    Args:
        config: the composed config of ``configs/train.yaml``.
        folder: the run folder; with ``resume`` the one to go on with.
        overrides: what the command line says; ``resume`` and ``refit`` refuse what is not as it was.

    Returns:
        The best value of the validation metric; None for a refit, which has no validation.
    """
    config = effective(config, overrides)
    check_settings(config, ("model", "negatives", "loss", "optimiser", "init"))
    if build.baseline(config) is not None:
        check_unread(config, UNREAD_BY_BASELINES, "a baseline reads events and texts as they are")
    elif not config.impressions:
        check_unread(config, {"impression_weight": 1.0}, "there are no impressions (impressions=0)")
    if config.init_from and not config.resume:
        continuing.check(config)
    run = Run(folder)
    dataset = dataset_of(run) if config.resume else ensure_prepared(config)
    tasks = evaluation_tasks(config, dataset)
    run.begin(config, dataset)
    if build.baseline(config) is not None:
        return fitting.fit(config, run, dataset, tasks, _loggers(config, run))
    pl.seed_everything(config.seed, workers=True, verbose=False)
    _quiet()
    # With deterministic algorithms torch would also fill memory that is about to be overwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if config.threads:
        torch.set_num_threads(config.threads)
    module_data = build.datamodule(config, dataset)
    best, stop = _best(config, run), _early_stopping(config)
    last = KeepLast(str(run.checkpoints), config.checkpoint_every)
    trace = hydra.utils.instantiate(config.trace, folder=str(run.folder)) if config.get("trace") else None
    trainer: pl.Trainer = hydra.utils.instantiate(
        config.trainer,
        default_root_dir=str(run.folder),
        logger=_loggers(config, run),
        limit_val_batches=0 if config.refit else None,
        plugins=[WholeCheckpoints()],
        callbacks=[
            c
            for c in (ProgressBar(), Throughput(), StopOnNonFiniteLoss(), trace, last, best, stop)
            if isinstance(c, Callback)
        ],
    )
    held = memory.report(config, dataset, trainer.strategy.root_device, trainer.world_size)
    held.check()
    steps = _steps(module_data, trainer, config.schedule_epochs)
    module = build.retrieval(config, dataset, steps)
    check_loss(module)
    if config.get("compile"):  # here only: what is evaluated and exported is built anew
        compile_towers(module.model)
    if trainer.is_global_zero:
        say(_summary(module_data, module, run, trainer))
        say(str(held))
    resume = _newest(run) if config.resume else None
    if resume is None:
        _start(config, run, trainer, module, module_data, best, stop)
    try:
        with _tensor_cores(trainer):
            trainer.fit(
                module,
                module_data,
                ckpt_path=None if resume is None else str(resume),
                weights_only=False,
            )
    except SystemExit as e:  # Lightning's, without a word and without the status that a scheduler looks for
        say(f"stopped; go on with: python train.py resume={run.folder}")
        raise SystemExit(128 + (signal.SIGTERM if isinstance(e, SIGTERMException) else signal.SIGINT)) from None
    trainer.save_checkpoint(run.checkpoints / checkpoints.LAST)
    if torch.distributed.is_initialized():  # at the interpreter's exit, gloo may wait for ever
        torch.distributed.destroy_process_group()
    value = None if best is None or best.best_model_score is None else float(best.best_model_score)
    outcome: dict[str, Any] = {
        "name": config.name,
        "refitted": bool(config.refit),
        "monitor": build.monitor(config) if value is not None else None,
        "best": value,
        "best_epoch": _best_epoch(best) if value is not None else trainer.current_epoch,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
    }
    if trainer.is_global_zero:
        run.finish(outcome)
        outcome["metrics"] = evaluate_run(run, tasks, dataset=dataset)
        run.finish(outcome)
        fitting.close(trainer.loggers, outcome["metrics"], trainer.global_step)
    return value


@contextmanager
def _tensor_cores(trainer: pl.Trainer) -> Iterator[None]:
    """Beside bfloat16, what autocast leaves in float32 is multiplied in TF32; what ranks afterwards is not."""
    before = torch.get_float32_matmul_precision()
    if trainer.strategy.root_device.type == "cuda" and "32" not in str(trainer.precision):
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _newest(run: Run) -> Path | None:
    """The checkpoint to go on from, and a word if it is not the last that was saved."""
    found = checkpoints.newest(run.checkpoints)
    if found is None:
        say(f"no checkpoint in {run.checkpoints}: the run begins anew")
    elif found.name != checkpoints.LAST:
        say(
            f"{run.checkpoints / checkpoints.LAST} is damaged or missing; going on from {found.name}, the one before it"
        )
    return found


def _start(
    config: DictConfig,
    run: Run,
    trainer: pl.Trainer,
    module: Retrieval,
    data: RetrievalData,
    best: ModelCheckpoint | None,
    stop: EarlyStopping | None,
) -> None:
    """Take up or compute weights, and let what there is before training compete with what training makes of it."""
    if config.init_from:
        continuing.continue_run(config, module, data.dataset)
    initialised = bool(config.init_from) or build.initialise(config, module, data.dataset)
    if best is None or (not initialised and trainer.max_epochs != 0):
        return
    monitor = build.monitor(config)
    value = torch.tensor(trainer.validate(module, data, verbose=False)[0][monitor])
    say(f"before training: {monitor} {value:.4f}")
    path = str(run.checkpoints / checkpoints.BEST)
    trainer.save_checkpoint(path)
    best.load_state_dict(
        {
            **best.state_dict(),
            "best_model_score": value,
            "best_model_path": path,
            "best_k_models": {path: value},
            "kth_best_model_path": path,
            "kth_value": value,
        }
    )
    if stop is not None:
        stop.load_state_dict({**stop.state_dict(), "best_score": value})


def _quiet() -> None:
    """Leave out what Lightning says about itself."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for pattern in _NOISE:
        warnings.filterwarnings("ignore", pattern)


def evaluation_tasks(config: DictConfig, dataset: PreparedDataset) -> list[str]:
    """The tasks ranked at the end: ``evaluate``, or the selecting one, or all that a refit still has.

    Raises:
        ConfigError: the data have no such task.
    """
    known, wanted = list(dataset.info["tasks"]), config.evaluate
    if wanted == "all" or (wanted is None and config.refit):
        return known
    if wanted is None:
        return [config.data.get("select", "valid")]
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    declared = [name for name, _ in dataset_spec(config).tasks]
    if unknown := [name for name in names if name not in declared]:
        raise ConfigError(f"evaluate: no task {unknown[0]!r}; there are {declared}, or `all`")
    return [name for name in names if name in known]  # a refit has no validation


def _best(config: DictConfig, run: Run) -> ModelCheckpoint | None:
    """Keeps the weights with the best validation metric; a refit has no validation."""
    if config.refit:
        return None
    return ModelCheckpoint(
        dirpath=str(run.checkpoints),
        filename="best",
        monitor=build.monitor(config),
        mode="max",
        enable_version_counter=False,
    )


def _early_stopping(config: DictConfig) -> EarlyStopping | None:
    if config.refit or config.patience is None:
        return None
    return EarlyStopping(monitor=build.monitor(config), mode="max", patience=config.patience)


def _best_epoch(best: ModelCheckpoint | None) -> int:
    """Epochs trained when the best checkpoint was written."""
    assert best is not None
    checkpoint = checkpoints.read(Path(best.best_model_path))
    return int(checkpoint["epoch"]) + 1 if checkpoint["global_step"] else 0


def _loggers(config: DictConfig, run: Run) -> Any:
    if not config.get("logger"):
        return False
    try:
        logger = hydra.utils.instantiate(config.logger, save_dir=str(run.folder))
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    except Exception as e:
        if type(e).__module__.partition(".")[0] == "wandb":  # no account, say
            raise ConfigError(f"wandb: {e} Or set WANDB_MODE=offline, or logger=csv") from e
        raise
    return logger


def _batches(data: RetrievalData, trainer: pl.Trainer) -> int:
    """Training batches of an epoch, on each process: all that there are, or ``trainer.limit_train_batches``."""
    every, limit = data.batches_per_epoch(trainer.world_size), trainer.limit_train_batches
    return min(every, limit) if isinstance(limit, int) else int(every * (1.0 if limit is None else limit))


def _steps(data: RetrievalData, trainer: pl.Trainer, schedule_epochs: int | None) -> int:
    """Optimiser steps of the whole schedule, from our own count: the trainer's knows nothing of ``schedule_epochs``.

    Raises:
        ConfigError: training has no end.
    """
    epochs = schedule_epochs or trainer.max_epochs
    if epochs is None or epochs < 0:
        if trainer.max_steps < 0:
            raise ConfigError(
                f"trainer.max_epochs is {epochs}, which is no end, and the learning rate is scheduled from the first "
                "step to the last; set trainer.max_steps, schedule_epochs or trainer.max_epochs"
            )
        return max(1, trainer.max_steps)
    steps = max(1, epochs) * max(1, math.ceil(_batches(data, trainer) / trainer.accumulate_grad_batches))
    return steps if trainer.max_steps < 0 else max(1, min(steps, trainer.max_steps))


def _summary(data: RetrievalData, module: torch.nn.Module, run: Run, trainer: pl.Trainer) -> str:
    weights = sum(p.numel() for p in module.parameters())
    counts, world = data.dataset.info["counts"], trainer.world_size
    return (
        f"training on {len(data.parts):,} examples of {counts['users']:,} users and {counts['items']:,} items; "
        f"{weights:,} weights; {_batches(data, trainer):,} batches an epoch"
        f"{f' on each of {world} processes' if world > 1 else ''}; run {run.folder}"
    )
