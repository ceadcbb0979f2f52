"""Growth: the time and memory of preparing a log and of training an epoch on it, as the log grows.

    python -m benchmarks.scale  # 1, 3 and 10 M events
    python -m benchmarks.scale --events 1000000,10000000,100000000 --repeats 1  # ten times as long

The logs are ids only: n events of n/20 users on n/100 items over 60 days (``benchmarks.preparation.make_log``). An
epoch is ``model=hybrid`` of ids and histories with 16 dimensions, 512 negatives and sparse tables, streamed within
``data.memory_budget``, without validation. Everything runs in a process of its own, the sizes in turns.

``exponent`` is the slope of log time over log n, by least squares, of the medians: of the wall clock, and of the
processor's, which other work on the machine hardly lengthens. Memory is the peak of the process less what it held
after its imports. Of preparation it is held against ``memory``; of an epoch, less what the memory report says of the
model, against ``data.memory_budget``.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.line import peak, report
from benchmarks.preparation import MEMORY, make_log, prepare
from data.settings import byte_size

BUDGET = "500MB"
SETTINGS = [
    "experiment=market", "data=gowalla", "logger=none", "threads=1", "batch_size=4096",
    "negatives=uniform", "negatives.n=512", "model.dim=16", "model.item.id_dropout=0", "model.history.pooling=mean",
    "optimiser.schedule=constant", "model.user.encoders.sparse_above=1000",  # of items too
]  # fmt: skip


class Cost(NamedTuple):
    """Of one run: seconds by the wall and of the processor, bytes, and bytes of these that the model takes."""

    wall: float
    cpu: float
    grown: int
    model: int


def preparation(log: Path, out: Path) -> Cost:
    """Prepare."""
    import data.prepare  # noqa: F401  (an import is no growth)

    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    prepare(log, out)
    return Cost(time.perf_counter() - wall, time.process_time() - cpu, peak() - before, 0)


def epoch(log: Path, out: Path) -> Cost:
    """Train on what was prepared."""
    import pytorch_lightning as pl
    import torch
    from hydra import compose, initialize

    import train  # noqa: F401  (registers the run_folder resolver)
    from data.module import RetrievalData
    from data.prepared import PreparedDataset
    from pipeline import build, memory

    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with initialize("../configs", version_base="1.3"):
        config = compose("train", SETTINGS)
    torch.ones(8, 8, requires_grad=True).square().sum().backward()  # what torch itself needs for a backward pass
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    dataset = PreparedDataset(out)
    held = memory.report(config, dataset, torch.device("cpu"))
    data = RetrievalData(dataset, batch_size=config.batch_size, seed=0, validate=(),
                         memory_budget=byte_size(BUDGET, "data.memory_budget"))  # fmt: skip
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, logger=False,
                         enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False)  # fmt: skip
    trainer.fit(build.retrieval(config, dataset), data)
    return Cost(time.perf_counter() - wall, time.process_time() - cpu, peak() - before, held.total - held.data)


STAGES: dict[str, Callable[[Path, Path], Cost]] = {"preparation": preparation, "epoch": epoch}


def measured(stage: str, log: Path, out: Path) -> Cost:
    """A stage in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--child", stage, str(log), str(out)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    """All sizes in turns; a line for each exponent and for the memory of each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", default="1000000,3000000,10000000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        stage, log, out = args.child
        print(json.dumps(STAGES[stage](Path(log), Path(out))))
        return
    sizes = [int(n) for n in args.events.split(",")]
    costs: dict[tuple[str, int], list[Cost]] = {(stage, n): [] for stage in STAGES for n in sizes}
    with tempfile.TemporaryDirectory(dir="var" if Path("var").is_dir() else None) as root:
        logs = {n: Path(root) / f"{n}.parquet" for n in sizes}
        for n, log in logs.items():
            make_log(log, n)
        for _ in range(args.repeats):
            for (stage, n), found in costs.items():
                found.append(measured(stage, logs[n], Path(root) / str(n)))
                wall, cpu, grown, model = found[-1]
                print(f"{stage} of {n:,} events: {wall:.1f} s ({cpu:.1f} s of the processor), {grown / 1e6:,.0f} MB, "
                      f"{model / 1e6:,.0f} of them the model", flush=True)  # fmt: skip
    for stage, budget in (("preparation", MEMORY), ("epoch", BUDGET)):
        for clock in ("wall", "cpu"):
            seconds = [statistics.median(getattr(c, clock) for c in costs[stage, n]) for n in sizes]
            report(f"scale/{stage}_exponent_{clock}", exponent(sizes, seconds), 1.05, at_most=True)
        for n in sizes:
            most = max(c.grown - c.model for c in costs[stage, n])
            report(f"scale/{stage}_memory_over_budget_{n}", most / byte_size(budget, "budget"), 1.0, at_most=True)


if __name__ == "__main__":
    main()
