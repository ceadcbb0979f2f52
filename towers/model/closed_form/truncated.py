"""The largest singular vectors of a sparse matrix, and the scale of the factors made of them.

Shapes: ``I`` rows, ``J`` columns, ``d`` factors.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor


def truncated_svd(matrix: sparse.csr_array, d: int, rounds: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """``[I, d]`` left vectors, ``[d]`` singular values, the largest first, ``[J, d]`` right vectors.

    By random projections (Halko, Martinsson and Tropp, "Finding Structure with Randomness", 2011): a thousand vectors
    of some ten thousand items in seconds, where Lanczos iterations take minutes.

    Args:
        matrix: ``[I, J]`` float32.
        d: how many.
        rounds: power iterations; the more, the nearer to the exact vectors.
    """
    entries = matrix.tocoo()
    places = torch.from_numpy(np.stack(entries.coords).astype(np.int64))
    tensor = torch.sparse_coo_tensor(places, torch.from_numpy(entries.data), matrix.shape, check_invariants=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(tensor.coalesce(), q=min(d + 64, *matrix.shape), niter=rounds)
    return left[:, :d], values[:d], right[:, :d]


def unit(vectors: Tensor) -> Tensor:
    """``[I, d]``, scaled to a mean square length of 1 over the rows that are not zero."""
    square = vectors.square().sum(1)
    return (vectors / square[square > 1e-12 * square.max()].mean().sqrt()).contiguous()
