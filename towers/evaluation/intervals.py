"""How sure a mean over queries is: percentile bootstrap.

Shapes: ``Q`` queries, ``M`` metrics, ``G`` groups (users), ``R`` resamples.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
_DRAWN = 1 << 24  # draws held at once


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def bootstrap(
    values: NDArray[np.float64],
    groups: NDArray[np.int64] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Means over queries, each with a percentile interval.

    Args:
        values: ``[Q, M]`` values by query, at least one row.
        groups: ``[Q]`` the user of each query, where users have several: then users are drawn with all
            their queries, because one user's queries tell less than as many users' would. By default
            every query is drawn on its own.
        level: probability that the interval is meant to hold.
        resamples: ``R``.
        seed: of the draws. Equal seeds draw the same queries.

    Returns:
        ``M`` intervals.
    """
    sums, counts = values, np.ones(len(values))
    if groups is not None:
        _, group = np.unique(groups, return_inverse=True)
        counts = np.bincount(group).astype(np.float64)
        sums = np.stack([np.bincount(group, column) for column in values.T], axis=1)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _DRAWN // len(sums))
    for start in range(0, resamples, step):
        times = _times_drawn(rng, min(step, resamples - start), len(sums))
        means[start : start + step] = (times @ sums) / (times @ counts)[:, None]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    center = values.mean(axis=0)
    return [Interval(float(v), float(a), float(b)) for v, a, b in zip(center, low, high, strict=True)]


def paired_difference(
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    groups: NDArray[np.int64] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of ``ours - theirs`` over the same queries, with its interval.

    Two runs find the same queries easy, so the difference is far surer than the two intervals held
    side by side suggest; a difference is worth reporting if its interval leaves out 0.

    Args:
        ours: ``[Q]`` one metric of one run by query.
        theirs: ``[Q]`` the same of the other run, for the same queries in the same order.
        groups: see ``bootstrap``.
        level: see ``bootstrap``.
        resamples: see ``bootstrap``.
        seed: see ``bootstrap``.

    Raises:
        ValueError: the runs have different numbers of queries.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{ours.shape} values against {theirs.shape}: pair runs over the same queries")
    return bootstrap((ours - theirs)[:, None], groups, level=level, resamples=resamples, seed=seed)[0]


def _times_drawn(rng: np.random.Generator, resamples: int, n: int) -> NDArray[np.float64]:
    """``[R, n]`` how often each of ``n`` is drawn in ``n`` draws with replacement."""
    drawn = rng.integers(0, n, (resamples, n)) + np.arange(resamples)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)
