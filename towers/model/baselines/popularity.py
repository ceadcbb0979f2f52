"""The same items for everybody: the most taken ones, ever or lately.

Shapes: ``B`` queries, ``I`` items, ``N`` candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.features import Batch
from towers.model.baselines.baseline import Baseline, Features, Matrix, Progress, State
from towers.model.closed_form.interactions import Interactions

_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Popularity(Baseline):
    """Most popular items.

    When to use it: always, as the floor. A model that is not clearly above it has learnt nothing about anybody; where
    members of the future are new, or jobs live for days, recent popularity is a strong floor.

    Source: Ji, Sun, Zhang and Li, "A Re-visit of the Popularity Baseline in Recommender Systems" (SIGIR 2020), for the
    recent form.
    """

    half_life_days: float | None = None
    """An event counts half after so many days, seen from the last training event; None: all events count alike."""

    @property
    def instead(self) -> str:
        """A model of users and items."""
        return "model=matrix_factorisation"

    def fit(self, log: Interactions, progress: Progress) -> State:
        """``[1, I]`` weighted events of each item, as a share of the most popular one's.

        Raises:
            ConfigError: a half-life that is not positive, or a log without timestamps.
        """
        counts = np.bincount(log.item, weights=log.weight * self._weight(log), minlength=log.n_items)
        return {"popularity": (counts / max(counts.max(initial=0.0), 1e-30))[None].astype(np.float32)}

    def _weight(self, log: Interactions) -> NDArray[np.float64]:
        if self.half_life_days is None:
            return np.ones(len(log.item))
        if self.half_life_days <= 0:
            raise ConfigError(
                f"model.half_life_days is {self.half_life_days}; set a positive number, or null for all time"
            )
        if log.time is None or log.clock != "time":
            raise ConfigError("model.half_life_days needs timestamps, and this log has none; set it to null")
        days = (log.time.max(initial=0) - log.time) / _DAY_US
        return np.asarray(np.exp2(-days / self.half_life_days))

    def queries(self, state: State, batch: Batch, users: Features) -> Matrix:
        """``[B, 1]`` ones."""
        return np.ones((len(batch), 1), np.float32)

    def items(self, state: State, rows: NDArray[np.int64]) -> Matrix:
        """``[1, N]``."""
        return state["popularity"][:, rows]
