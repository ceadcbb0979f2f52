"""What an item's content says of its factors, so that an item that training never saw has some too.

Shapes: ``I`` items, ``V`` values of all features together, ``d`` factors.

    T = argmin Σ_{i known} ‖x_i T - v_i‖² + μ ‖T‖²        x_i: weights of i's values, as its encoders pool them

The normal equations are solved by conjugate gradients, all ``d`` columns at once, with sparse products only: a
vocabulary may have any size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from towers.features import FIRST
from towers.model.encoders import Bag, Lookup

RIDGE = 1.0  # μ: a value that two items have is trusted by half or so
STEPS = 30


def fit_tables(
    encoders: Mapping[str, Bag | Lookup], columns: Mapping[str, Tensor], vectors: Tensor, known: Tensor
) -> dict[str, Tensor]:
    """Embedding tables under which content comes as near as it can to the factors of known items.

    When to use it: wherever a closed form meets a model that reads content; ``assign`` does. Source: the linear case of
    Gantner et al., "Learning Attribute-to-Feature Mappings for Cold-Start Recommendations", 2010.

    Args:
        encoders: of the content features, by name.
        columns: their encoded values, ``[I]`` or ``[I, W]``.
        vectors: ``[I, d]`` factors.
        known: ``[I]`` bool, items whose factors mean something.

    Returns:
        ``[V, d]`` tables by name; zeros for values that no known item has.
    """
    if not encoders:
        return {}
    parts = {name: pooling_matrix(e, columns[name]) for name, e in encoders.items()}
    keep = known.numpy()
    x = sparse.hstack(list(parts.values()), format="csr")[keep]
    solution = torch.from_numpy(_solve(x, vectors[known].numpy().astype(np.float32)))
    sizes = [p.shape[1] for p in parts.values()]
    return dict(zip(parts, torch.split(solution, sizes), strict=True))


@torch.no_grad()
def pooling_matrix(encoder: Bag | Lookup, ids: Tensor) -> sparse.csr_array:
    """``[I, V]``: the weight of each value in each item's vector."""
    values = ids.reshape(len(ids), -1).long()
    weight = torch.ones(values.shape)
    if isinstance(encoder, Bag):
        weight = encoder.weights(values)
    weight = weight.masked_fill(values < FIRST, 0.0)  # special values stay at zero
    row, column = torch.nonzero(weight, as_tuple=True)
    entries = (weight[row, column].numpy(), (row.numpy(), values[row, column].numpy()))
    return sparse.csr_array(entries, shape=(len(ids), encoder.table.num_embeddings))


def _solve(x: sparse.csr_array, v: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(XᵀX + μI)⁻¹ Xᵀ V`` by conjugate gradients, a step length for each column."""
    xt = x.T.tocsr()
    r: NDArray[np.float32] = xt @ v
    t = np.zeros_like(r)
    p, rr = r.copy(), (r * r).sum(0)
    for _ in range(STEPS):
        ap = xt @ (x @ p) + RIDGE * p
        step = rr / np.maximum((p * ap).sum(0), 1e-20)
        t += step * p
        r -= step * ap
        before, rr = rr, (r * r).sum(0)
        p = r + rr / np.maximum(before, 1e-20) * p
    return t
