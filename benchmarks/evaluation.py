"""Exact evaluation against the bare work in it: a blocked matrix product and a top-k.

``python -m benchmarks.evaluation`` ranks 200,000 candidates for 2,000 queries, each with some
exclusions and a clock that retires a part of the candidates. The bare loop reuses one score buffer
and takes the same blocks, so it is as fast as torch lets it be.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from benchmarks.line import interleaved, report
from towers.evaluation.ranking import rank
from towers.evaluation.task import Task
from towers.features import Ragged

GOAL = 1.3
DAY = 86_400_000_000


def bare(queries: Tensor, candidates: Tensor, k: int, block: int) -> None:
    scores = torch.empty(block, len(candidates))
    for start in range(0, len(queries), block):
        part = queries[start : start + block]
        torch.topk(torch.mm(part, candidates.T, out=scores[: len(part)]), k, dim=1)


def made_up(queries: int, candidates: int, excluded: int, *, clock: bool, seed: int = 0) -> Task:
    rng = np.random.default_rng(seed)
    offsets = np.arange(queries + 1)
    posted = rng.integers(0, 60 * DAY, candidates)
    return Task(
        name="bench",
        query=np.arange(queries),
        batches=[],  # the vectors are given
        targets=Ragged(offsets, rng.integers(0, candidates, queries)),
        candidates=np.arange(candidates),
        exclude=Ragged(offsets * excluded, rng.integers(0, candidates, queries * excluded)),
        time=rng.integers(30 * DAY, 60 * DAY, queries) if clock else None,
        posted=posted if clock else None,
        expires=posted + 30 * DAY if clock else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--candidates", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(a.queries, a.dim, generator=generator)
    candidates = torch.randn(a.candidates, a.dim, generator=generator)
    block = max(16, (128 << 20) // (4 * a.candidates))
    for name, clock in (("exclusions", False), ("exclusions_and_clock", True)):
        task = made_up(a.queries, a.candidates, 50, clock=clock)
        times = interleaved(
            lambda task=task: rank(queries, candidates, task, a.k),
            lambda: bare(queries, candidates, a.k, block),
            a.repeats,
        )
        print(f"{name}: rank {times.a:.3f} s, bare matmul and top-k {times.b:.3f} s, {torch.get_num_threads()} threads")
        report(f"evaluation/rank_over_bare_{name}", times.ratio, GOAL, at_most=True)


if __name__ == "__main__":
    main()
