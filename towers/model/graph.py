"""Sums over the neighbours of a graph: a sparse matrix times a table of vectors.

Shapes: ``N`` nodes, ``E`` edges, ``D`` dim.

    y_n = Σ_{m ∈ N(n)} a_nm x_m

A node is the weighted bag of its neighbours, hence ``embedding_bag`` computes the product: two to three times faster
than torch's sparse matrices on a CPU, and with plain tensors, which move from device to device like any others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn


class Graph(nn.Module):
    """A sparse matrix; data, not weights, and never part of a checkpoint.

    Args:
        matrix: ``[N, N]`` weights of the edges, a row for each node.
        symmetric: the matrix is its own transpose; the way back is then a sum over neighbours too, and not a scatter.
    """

    def __init__(self, matrix: sparse.csr_array, *, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric
        arrays = {"offsets": (matrix.indptr, np.int32), "columns": (matrix.indices, np.int32),
                  "values": (matrix.data, np.float32)}  # fmt: skip
        for name, (array, kind) in arrays.items():
            self.register_buffer(name, torch.from_numpy(array.astype(kind)), persistent=False)
        self.offsets: Tensor
        self.columns: Tensor
        self.values: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``[N, D]`` vectors → ``[N, D]`` weighted sums over the neighbours, zero for a node without any."""
        if self.symmetric and torch.is_grad_enabled() and x.requires_grad:
            out: Tensor = _SymmetricSum.apply(x, self)  # type: ignore[no-untyped-call]
            return out
        return self.sums(x)

    def sums(self, x: Tensor) -> Tensor:
        """``[N, D]``, by torch's own gradient."""
        return F.embedding_bag(
            self.columns, x, self.offsets, mode="sum", per_sample_weights=self.values.to(x.dtype),
            include_last_offset=True,
        )  # fmt: skip


class _SymmetricSum(torch.autograd.Function):
    """``A x`` with ``A = Aᵀ``: the gradient is summed over the neighbours as the vectors were."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: Graph) -> Tensor:
        ctx.graph = graph
        return graph.sums(x)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.graph.sums(gradient[0].contiguous()), None


def inverse_root(degrees: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``[N]`` float32 ``degree^-½``; 0 for a node without edges."""
    return np.where(degrees > 0, np.maximum(degrees, 1e-12) ** -0.5, 0.0).astype(np.float32)


def normalised(clicks: sparse.csr_array) -> sparse.csr_array:
    """The symmetric-normalised adjacency of users and items.

        Â = D^-½ [[0, R], [Rᵀ, 0]] D^-½

    Args:
        clicks: ``[U, I]``, R.

    Returns:
        ``[U + I, U + I]`` float32; no node is its own neighbour.
    """
    users, items = (inverse_root(np.asarray(clicks.sum(axis=axis)).ravel()) for axis in (1, 0))
    r = sparse.diags_array(users) @ clicks @ sparse.diags_array(items)
    return sparse.csr_array(sparse.block_array([[None, r], [r.T, None]], format="csr"), dtype=np.float32)
