"""Streaming a log of four times the memory budget, beside a bare Arrow scan of the same columns.

    python -m benchmarks.reading [--events 20000000] [--repeats 5]

The scan decodes the columns of the examples, in batches of the same size, and does nothing with them. The stream
decodes them, leaves out what is no training example, shuffles, and hands out batches of them: an epoch in its order,
with the memory budget. The two take turns in one process, both with all cores.

Memory is that of an epoch of whole batches (histories, ages, known items), in a process of its own: what it grows by
after a first small dataset has been streamed, which loads what is loaded once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from benchmarks.line import interleaved, peak, report
from benchmarks.preparation import make_log, prepare
from data.batches import TrainBatches, joined
from data.examples import Examples
from data.prepared import PreparedDataset
from data.reading import TrainingParts, Window

BATCH = 4096
COLUMNS = ["user_row", "item_row", "action", "time", "weight", "split", "history_end"]


@dataclass(frozen=True)
class Columns:
    """The parts of a dataset without histories: a batch is its examples' columns."""

    parts: TrainingParts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parts, name)

    def open(self, parts: Any) -> Callable[[Any], Examples]:
        """What makes a batch of columns."""
        return Window(self.parts.records(parts), self.parts.users(parts), 0, lambda e: e).take  # type: ignore[arg-type, return-value]


def together(batches: Sequence[Examples]) -> Examples:
    """Two batches of columns as one."""
    columns = {name: [getattr(b, name) for b in batches] for name in batches[0].__dict__}
    return Examples(**{name: None if c[0] is None else np.concatenate(c) for name, c in columns.items()})


def stream(parts: TrainingParts) -> int:
    """An epoch of columns; the number of examples."""
    batches = TrainBatches(Columns(parts), together, BATCH, 0, lambda: 0)
    return sum(len(batch) for batch in batches)


def scan(data: PreparedDataset) -> int:
    """All rows; their number."""
    files = [str(data.folder / f) for f in data.info["files"] if f.startswith("examples/")]
    return sum(len(batch) for batch in ds.dataset(files).to_batches(columns=COLUMNS, batch_size=BATCH))


def grown(folder: Path, budget: int) -> int:
    """Bytes by which a streamed epoch of whole batches grows this process."""
    data = PreparedDataset(folder)
    before = peak()
    for _ in TrainBatches(TrainingParts(data, budget), joined, BATCH, 0, lambda: 0):
        pass
    return peak() - before


def main() -> None:
    """Prepare, stream and scan in turns, measure memory, two lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        small, folder, budget = args.child
        grown(Path(small), 1 << 40)
        print(grown(Path(folder), int(budget)))
        return
    with tempfile.TemporaryDirectory(dir="var" if Path("var").is_dir() else None) as root:
        folders = {name: Path(root) / name for name in ("small", "large")}
        for (name, folder), events in zip(folders.items(), (100_000, args.events), strict=True):
            make_log(Path(root) / f"{name}.parquet", events)
            prepare(Path(root) / f"{name}.parquet", folder)
        data = PreparedDataset(folders["large"])
        whole = TrainingParts(data)
        budget = whole.bytes // 4
        share = len(whole) / scan(data)  # of the rows, those that train
        parts = TrainingParts(data, budget)
        time = interleaved(lambda: stream(parts), lambda: scan(data), args.repeats)
        print(f"budget {budget / 1e6:,.0f} MB of {whole.bytes / 1e6:,.0f}; {len(whole):,} examples in {time.a:.2f} s, "
              f"the scan {time.b:.2f} s")  # fmt: skip
        child = [sys.executable, "-m", "benchmarks.reading", "--child", *map(str, folders.values()), str(budget)]
        bytes_grown = int(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
        report("reading/over_arrow_scan", share / time.ratio, 0.6, at_most=False)
        report("reading/peak_rss_over_budget", bytes_grown / budget, 1.0, at_most=True)


if __name__ == "__main__":
    main()
