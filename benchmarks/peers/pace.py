"""What every side does alike: read the log, warm up, train for a while, tell the pace.

Runs in the environment of each peer: nothing but the standard library, numpy and pyarrow.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq


class Enough(Exception):  # noqa: N818  (no error: the time is over)
    """Raised in the training loop when the time is over; the way out of loops that offer no other."""


class Job(NamedTuple):
    """What a side is asked to do.

    Attributes:
        user: ``[n]`` users 0 … U-1 of the events, in random order; ``item`` likewise.
        batch: examples in a step.
        dim: width of the embeddings and of both towers' outputs.
        hidden: width of the one hidden layer.
        threads: of the computation.
        seconds: to train after the warm-up.
        warm_up: steps before the clock starts.
        clock: ``wall``, or ``cpu``: seconds of the processor, all threads of the process together.
    """

    user: np.ndarray[Any, np.dtype[np.int64]]
    item: np.ndarray[Any, np.dtype[np.int64]]
    batch: int
    dim: int
    hidden: int
    threads: int
    seconds: float
    warm_up: int
    clock: str = "wall"

    @property
    def users(self) -> int:
        """Number of users."""
        return int(self.user.max()) + 1

    @property
    def items(self) -> int:
        """Number of items."""
        return int(self.item.max()) + 1


class Pace:
    """Counts steps, and raises ``Enough`` at the first one that ends after the time is over."""

    def __init__(self, job: Job) -> None:
        self.batch, self.warm_up, self.limit = job.batch, job.warm_up, job.seconds
        self.steps, self.start, self.seconds = 0, 0.0, 0.0
        self.now = time.process_time if job.clock == "cpu" else time.perf_counter

    def step(self) -> None:
        """After each step."""
        now = self.now()
        self.steps += 1
        if self.steps == self.warm_up:
            self.start = now
        if self.steps > self.warm_up:
            self.seconds = now - self.start
            if self.seconds >= self.limit:
                raise Enough

    def tell(self, packages: Sequence[str], differs: str) -> None:
        """Print what was measured as a line of JSON.

        Args:
            packages: whose versions are told.
            differs: loss, optimiser and negatives where they are not as asked.

        Raises:
            RuntimeError: training ended before the clock had anything to measure.
        """
        if self.steps <= self.warm_up:
            raise RuntimeError(f"training ended after {self.steps} steps, {self.warm_up} of them to warm up: more data")
        told = {
            "examples": (self.steps - self.warm_up) * self.batch,
            "seconds": round(self.seconds, 3),
            "versions": {name: version(name) for name in packages},
            "differs": differs,
        }
        print("\n" + json.dumps(told), flush=True)  # whatever bar stands on this line


def job() -> Job:
    """The job of the command line, read from the log."""
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    for name in ("batch", "dim", "hidden", "threads", "warm-up"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    table = pq.read_table(args.log, columns=["user", "item"])
    user, item = (table[name].to_numpy() for name in ("user", "item"))
    return Job(user, item, args.batch, args.dim, args.hidden, args.threads, args.seconds, args.warm_up, args.clock)
