"""What all baselines are: scores as products of wide, mostly sparse vectors.

Shapes: ``U`` users, ``I`` items, ``B`` queries, ``N`` candidates, ``F`` wide features (items, n-grams, training users).

    scores [B, N] = queries [B, F] · items [F, N]

A two-tower model is the same product with short dense vectors; hence the same evaluation ranks both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from towers.errors import ConfigError
from towers.features import Batch
from towers.model.closed_form.interactions import Interactions

Matrix: TypeAlias = Any  # scipy.sparse.csr_array or numpy.ndarray, float32
State = dict[str, Matrix]
Features = Mapping[str, NDArray[Any]]  # encoded features of one side, by name
Progress = Callable[[str, float], None]  # what is being done, share done


class Baseline(ABC):
    """The settings of a method, and what it does with them. What it learns is in the state, plain matrices by name."""

    @property
    @abstractmethod
    def instead(self) -> str:
        """Settings of ``train.py`` for short vectors that come nearest to this method: those can be exported."""

    @abstractmethod
    def fit(self, log: Interactions, progress: Progress) -> State:
        """Learn from the training events.

        Args:
            log: the training events, with the features of users and items.
            progress: told what is being done.

        Raises:
            ConfigError: a setting cannot work with this log.
        """

    @abstractmethod
    def queries(self, state: State, batch: Batch, users: Features) -> Matrix:
        """``[B, F]`` wide vectors of queries.

        Args:
            state: what was learnt.
            batch: user rows and histories.
            users: encoded features of all users.
        """

    @abstractmethod
    def items(self, state: State, rows: NDArray[np.int64]) -> Matrix:
        """``[F, N]`` wide vectors of candidates, as columns.

        Args:
            state: what was learnt.
            rows: ``[N]`` item rows.
        """


SVD = (
    "model=hybrid 'model.item.include=[id]' model.item.id_dropout=0 model.history.table=separate init=svd "
    "trainer.max_epochs=0"
)
"""Truncated SVD of the clicks: what neighbourhoods of items come to in short vectors."""


@dataclass(frozen=True)
class HistoryBaseline(Baseline):
    """Baselines that add up what each event of a history says: ``score = Σ_j decay^age_j · s(j, candidate)``.

    The age of an event is the number of newer ones.
    """

    decay: float = 1.0
    """Weight of an event for each newer one of the history; 1: all alike, 0: the newest alone."""

    def check_decay(self, log: Interactions) -> None:
        """Refuse a decay that is none, or that a log without order cannot have.

        Raises:
            ConfigError: it lies outside 0 to 1, or is not 1 and the log has no order.
        """
        if not 0 <= self.decay <= 1:
            raise ConfigError(
                f"model.decay is {self.decay}; set it between 0 (the newest event alone) and 1 (all alike)"
            )
        if self.decay != 1 and log.time is None:
            raise ConfigError(
                f"model.decay is {self.decay}, and the events of this log have no order; set model.decay=1"
            )


@dataclass(frozen=True)
class Neighbourhood(HistoryBaseline):
    """Those for which ``s`` is a matrix: the state holds ``similarity [I, I]``, a row for each item of a history.

    With ``popularity`` it is ``[I + 1, I]``: the last row stands in everybody's history.
    """

    popularity: float = 0.0
    """Added to all scores, times an item's share of the most popular one's events; 1e-6 orders only what ties
    otherwise, above all the items of which a short history says nothing."""

    def learnt(self, similarity: Matrix, log: Interactions) -> State:
        """The state: ``[I, I]`` similarities, and what popularity says.

        Raises:
            ConfigError: a negative weight of popularity.
        """
        if self.popularity < 0:
            raise ConfigError(f"model.popularity is {self.popularity}; set 0 or more")
        if self.popularity == 0:
            return {"similarity": similarity}
        events = np.bincount(log.item, minlength=log.n_items)
        row = np.float32(self.popularity) * (events / max(1, events.max())).astype(np.float32)[None]
        if sparse.issparse(similarity):
            return {"similarity": sparse.vstack([similarity, sparse.csr_array(row)], format="csr")}
        return {"similarity": np.vstack([similarity, row])}

    def queries(self, state: State, batch: Batch, users: Features) -> Matrix:
        """``[B, I]``, or ``[B, I + 1]``."""
        rows, items = state["similarity"].shape
        found = histories(batch, items, self.decay)
        if rows == items:
            return found
        return sparse.hstack([found, np.ones((found.shape[0], 1), np.float32)], format="csr")

    def items(self, state: State, rows: NDArray[np.int64]) -> Matrix:
        """``[I, N]``, or ``[I + 1, N]``."""
        similarity = state["similarity"]
        return similarity if len(rows) == similarity.shape[1] else similarity[:, rows]  # a copy may be gigabytes


def histories(batch: Batch, n_items: int, decay: float) -> sparse.csr_array:
    """``[B, I]``: each query's history as a row of weights, ``decay^0`` for its newest event, ``decay^1`` for the next.

    An item that occurs several times gets the sum.
    """
    history = np.asarray(batch.history)
    row, place = np.nonzero(history >= 0)
    weight = np.power(np.float32(decay), place.astype(np.float32))
    return sparse.csr_array((weight, (row, history[row, place])), shape=(len(history), n_items))


def scaled(matrix: sparse.csr_array, rows: NDArray[Any], columns: NDArray[Any]) -> sparse.csr_array:
    """``diag(rows) · matrix · diag(columns)`` in float32."""
    product = sparse.diags_array(rows) @ matrix @ sparse.diags_array(columns)
    return sparse.csr_array(product, dtype=np.float32)


def strongest(matrix: sparse.csr_array, most: int) -> sparse.csr_array:
    """Only the ``most`` greatest entries of each column: an item's nearest neighbours."""
    columns = matrix.tocsc()
    column = np.repeat(np.arange(columns.shape[1]), np.diff(columns.indptr))
    order = np.lexsort((columns.indices, -columns.data, column))
    place = np.arange(len(order)) - columns.indptr[column]
    kept = order[place < most]
    entries = (columns.data[kept], (columns.indices[kept], column[kept]))
    return sparse.csr_array(entries, shape=matrix.shape)
