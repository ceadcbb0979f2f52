"""Tf-idf smoothed by co-clicks: concepts stand for the concepts that the same users click.

Shapes: ``U`` users, ``I`` items, ``V`` values of all features end to end. ``Y [U, V]``: which values stand in the
items that a user clicked; ``n_u``, ``n_w``: entries of its rows and columns.

    score = h (1 + β S) c,     S_vw ∝ Σ_u n_u^-a y_uv y_uw n_w^-c,   Σ_w S_vw = 1,   S_vv = 0      (h, c: see ``tfidf``)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from towers.errors import ConfigError
from towers.features import Batch
from towers.model.baselines.baseline import Features, Matrix, Progress, State
from towers.model.baselines.item_knn import ItemKNN
from towers.model.baselines.tfidf import Tfidf
from towers.model.closed_form.interactions import Interactions


@dataclass(frozen=True)
class CoclickTfidf(Tfidf):
    """Tf-idf in which a nurse's history also finds jobs for carers, since those who click the one click the other.

    When to use it: new jobs with few, exact concepts (skills, title concepts), and clicks to learn from which of them
    go together. It is item-kNN whose items are the concepts, added to the match of the concepts themselves; what it
    adds is most in depth (recall@100), where tf-idf has run out of shared words.

    Source: the thesaurus by association of Qiu and Frei, "Concept Based Query Expansion" (SIGIR 1993), with clicks in
    the place of documents.
    """

    smoothing: float = 4.0
    """``β``: weight of all that goes together with a concept, beside 1 for the concept itself."""
    user_power: float = 1.0
    """``a``: the larger, the less users with many concepts count."""
    item_power: float = 0.7
    """``c``: the larger, the less frequent concepts are recommended."""
    neighbours: int | None = 150
    """Concepts that keep so many others that lead to them; null: all."""

    @property
    def instead(self) -> str:
        """The same in fewer dimensions, of the heaviest feature."""
        return self.short("coclick")

    def fit(self, log: Interactions, progress: Progress) -> State:
        """Weighted bags of all items, and the matrix ``S`` of their values.

        Raises:
            ConfigError: as for tf-idf; a negative ``smoothing``, or fewer than 1 neighbours.
        """
        if self.smoothing < 0:
            raise ConfigError(f"model.smoothing is {self.smoothing}; set it to at least 0")
        state = super().fit(log, progress)
        values = together(log, sparse.csr_array(state["candidates"]))
        knn = ItemKNN(user_power=self.user_power, history_power=0.0, item_power=self.item_power,
                      neighbours=self.neighbours)  # fmt: skip
        return {**state, "together": shares(knn.fit(values, progress)["similarity"])}

    def queries(self, state: State, batch: Batch, users: Features) -> Matrix:
        """``[B, V]`` pooled histories with what goes together with them."""
        bags = super().queries(state, batch, users)
        return sparse.csr_array(bags + self.smoothing * (bags @ state["together"]))


def shares(matrix: sparse.csr_array) -> sparse.csr_array:
    """``[n, m]``, each row divided by its sum; a row of zeros stays one."""
    totals = np.asarray(matrix.sum(axis=1)).ravel()
    inverse = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)
    return sparse.csr_array(sparse.diags_array(inverse) @ matrix)


def together(log: Interactions, bags: sparse.csr_array) -> Interactions:
    """Users with the values of the items they clicked, in the place of the items; each pair once.

    Args:
        log: the training events.
        bags: ``[I, V]``, not zero where an item has a value.
    """
    pairs = sparse.coo_array(log.matrix().astype(bool) @ bags.astype(bool))
    user, value = (x.astype(np.int64) for x in pairs.coords)
    return Interactions(user, value, np.ones(len(user), np.float32), log.n_users, bags.shape[1])
