"""What training is worth: a deep recipe against its own start, paired over the same users.

    python -m benchmarks.worth EXPERIMENT … [--metric ndcg@20] [--start model.stacking=null] [--set seed=1 threads=1 …]

Each experiment is run twice, with equal seeds: as it is, and with ``trainer.max_epochs=0`` (or what ``--start`` says),
which leaves it at what ``init`` computed or at what was drawn. Both are ranked on the selecting task, validation, on
which the trained run also chose its epoch: where a gain is near its interval, read it as no gain. Test is not touched.

Shapes: ``Q`` queries.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that `python benchmarks/worth.py` works as well

from benchmarks.line import report  # noqa: E402
from benchmarks.quality import verb  # noqa: E402
from pipeline.runs import Run  # noqa: E402
from towers.errors import DataError  # noqa: E402
from towers.evaluation.intervals import Interval, paired_difference  # noqa: E402

GOAL = 0.03  # of the start's metric


class Worth(NamedTuple):
    """A metric before and after training, and the difference with its 95 % interval."""

    start: float
    trained: float
    gain: Interval

    @property
    def relative(self) -> float:
        """The gain as a share of the start."""
        return self.gain.value / self.start if self.start else float("inf") if self.gain.value > 0 else 0.0

    def __str__(self) -> str:
        """Both values, and the difference between its bounds."""
        g = self.gain
        return (
            f"start {self.start:.4f}, trained {self.trained:.4f}: "
            f"{g.value:+.4f} [{g.low:+.4f}, {g.high:+.4f}], {self.relative:+.1%}"
        )


def compare(start: pa.Table, trained: pa.Table, metric: str) -> Worth:
    """Two ``per_query.parquet`` of one task, paired.

    Users are drawn with all their queries: what one query of a user gains, her others gain too.

    Args:
        start: ``[Q]`` before training.
        trained: ``[Q]`` after it.
        metric: a column.

    Raises:
        DataError: they hold different queries, or no such metric.
    """
    keys = [n for n in start.column_names if not pa.types.is_floating(start.schema.field(n).type)]
    if metric not in start.column_names or metric in keys:
        raise DataError(f"no metric {metric!r} by query; there are {sorted(set(start.column_names) - set(keys))}")
    if not set(keys) <= set(trained.column_names) or not start.select(keys).equals(trained.select(keys)):
        raise DataError("the two runs ranked different queries; compare runs of one prepared dataset and one task")
    who = next(n for n in keys if n != "targets")
    _, users = np.unique(start[who].to_numpy(zero_copy_only=False), return_inverse=True)
    before, after = (t[metric].to_numpy().astype(np.float64) for t in (start, trained))
    return Worth(float(before.mean()), float(after.mean()), paired_difference(after, before, users.astype(np.int64)))


def measure(experiment: str, metric: str, start: list[str], overrides: list[str], scratch: Path) -> tuple[Worth, int]:
    """Run an experiment's start and itself; what it gained, and after how many epochs."""
    tables, epochs = [], 0
    for name, more in (("start", start), ("trained", [])):
        verb("train.py", f"experiment={experiment}", f"name={name}", f"runs={scratch}", *overrides, *more)
        run = Run(scratch / name / "latest")
        task, epochs = str(run.metrics["monitor"]).partition("/")[0], int(run.metrics["best_epoch"])
        tables.append(pq.read_table(run.folder / "eval" / task / "per_query.parquet"))
    return compare(*tables, metric), epochs


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", help="committed experiments that train")
    parser.add_argument("--metric", default="ndcg@20")
    parser.add_argument(
        "--start", nargs="+", default=["trainer.max_epochs=0"], metavar="KEY=VALUE", help="what is left out"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of both runs")
    args = parser.parse_args()
    for experiment in args.experiments:
        with tempfile.TemporaryDirectory(prefix="worth-") as folder:
            worth, epochs = measure(experiment, args.metric, args.start, args.set, Path(folder))
        print(f"{experiment}, {args.metric} on validation: {worth}; epoch {epochs}")
        report(f"worth/{experiment}/{args.metric}/relative", worth.relative, GOAL, at_most=False)


if __name__ == "__main__":
    main()
