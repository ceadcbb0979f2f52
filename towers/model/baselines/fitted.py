"""A fitted baseline: scored like any model, stored without pickle.

Shapes: ``Q`` queries, ``B`` of a block, ``N`` candidates, ``F`` wide features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from towers.evaluation.results import replacing
from towers.evaluation.task import Task
from towers.model.baselines.baseline import Baseline, Features, Matrix, State

_PARTS = ("data", "indices", "indptr", "shape")  # of a sparse matrix in the file


class WideProducts:
    """The scorer of a baseline: wide query vectors × wide candidate vectors, a block of dense scores at a time.

    Args:
        queries: ``[Q, F]``, sparse or dense.
        items: ``[F, N]``, sparse or dense.
    """

    device = torch.device("cpu")

    def __init__(self, queries: Matrix, items: Matrix) -> None:
        self.queries, self.items = queries, items

    def __len__(self) -> int:
        """``Q``."""
        return int(self.queries.shape[0])

    def write(self, queries: NDArray[np.int64], out: Tensor) -> None:
        """One sparse (or dense) matrix product."""
        product = self.queries[queries] @ self.items
        out.copy_(torch.from_numpy(product.toarray() if sparse.issparse(product) else product))


@dataclass(frozen=True)
class Fitted:
    """A baseline with what it has learnt.

    Attributes:
        baseline: the method and its settings.
        state: plain matrices by name.
        users: encoded features of all users.
    """

    baseline: Baseline
    state: State
    users: Features

    def scorer(self, task: Task) -> WideProducts:
        """Scores of a task's queries against its candidates: the same products, whichever side asks."""
        blocks = [self.baseline.queries(self.state, batch, self.users) for batch in task.batches]
        users = sparse.vstack(blocks, format="csr") if sparse.issparse(blocks[0]) else np.concatenate(blocks)
        if task.retrieve == "items":
            return WideProducts(users, self.baseline.items(self.state, task.candidates))
        items = self.baseline.items(self.state, task.query).T
        return WideProducts(items.tocsr() if sparse.issparse(items) else items, users.T)


def save(state: State, path: Path) -> None:
    """Write a state as an uncompressed ``.npz`` without pickled objects, whole or not at all."""
    arrays: dict[str, Any] = {}
    for name, matrix in state.items():
        if sparse.issparse(matrix):
            arrays |= {f"{name}:{part}": np.asarray(getattr(matrix, part)) for part in _PARTS}
        else:
            arrays[name] = matrix
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> State:
    """Read what ``save`` wrote."""
    state: State = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            stem, _, part = name.partition(":")
            if not part:
                state[name] = arrays[name]
            elif part == _PARTS[0]:
                data, indices, indptr, shape = (arrays[f"{stem}:{p}"] for p in _PARTS)
                state[stem] = sparse.csr_array((data, indices, indptr), shape=tuple(shape.tolist()))
    return state
