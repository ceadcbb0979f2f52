"""Training through the project, beside a hand-written loop over tensors that are already in memory.

    python -m benchmarks.training [--steps 10] [--blocks 30] [--sizes 1024 4096] [--compile]

Same model, same examples, same mathematics of the loss, same optimiser. The loop has everything gathered before it
starts: histories as one ``[n, L]`` tensor, known items as one flat list. Ours streams batches from the prepared dataset
through Lightning, with the progress bar and callbacks that a user's run has.

The two take turns, a block of steps each, within one process: whatever else the machine does falls on both. The first
step of a block, which finds the other side's data in the caches, does not count. The ratio is the median over blocks.

``--compile`` measures instead what ``compile=true`` is worth to ``model=two_tower``, whose towers have layers: the loop
with compiled towers over the loop with eager ones, in turns likewise, no Lightning on either side. Compiling itself is
told apart. On one thread the clock is that of the process, since a ratio of close numbers wants a calm one.
"""

import argparse
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize
from rich.console import Console

import train  # noqa: F401  (registers the run_folder resolver)
from benchmarks.line import interleaved, report
from pipeline import build
from pipeline.datasets import ensure_prepared
from towers.features import Batch, Ragged
from towers.model.callbacks import ProgressBar, StopOnNonFiniteLoss, Throughput
from towers.model.compiling import compile_towers
from towers.model.module import Retrieval

SETTINGS = ["experiment=market", "logger=none", "optimiser.schedule=constant"]


class InMemory:
    """All examples as tensors, gathered once."""

    def __init__(self, data: Any) -> None:
        everything = data.parts.open(np.arange(len(data.parts.sizes)))
        self.whole: Batch = everything(np.arange(len(data.parts)))

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


def plain_loop(module: Retrieval, memory: InMemory, size: int) -> Iterator[None]:
    """One step each time it is asked."""
    optimiser = module.configure_optimizers()
    order, i = torch.randperm(len(memory.whole)), 0
    while True:
        rows = order[torch.arange(i * size, (i + 1) * size) % len(order)]
        loss = module.training_step(memory.batch(rows), i)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        i += 1
        yield


def standing(config: Any, dataset: Any) -> Retrieval:
    """A module that a plain loop can train."""
    out = build.retrieval(config, dataset)
    out._trainer = _Standing()  # type: ignore[assignment]
    return out


def compiled_over_eager(config: Any, dataset: Any, memory: InMemory, size: int, steps: int, blocks: int) -> None:
    """Print what compiled towers are worth at one batch size."""
    modules = standing(config, dataset), standing(config, dataset)
    compile_towers(modules[1].model)
    eager, compiled = (plain_loop(m, memory, size) for m in modules)
    start = time.perf_counter()
    for _ in range(3):  # kernels are made at the first step, and again where a shape turns out to vary
        next(compiled)
    compiling = time.perf_counter() - start
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    timing = interleaved(lambda: _run(eager, steps), lambda: _run(compiled, steps), blocks, clock)
    of_eager, of_compiled = (f"{size * steps / seconds:,.0f}" for seconds in timing[:2])
    print(f"batch {size}: compiled {of_compiled} examples/s, eager {of_eager} (medians of {blocks} blocks of {steps} "
          f"steps); the first three steps took {compiling:.0f} s")  # fmt: skip
    report(f"training/compiled_over_eager_{size}", timing.ratio, 1.05, at_most=False)


def _run(loop: Iterator[None], steps: int) -> None:
    for _ in range(steps):
        next(loop)


class TakeTurns(pl.Callback):
    """After each block of our steps, as many of the other side's; seconds of both."""

    def __init__(self, other: Iterator[None], steps: int, now: Callable[[], float] = time.perf_counter) -> None:
        self.other, self.steps, self.now = other, steps, now
        self.start = 0.0
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, _: Any, batch: Any, i: int) -> None:
        """Read the clock at the ends of a block; at its last step, let the other side run."""
        now = self.now()
        place = trainer.global_step % self.steps
        if place == 1:
            self.start = now
        if place == 0:
            self.ours.append(now - self.start)
            next(self.other)
            start = self.now()
            for _ in range(self.steps - 1):
                next(self.other)
            self.theirs.append(self.now() - start)


def turns(
    config: Any, dataset: Any, memory: InMemory, size: int, steps: int, blocks: int,
    now: Callable[[], float] = time.perf_counter,
) -> TakeTurns:  # fmt: skip
    """Train both sides for so many blocks, and one to warm up."""
    config.batch_size = size
    clock = TakeTurns(plain_loop(standing(config, dataset), memory, size), steps, now)
    quiet = ProgressBar(console=Console(file=io.StringIO(), force_terminal=True))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps * (blocks + 1), limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_model_summary=False,
        callbacks=[quiet, Throughput(), StopOnNonFiniteLoss(), clock],
    )  # fmt: skip
    trainer.fit(build.retrieval(config, dataset), build.datamodule(config, dataset))
    del clock.ours[0], clock.theirs[0]
    return clock


def main() -> None:
    """Both batch sizes, the median ratio of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096], help="of batches")
    parser.add_argument("--compile", action="store_true", help="compiled towers over eager ones")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with initialize("../configs", version_base="1.3"):
        config = compose("train", [*SETTINGS, *(["model=two_tower"] if args.compile else [])])
    torch.set_num_threads(config.threads)
    dataset = ensure_prepared(config)
    memory = InMemory(build.datamodule(config, dataset))
    for size in args.sizes:
        if args.compile:
            compiled_over_eager(config, dataset, memory, size, args.steps, args.blocks)
            continue
        clock = turns(config, dataset, memory, size, args.steps, args.blocks)
        ratios = sorted(b / a for a, b in zip(clock.ours, clock.theirs, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        ours, plain = (f"{size * (args.steps - 1) / statistics.median(s):,.0f}" for s in (clock.ours, clock.theirs))
        print(f"batch {size}: ours {ours} examples/s, plain loop {plain} (medians of {args.blocks} blocks); "
              f"half of the ratios are from {low:.3f} to {high:.3f}")  # fmt: skip
        goal = 0.97 if size >= 4096 else 0.95  # what a step costs beside the step weighs more in a small one
        report(f"training/over_plain_loop_{size}", statistics.median(ratios), goal, at_most=False)


class _Standing:
    """What ``training_step`` asks of a trainer."""

    log_every_n_steps = 10**9
    global_step = 0
    global_rank = 0


if __name__ == "__main__":
    main()
