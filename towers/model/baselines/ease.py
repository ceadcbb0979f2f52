"""EASE: the linear autoencoder that has a closed form.

Shapes: ``U`` users, ``I`` items. ``X [U, I]``: clicks.

    min_B ‖X − X B‖² + λ ‖B‖²,  diag B = 0      ⇒      B = I − P / diag P (by columns),   P = (Xᵀ X + λ I)^{-1}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from towers.errors import ConfigError
from towers.model.baselines.baseline import SVD, Neighbourhood, Progress, State
from towers.model.closed_form.interactions import Interactions

_ROWS = 1024  # mirrored at once


@dataclass(frozen=True)
class EASE(Neighbourhood):
    """Embarrassingly shallow autoencoder.

    When to use it: dense clicks and at most some 20,000 items (a dense ``[I, I]`` matrix, inverted once: 1.3 GB and two
    minutes on one core for 18,000). The strongest linear method where users have many clicks.

    Source: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data" (WWW 2019).
    """

    regularisation: float = 300.0
    """``λ``: between 100 and 1,000 on most logs; larger where items have more clicks."""
    memory_gb: float = 4.0
    """Refuse a matrix that is larger."""

    @property
    def instead(self) -> str:
        """The same clicks, factorised."""
        return SVD

    def fit(self, log: Interactions, progress: Progress) -> State:
        """The matrix ``B`` (its rows are items of histories).

        Raises:
            ConfigError: too many items for ``memory_gb``, a λ that is not positive, or a decay outside 0 to 1.
        """
        self.check_decay(log)
        if self.regularisation <= 0:
            raise ConfigError(f"model.regularisation is {self.regularisation}; set a positive number")
        needed = 4 * log.n_items**2 / 1e9
        if needed > self.memory_gb:
            raise ConfigError(
                f"EASE inverts a dense matrix of {log.n_items:,} by {log.n_items:,} items, {needed:.1f} GB, and "
                f"model.memory_gb is {self.memory_gb}; raise it if you have as much memory, or use model=item_knn"
            )
        progress("counting pairs", 0.0)
        clicks = log.matrix()
        gram = (clicks.T @ clicks).toarray()
        gram[np.diag_indices_from(gram)] += np.float32(self.regularisation)
        progress("inverting", 0.1)
        weights = inverse(gram)
        weights /= -np.diag(weights).copy()
        np.fill_diagonal(weights, 0.0)
        return self.learnt(weights, log)


def inverse(matrix: NDArray[Any]) -> NDArray[np.float32]:
    """The inverse of a symmetric positive definite ``[I, I]`` float32 matrix, in its own memory, by Cholesky.

    Args:
        matrix: C-contiguous; overwritten.
    """
    columns = matrix.T  # LAPACK counts by columns, and a symmetric matrix is its own transpose
    columns, failed = lapack.spotrf(columns, lower=1, clean=0, overwrite_a=1)
    if not failed:
        columns, failed = lapack.spotri(columns, lower=1, overwrite_c=1)
    if failed:
        raise np.linalg.LinAlgError(f"the matrix of {len(matrix)} items is not positive definite")
    matrix = columns.T
    for start in range(0, len(matrix), _ROWS):  # only the upper triangle (of rows) has been written
        rows = slice(start, start + _ROWS)
        block = matrix[rows, rows]
        block[:] = np.triu(block) + np.triu(block, 1).T
        matrix[start + _ROWS :, rows] = matrix[rows, start + _ROWS :].T
    return np.asarray(matrix, np.float32)
