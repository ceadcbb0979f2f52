"""Small made-up tasks, and the plainest possible answers to them."""

import numpy as np
import torch

from towers.evaluation.task import Task
from towers.features import Ragged


def ragged(lists):
    values = np.array([x for row in lists for x in row], np.int64)
    return Ragged(np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64), values)


def lists(r):
    return [r.values[a:b].tolist() for a, b in zip(r.offsets[:-1], r.offsets[1:], strict=True)]


def make_task(targets, candidates, exclude=None, user=None, **times):
    q = len(targets)
    return Task(
        name="test",
        query=np.arange(q) if user is None else np.asarray(user),
        batches=[],  # the vectors are given
        targets=ragged(targets),
        candidates=np.asarray(candidates, np.int64),
        exclude=ragged(exclude or [[]] * q),
        **{name: np.asarray(t, np.int64) for name, t in times.items() if t is not None},
    )


def world(seed, queries=7, items=40, dim=3, *, clock=False, coarse=False):
    """A random task and vectors; ``coarse`` makes equal scores frequent and products exact."""
    rng = np.random.default_rng(seed)
    candidates = np.sort(rng.choice(items, rng.integers(1, items + 1), replace=False))
    n = len(candidates)

    def vectors(rows):
        x = rng.integers(-2, 3, (rows, dim)) if coarse else rng.normal(size=(rows, dim))
        return torch.tensor(x, dtype=torch.float32)

    posted = rng.integers(0, 20, n) if clock else None
    task = make_task(
        [rng.choice(items, rng.integers(1, 6), replace=False) for _ in range(queries)],
        candidates,
        [rng.integers(0, items, rng.integers(0, 12)) for _ in range(queries)],
        time=rng.integers(0, 30, queries) if clock else None,
        posted=posted,
        expires=posted + rng.integers(-1, 15, n) if clock else None,
    )
    return task, vectors(queries), vectors(n)


def brute_force(task, queries, candidates):
    """Every query's eligible (item, score), the best first; of equal scores the lower column first."""
    out = []
    for q in range(len(task)):
        eligible = set(range(len(task.candidates)))
        eligible -= {j for j in eligible if task.candidates[j] in lists(task.exclude)[q]}
        if task.time is not None:
            eligible = {j for j in eligible if task.posted[j] <= task.time[q] < task.expires[j]}
        scores = (queries[q : q + 1] @ candidates.T)[0].tolist()
        out.append([(int(task.candidates[j]), scores[j]) for j in sorted(eligible, key=lambda j: (-scores[j], j))])
    return out
