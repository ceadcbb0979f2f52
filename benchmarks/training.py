"""Training through the project, beside a hand-written loop over tensors that are already in memory.

    python -m benchmarks.training [--steps 60] [--repeats 5]

Same model, same examples, same mathematics of the loss, same optimiser. The loop has everything gathered before it
starts: histories as one ``[n, L]`` tensor, known items as one flat list. Ours streams batches from the prepared dataset
through Lightning, with the progress bar and callbacks that a user's run has.
"""

import argparse
import io
import logging
import statistics
import time
import warnings
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize
from rich.console import Console

import train  # noqa: F401  (registers the run_folder resolver)
from benchmarks.line import report
from pipeline import build
from pipeline.datasets import ensure_prepared
from towers.features import Batch, Ragged
from towers.model.callbacks import ProgressBar, StopOnNonFiniteLoss, Throughput
from towers.model.module import Retrieval

SETTINGS = ["experiment=market", "logger=none", "optimiser.schedule=constant"]
WARM_UP = 10


class Clock(pl.Callback):
    """Remembers when each batch ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Now."""
        self.ends.append(time.perf_counter())


class InMemory:
    """All examples as tensors, gathered once."""

    def __init__(self, data: Any) -> None:
        collate = data.train_dataloader()._collate
        whole: Batch = collate(data.examples)
        self.whole = whole
        self.length = whole.history.shape[1]

    def batch(self, rows: torch.Tensor) -> Batch:
        """Examples by number: plain indexing."""
        w = self.whole
        starts = w.known.offsets[rows]
        lengths = w.known.offsets[rows + 1] - starts
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
        offsets[1:] = lengths.cumsum(0)
        index = torch.arange(int(offsets[-1])) + (starts - offsets[:-1]).repeat_interleave(lengths)
        return Batch(
            w.user[rows], w.item[rows], w.weight[rows], w.history[rows], w.history_action[rows], w.history_age[rows],
            Ragged(offsets, w.known.values[index]), None if w.time is None else w.time[rows],
        )  # fmt: skip


def loop(module: Retrieval, memory: InMemory, size: int, steps: int) -> float:
    """Examples per second of the plain loop."""
    optimiser = module.configure_optimizers()
    optimiser = optimiser["optimizer"] if isinstance(optimiser, dict) else optimiser
    order = torch.randperm(len(memory.whole))
    start = 0.0
    for i in range(WARM_UP + steps):
        if i == WARM_UP:
            start = time.perf_counter()
        rows = order[torch.arange(i * size, (i + 1) * size) % len(order)]
        loss = module.training_step(memory.batch(rows), i)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return size * steps / (time.perf_counter() - start)


def ours(config: Any, dataset: Any, size: int, steps: int) -> float:
    """Examples per second through the datamodule and Lightning."""
    config.batch_size = size
    data, module, clock = build.datamodule(config, dataset), build.retrieval(config, dataset), Clock()
    quiet = ProgressBar(console=Console(file=io.StringIO(), force_terminal=True))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=WARM_UP + steps, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[quiet, Throughput(), StopOnNonFiniteLoss(), clock],
    )  # fmt: skip
    trainer.fit(module, data)
    ends = np.asarray(clock.ends)
    return size * steps / float(ends[-1] - ends[WARM_UP - 1])


def main() -> None:
    """Interleaved runs at both batch sizes, the median ratio of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with initialize("../configs", version_base="1.3"):
        config = compose("train", SETTINGS)
    torch.set_num_threads(config.threads)
    dataset = ensure_prepared(config)
    memory = InMemory(build.datamodule(config, dataset))
    for size in (1024, 4096):
        rates = []
        for _ in range(args.repeats):
            module = build.retrieval(config, dataset)
            module._trainer = _Standing()  # type: ignore[assignment]
            plain = loop(module, memory, size, args.steps)
            rates.append((ours(config, dataset, size, args.steps), plain))
        fast = [f"{statistics.median(r):,.0f}" for r in zip(*rates, strict=True)]
        print(f"batch {size}: ours {fast[0]} examples/s, plain loop {fast[1]} (medians of {args.repeats})")
        report(f"training/over_plain_loop_{size}", statistics.median(a / b for a, b in rates), 0.95, at_most=False)


class _Standing:
    """What ``training_step`` asks of a trainer."""

    log_every_n_steps = 10**9
    global_step = 0
    global_rank = 0


if __name__ == "__main__":
    main()
