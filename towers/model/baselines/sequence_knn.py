"""Sequence-kNN: what members clicked next, counted.

Shapes: ``I`` items. ``C [I, I]``: how often and how closely item ``i`` followed item ``j``; ``n_i``: events of an item.

    C_ji = Σ_users n_u^{-a} Σ_{j before i} λ^{lag - 1}   (+ β when i stands before j)
    S_ji = n_j^{-b} C_ji n_i^{-c}
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from towers.errors import ConfigError
from towers.model.baselines.baseline import Neighbourhood, Progress, State, scaled
from towers.model.closed_form.interactions import Interactions
from towers.model.closed_form.sequence import followers


@dataclass(frozen=True)
class SequenceKNN(Neighbourhood):
    """Items that followed one another.

    When to use it: ordered logs, next-item prediction. On short sequences it is above most trained sequence models,
    hence the number that these have to beat. With ``model.decay=0`` it is a smoothed first-order Markov chain.

    Source: Ludewig and Jannach, "Evaluation of Session-based Recommendation Algorithms" (UMUAI 2018): sequential rules,
    with the powers of degrees of item-kNN.
    """

    decay: float = 0.7
    lag_decay: float = 0.85
    """λ: weight of a pair for each further position between the two; 1: any distance alike."""
    backward: float = 0.3
    """β: weight of a pair in the wrong order; 1: order does not count, which is item-kNN within a distance."""
    user_power: float = 0.0
    """``a``: the larger, the less busy users count."""
    history_power: float = 0.5
    """``b``: the larger, the less popular items of a history count."""
    item_power: float = 0.1
    """``c``: the larger, the less popular items are recommended."""
    reach: int | None = None
    """Most positions between the two of a pair; None: any number, as far as λ lets them count."""

    @property
    def instead(self) -> str:
        """The same matrix, factorised."""
        return "model=sequential init=sequence_svd trainer.max_epochs=0"

    def fit(self, log: Interactions, progress: Progress) -> State:
        """The matrix ``S``.

        Raises:
            ConfigError: the log has no order, a decay lies outside 0 to 1, or nothing is within reach.
        """
        if log.time is None:
            raise ConfigError("model=sequence_knn needs the order of a user's events, and this log has none; "
                              "name events.time or events.order in the data config, or use model=item_knn")  # fmt: skip
        self.check_decay(log)
        if not 0 <= self.lag_decay <= 1:
            raise ConfigError(f"model.lag_decay is {self.lag_decay}; set it between 0 and 1")
        if self.reach is not None and self.reach < 1:
            raise ConfigError(f"model.reach is {self.reach}; set it to at least 1, or to null for any distance")
        progress("counting pairs", 0.0)
        counts = followers(log, self.lag_decay, self.backward, self.user_power, self.reach)
        progress("normalising", 0.9)
        events = np.maximum(np.bincount(log.item, minlength=log.n_items), 1).astype(np.float64)
        return self.learnt(scaled(counts, events**-self.history_power, events**-self.item_power), log)
