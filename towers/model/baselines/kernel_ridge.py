"""Kernel ridge regression on the features of users: those described alike want alike.

Shapes: ``U`` users, ``T`` of them with training events, ``I`` items, ``B`` queries, ``N`` candidates, ``V`` values of
all features end to end.

    K(u, v) = Σ_f w_f cos(x_uf, x_vf),   A = (K_TT + λ I)^{-1} Y,   score = K_BT A        Y [T, I]: who took what
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from towers.errors import ConfigError
from towers.features import Batch
from towers.model.baselines.bags import bag, checked, inverse_document_frequency, weighted
from towers.model.baselines.baseline import Baseline, Features, Matrix, Progress, State
from towers.model.closed_form.interactions import Interactions


@dataclass(frozen=True)
class KernelRidge(Baseline):
    """Regression from the description of a user to the items she takes.

    When to use it: users known by their text alone (an occupation, a résumé, a query), no history, and at most some
    20,000 of them in training: a dense ``[T, T]`` system is solved once. It gives a new item nothing.

    Source: Saunders, Gammerman and Vovk, "Ridge Regression Learning Algorithm in Dual Variables" (ICML 1998).
    """

    features: Mapping[str, float] | None = None
    """Weights by user feature."""
    regularisation: float = 0.3
    """``λ``, on the scale of a kernel whose diagonal is the sum of the weights."""
    idf_power: float = 1.0
    """The larger, the more rare values count."""

    @property
    def instead(self) -> str:
        """The same regression at reduced rank."""
        features = self.features or {"text": 1.0}
        names, weights = ", ".join(features), ", ".join(f"{f}: {w}" for f, w in features.items())
        return (
            f"model=hybrid 'model.user.include=[{names}]' 'model.item.include=[id]' model.item.id_dropout=0 "
            f"model.history.pooling=none init=feature_ridge 'init.features={{{weights}}}' trainer.max_epochs=0"
        )

    def fit(self, log: Interactions, progress: Progress) -> State:
        """Each feature's ``idf``, the training users' bags ``[T, V]``, and the dual weights ``A [T, I]``.

        Raises:
            ConfigError: no features, one that is not there or not made of values, or a weight or λ not above 0.
        """
        if self.regularisation <= 0:
            raise ConfigError(f"model.regularisation is {self.regularisation}; set a positive number")
        progress("comparing users", 0.0)
        taken = log.matrix()
        trained = np.flatnonzero(np.diff(taken.indptr))
        state: State = {}
        for name in checked(self.features, log.user_features, "user"):
            ids = log.user_features[name]
            bags = bag(ids[trained], int(ids.max(initial=0)) + 1)
            state[f"idf/{name}"] = inverse_document_frequency(bags) ** self.idf_power
        users = self._described(state, log.user_features, trained)
        kernel = (users @ users.T).toarray().astype(np.float64)
        kernel[np.diag_indices_from(kernel)] += self.regularisation
        progress("solving", 0.2)
        dual = linalg.solve(kernel, taken[trained].toarray(), assume_a="pos", overwrite_a=True, overwrite_b=True)
        return {**state, "users": users, "dual": dual.astype(np.float32)}

    def queries(self, state: State, batch: Batch, users: Features) -> Matrix:
        """``[B, T]`` similarities to the training users."""
        return (self._described(state, users, np.asarray(batch.user)) @ state["users"].T).toarray()

    def items(self, state: State, rows: NDArray[np.int64]) -> Matrix:
        """``[T, N]``."""
        return np.ascontiguousarray(state["dual"][:, rows])

    def _described(self, state: State, users: Features, rows: NDArray[np.int64]) -> sparse.csr_array:
        """``[n, V]`` vectors of some users, whose inner products are the kernel."""
        parts = []
        for name, weight in checked(self.features, users, "user").items():
            idf = state[f"idf/{name}"]
            parts.append(weighted(bag(users[name][rows], len(idf)), idf, 1.0) * math.sqrt(weight))
        return sparse.csr_array(sparse.hstack(parts, format="csr"), dtype=np.float32)
