"""A table of many rows, trained with row-wise Adagrad: the memory that the report predicts, and the time of a step.

    python -m benchmarks.tables [--rows 1000000] [--dim 16] [--table full] [--optimiser rowwise_adagrad]

At 100 M rows of 16 numbers (``--rows 100000000``) the table takes 6.0 GiB and the optimiser's state 0.4; a dense
gradient and AdamW's state would take 18 more. Users are ids, drawn anew for each step, jobs are 10,000 ids, negatives
in-batch. What is held against the report is the peak of this process's resident memory, less what it held before the
model was built. A step's time does not depend on the rows, but for the caches.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.line import peak
from benchmarks.line import report as line
from towers.features import FIRST, Batch, FeatureInfo, Kind, Ragged
from towers.model import memory
from towers.model.encoders import EncoderSettings
from towers.model.history import HistorySettings
from towers.model.memory import Step, activation_bytes
from towers.model.module import Retrieval, TrainingData
from towers.model.negatives import InBatch
from towers.model.optimisers import OptimiserSettings
from towers.model.tables import FeatureTable
from towers.model.tower import TowerSettings
from towers.model.two_tower import TwoTower

ITEMS = 10_000


def resident() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def batch(rows: int, size: int, seed: int) -> Batch:
    """Random users and items."""
    rng = np.random.default_rng(seed)
    nothing, item = np.zeros((size, 1), np.int64), rng.integers(0, ITEMS, size)
    known = Ragged(np.arange(size + 1), item)
    return Batch(
        rng.integers(0, rows, size), item, np.ones(size, np.float32), nothing - 1, nothing, nothing.astype(np.float32),
        known,
    ).map(torch.as_tensor)  # fmt: skip


def model(rows: int, dim: int, table: str) -> TwoTower:
    """Ids on both sides, compared by their inner product; users' gradients are sparse."""
    infos = [[FeatureInfo("id", Kind.ID, 0, FIRST + n)] for n in (rows, ITEMS)]
    encoders = EncoderSettings(sparse_above=ITEMS + FIRST, table=table, table_rows=max(rows // 10, ITEMS + FIRST))  # type: ignore[arg-type]
    tower = TowerSettings(fusion="sum", body="none", encoders=encoders)
    return TwoTower(*infos, dim=dim, user=tower, item=tower, history=HistorySettings(pooling="none"))


def main() -> None:
    """The report, the steps, two lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--table", choices=["full", "hashed", "quotient_remainder"], default="full")
    parser.add_argument("--optimiser", choices=["rowwise_adagrad", "sparse_adam"], default="rowwise_adagrad")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = OptimiserSettings(table_optimiser=args.optimiser)
    distinct = int(ITEMS * (1 - (1 - 1 / ITEMS) ** args.batch_size))
    step = Step(args.batch_size, distinct, pairs=args.batch_size * distinct)
    first = batch(args.rows, args.batch_size, 0)

    def make() -> TwoTower:
        return model(args.rows, args.dim, args.table)

    with torch.device("meta"):
        planned = make()
    found = memory.report(
        planned,
        settings,
        step,
        features=4 * (args.rows + ITEMS),
        activations=activation_bytes(make, step),
        free=memory.free_bytes(torch.device("cpu")),
    )
    print(found, flush=True)
    found.check()
    torch.ones(8, 8, requires_grad=True).square().sum().backward()  # what torch itself needs for a backward pass
    before = resident()
    tables = [FeatureTable({"id": torch.arange(FIRST, FIRST + n, dtype=torch.int32)}) for n in (args.rows, ITEMS)]
    module = Retrieval(make(), TrainingData(*tables, np.ones(ITEMS, np.int64)), sampler=InBatch, optimiser=settings)
    module._trainer = _Standing()  # type: ignore[assignment]
    optimiser = module.configure_optimizers()
    seconds = []
    for i in range(args.steps + 1):
        one = first if not i else batch(args.rows, args.batch_size, i)
        start = time.perf_counter()
        optimiser.zero_grad()
        loss = module.training_step(one, i)
        loss.backward()
        optimiser.step()
        seconds.append(time.perf_counter() - start)
    held = peak() - before
    usual, fastest, slowest = statistics.median(seconds[1:]), min(seconds[1:]), max(seconds[1:])
    print(f"held {memory.size(held)}, predicted {memory.size(found.total)}; loss {loss.item():.3f}")
    print(f"step {1e3 * usual:.1f} ms (median of {args.steps}; {1e3 * fastest:.1f} to {1e3 * slowest:.1f}), "
          f"{args.batch_size / usual:,.0f} examples/s")  # fmt: skip
    line(f"tables/memory_error_{args.rows}", abs(held / found.total - 1), 0.05, at_most=True)


class _Standing:
    """What ``training_step`` asks of a trainer."""

    log_every_n_steps = 10**9
    global_step = 0


if __name__ == "__main__":
    main()
